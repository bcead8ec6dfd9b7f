"""What a loss function of a net and a batch may return, and how the values of chunks add up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gradflow.errors import CriterionError

#: Losses of samples, shape (b,); a sum with what it is to be divided by; a mean.
Kind = Literal["samples", "sum", "mean"]

_FORMS = (
    "one loss per sample, shape (b,); a pair (sum, weight); or a scalar, the mean over the batch; or a dictionary with "
    '"loss" as one of these'
)


@dataclass(frozen=True)
class Result:
    """What was computed of a batch.

    Attributes
    ----------
    kind : {"samples", "sum", "mean"}
    value : Tensor, shape ()
        The sum; of a mean, the mean itself.
    weight : float
        What the sum is to be divided by; NaN for a mean.
    each : Tensor or None
        The losses of samples, shape (b,).
    """

    kind: Kind
    value: Tensor
    weight: float = math.nan
    each: Tensor | None = None

    def mean(self, d: float) -> Tensor:
        """Return the mean over the batch alone, shape (); `d` is what a sum is divided by."""
        return self.value if self.kind == "mean" else self.value / d

    def share(self, d: float, total: float) -> Tensor:
        """Return the batch's share of the mean over all, shape ().

        Parameters
        ----------
        d, total : float
            The batch's weight and the sum of all.
        """
        if self.kind != "mean":
            return self.value / total
        return self.value if d == total else self.value * (d / total)


def read(returned: Any, what: str = "loss_fn") -> Result:
    """Read what a function of a net and a batch returned.

    Raises
    ------
    CriterionError
        If it is none of the forms that are known.
    """
    if isinstance(returned, Mapping) or hasattr(returned, "loss"):
        found = returned.get("loss") if isinstance(returned, Mapping) else returned.loss
        if found is None:
            names = f" with {', '.join(map(repr, returned))}" if isinstance(returned, Mapping) else ""
            raise CriterionError(
                f'{what} returned a {type(returned).__name__}{names} and no "loss". Return {_FORMS}. A Hugging Face '
                "model computes its loss if the batch has labels."
            )
        return read(found, what)
    if isinstance(returned, tuple | list) and len(returned) == 2 and not _is_loss_and_outputs(returned):
        total, weight = returned
        value = _checked(total, what)
        if value.dim() > 0:
            raise CriterionError(f"{what} returned a sum of shape {tuple(value.shape)}. Return {_FORMS}.")
        if isinstance(weight, Tensor) and weight.requires_grad:
            raise CriterionError(
                f"{what} returned a weight that depends on θ; the loss would be a ratio of two sums. Detach it, or "
                "make a loss of each sum and pass gradflow.compose a function of both."
            )
        return Result("sum", value, number(weight, f"the weight that {what} returned"))
    value = _checked(returned, what)
    if value.dim() == 0:
        return Result("mean", value)
    if value.dim() == 1:
        return Result("samples", value.sum(), float(len(value)), value)
    raise CriterionError(f"{what} returned shape {tuple(value.shape)}. Return {_FORMS}.")


def _is_loss_and_outputs(pair: Any) -> bool:
    """Whether a pair is a loss with the outputs that it came from, which isn't a sum with a weight."""
    return isinstance(pair[1], Tensor) and pair[1].numel() != 1


def number(value: Any, what: str) -> float:
    """Return a weight as a number; refuse one that isn't finite, or is negative."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise CriterionError(f"Expected {what} as a number, got {_named(value)}.") from None
    if not (math.isfinite(found) and found >= 0):
        raise CriterionError(f"Expected {what} as a finite number ≥ 0, got {found}.")
    return found


def _checked(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise CriterionError(f"{what} returned {_named(value)}. Return {_FORMS}, computed by torch.")
    if not value.is_floating_point():
        raise CriterionError(f"{what} returned {value.dtype}. Return {_FORMS}, real floating-point numbers.")
    return value


def _named(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]


def weighted_mean(results: list[tuple[Result, float]]) -> Tensor:
    """Return the mean over several batches, shape (), from what was computed of each, and their weights."""
    total = sum(d for _, d in results)
    return torch.stack([r.share(d, total) for r, d in results if d > 0 or r.kind != "mean"]).sum()
