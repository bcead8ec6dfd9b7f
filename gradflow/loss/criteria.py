"""Criteria, and how their values on chunks add up to the value on the whole data set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradflow.errors import ConventionWarning, CriterionError

Reduction = Literal["mean", "none", "sum"]


class HalfSquaredError(nn.Module):
    """½‖output − target‖², summed over outputs, averaged over samples.

    The squared error of Cohen et al. (2021). For n samples with outputs of any shape,
    L = (1/2n) Σᵢ ‖oᵢ − yᵢ‖²; for a network of one output that is half of ``torch.nn.MSELoss``.

    Examples
    --------
    >>> criterion = HalfSquaredError()
    >>> criterion(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))
    tensor(1.2500)
    """

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Give the loss, a scalar, for outputs and targets of equal shape (n, …)."""
        if output.shape != target.shape:
            raise CriterionError(
                f"HalfSquaredError expected outputs and targets of one shape, got {tuple(output.shape)} and "
                f"{tuple(target.shape)}. Class labels must be one-hot."
            )
        return 0.5 * (output - target).square().sum() / len(output)


class ChunkedCriterion:
    """A criterion over data in chunks: which share of the whole each chunk's value is.

    With ``reduction="mean"`` the value on chunk c is kept as the criterion gives it and enters with weight
    d_c/Σd, where d is the criterion's own denominator: the number of samples, or, for cross-entropy and
    negative log-likelihood with class weights or ``ignore_index``, the total weight of the targets that
    count. One chunk has weight 1, so its value is the criterion's, bit for bit.

    Parameters
    ----------
    criterion : callable
        ``criterion(output, target) -> Tensor``. Never changed.
    reduction : {"mean", "none", "sum"}
        As found by :func:`resolve_reduction`.
    """

    def __init__(self, criterion: Callable[..., Tensor], reduction: Reduction) -> None:
        self.criterion = criterion
        self.reduction = reduction

    def denominator(self, target: Tensor, n_samples: int) -> float:
        """Give d_c of one chunk: samples, or the weight of the targets that count."""
        criterion = self.criterion
        if self.reduction != "mean" or target.is_floating_point():
            return float(n_samples)
        if criterion is F.cross_entropy or criterion is F.nll_loss:
            return float((target != -100).sum())  # their default ignore_index
        if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
            return float(n_samples)
        counted = target[target != criterion.ignore_index]
        if criterion.weight is None:
            return float(counted.numel())
        return float(criterion.weight.detach().double().to(counted.device)[counted].sum())

    def share(
        self, evaluate: Callable[..., Tensor], output: Tensor, target: Tensor, d: float, total: float
    ) -> Tensor:
        """Give one chunk's share of the loss, a scalar.

        Parameters
        ----------
        evaluate : callable
            The criterion, on the device and in the dtype of `output`.
        output, target : Tensor, shape (n, …)
        d, total : float
            The chunk's denominator and the sum of all.
        """
        if self.reduction != "mean":
            return evaluate(output, target).sum() / total
        value = evaluate(output, target).reshape(())
        return value if d == total else value * (d / total)


def resolve_reduction(criterion: Callable[..., Any], value: Tensor, n_samples: int) -> Reduction:
    """Find out how a criterion reduces, from its attribute and from a value on `n_samples` samples."""
    if not isinstance(value, Tensor):
        raise CriterionError(
            f"The criterion must return a torch.Tensor, got {type(value).__name__}. "
            "Write it with torch functions so that it can be differentiated."
        )
    if not value.is_floating_point():
        raise CriterionError(f"The criterion must return a real floating-point value, got {value.dtype}.")
    declared = getattr(criterion, "reduction", None)
    if value.dim() == 0 or (value.shape == (1,) and n_samples > 1):
        if declared == "sum":
            warnings.warn(
                'A criterion with reduction="sum" is divided by the number of samples, so that the loss is a '
                'mean over samples. Use reduction="mean" or "none" to say so yourself.',
                ConventionWarning,
                stacklevel=4,
            )
            return "sum"
        return "mean"
    if value.shape[0] == n_samples or declared == "none":
        return "none"
    raise CriterionError(
        f"The criterion returned shape {tuple(value.shape)} for {n_samples} samples: expected a scalar or one "
        "value per sample, shape (n, …)."
    )


def check_additive(
    chunked: ChunkedCriterion, evaluate: Callable[..., Tensor], output: Tensor, target: Tensor
) -> None:
    """Refuse a criterion whose value on the whole isn't the sum of its shares on chunks.

    Parameters
    ----------
    chunked : ChunkedCriterion
    evaluate : callable
        The criterion, where the output is.
    output, target : Tensor, shape (n, …)
        A sample of the network's outputs with their targets; cut here into chunks of unequal length.
    """
    n = len(output)
    if n < 2 or len(target) != n:
        return
    whole = evaluate(output, target)
    expected = float(whole.sum()) / n if chunked.reduction != "mean" else float(whole)
    cuts = sorted({0, max(1, n // 3), max(1, n - 1), n})
    bounds = list(pairwise(cuts))
    denominators = [chunked.denominator(target[a:b], b - a) for a, b in bounds]
    total = sum(denominators)
    if total == 0:
        return
    shares = [
        float(chunked.share(evaluate, output[a:b], target[a:b], d, total))
        for (a, b), d in zip(bounds, denominators, strict=True)
        if d > 0
    ]
    got = sum(shares)
    # Where terms of either sign cancel, rounding is relative to the terms.
    single = [float(evaluate(output[i : i + 1], target[i : i + 1]).sum()) for i in range(min(n, 16))]
    scale = max(abs(expected), sum(map(abs, shares)), max((abs(v) for v in single if v == v), default=0.0))
    if abs(got - expected) > 1e3 * torch.finfo(output.dtype).eps * scale:
        shapes = f" Outputs and targets have shapes {tuple(output.shape)} and {tuple(target.shape)}."
        raise CriterionError(
            f"The criterion can't be computed in chunks: on {n} samples at once it gives {expected:.9g}, over "
            f"chunks {got:.9g}. Expected a mean over samples. A criterion that sums, or that couples samples, "
            'must be given with reduction="none" (or "sum"), or return one value per sample.' + shapes
        )


def is_cross_entropy(criterion: Callable[..., Any]) -> bool:
    """Whether a criterion is torch's cross-entropy, which is blind to a shift of all logits."""
    return isinstance(criterion, nn.CrossEntropyLoss) or criterion is F.cross_entropy
