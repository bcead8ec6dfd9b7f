"""Modules of torch that aren't differentiable everywhere."""

from __future__ import annotations

from torch import nn

_KINKED = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)  # fmt: skip


def kinks_of(net: nn.Module) -> list[str]:
    """Return the modules of a net that have kinks, by class name; functions aren't seen."""
    return sorted({type(m).__name__ for m in net.modules() if isinstance(m, _KINKED)})
