"""Weight and spectral normalisation, in either of torch's two ways."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

from gradflow.errors import InvalidInputError


def has_weight_norm(net: nn.Module) -> bool:
    """Whether ``weight_norm`` computes weights of the net."""
    return any(kind.endswith("WeightNorm") for _, kind, _ in _normalized(net))


def refuse_moving_norms(net: nn.Module) -> None:
    """Refuse ``spectral_norm`` in train mode.

    Each forward pass then takes a step of the power iteration for the norm, whose vectors count as constants in the
    backward pass: the gradient that torch gives isn't that of any function of θ.
    """
    moving = [where for where, kind, trains in _normalized(net) if kind.endswith("SpectralNorm") and trains]
    if moving:
        raise InvalidInputError(
            f"spectral_norm of {', '.join(moving)} is in train mode, where each forward pass changes the norm "
            "by a step of its power iteration, so that the loss isn't a function of θ. Call net.eval()."
        )


def _normalized(net: nn.Module) -> Iterator[tuple[str, str, bool]]:
    """Return the normalised weights: where, by what class, and whether in train mode."""
    for name, module in net.named_modules():
        where = f"{name}." if name else ""
        for hook in module._forward_pre_hooks.values():
            if type(hook).__name__ in {"WeightNorm", "SpectralNorm"}:
                yield where + hook.name, type(hook).__name__, module.training
        if parametrize.is_parametrized(module):
            for weight, maps in module.parametrizations.items():
                for each in maps:
                    yield where + weight, type(each).__name__, each.training
