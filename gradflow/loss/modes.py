"""What in a network depends on whether it is in train or in eval mode."""

from __future__ import annotations

from torch import nn


def normalizes_batches(net: nn.Module) -> bool:
    """Whether a net has batch-norm in train mode, by whose statistics samples know of each other."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in net.modules())


def drops(module: nn.Module) -> bool:
    """Whether a module is one of torch's that draw random numbers in train mode, and is in it."""
    if not module.training:
        return False
    p = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    inner = getattr(module, "dropout", 0.0)
    return bool(p) or (isinstance(inner, float) and inner > 0)
