"""Criteria, and how their values on chunks add up to the value on the whole data set."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradflow.errors import ConventionWarning, CriterionError, InvalidTypeError

Reduction = Literal["mean", "none", "sum"]
Weighting = Literal["items", "counted", "rows", "elements"]


def token_cross_entropy(
    output: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of sequences, for logits with the classes last, as language models give them.

    ``torch.nn.functional.cross_entropy`` takes the classes second, (B, V, T), and where T = V it takes (B, T, V)
    without a word for another loss. As a criterion with other options: ``functools.partial(token_cross_entropy,
    ignore_index=0)``. In chunks the mean is over all tokens that count.

    Parameters
    ----------
    output : Tensor, shape (B, …, V)
        Logits.
    target : Tensor, shape (B, …), int64
        Classes; or probabilities, of the shape of `output`.
    weight, ignore_index, reduction, label_smoothing
        As of ``torch.nn.functional.cross_entropy``.

    Returns
    -------
    Tensor, shape ()
        The mean over the tokens that count; of the shape of `target` for ``reduction="none"``.

    Examples
    --------
    >>> logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 9.0]]])
    >>> token_cross_entropy(logits, torch.tensor([[1, 0, -100]]))
    tensor(0.3709)
    """
    if output.dim() < 3 or target.shape not in {output.shape[:-1], output.shape}:
        raise CriterionError(
            "token_cross_entropy expected logits of shape (B, T, V) and labels of shape (B, T), got "
            f"{tuple(output.shape)} and {tuple(target.shape)}."
        )
    if target.is_floating_point():
        target = target.movedim(-1, 1)
    return F.cross_entropy(
        output.movedim(-1, 1),
        target,
        None if weight is None else weight.to(output),
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


_COUNTING = (F.cross_entropy, F.nll_loss, token_cross_entropy)


def function_of(criterion: Any) -> Any:
    """Return the function of which a criterion is one with options, or the criterion."""
    return criterion.func if isinstance(criterion, functools.partial) else criterion


def option_of(criterion: Any, name: str, default: Any) -> Any:
    """Return an option of a criterion: a module's attribute, or what a function was given in a partial."""
    if isinstance(criterion, functools.partial):
        return criterion.keywords.get(name, default)
    return getattr(criterion, name, default)


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
        """Return the loss, a scalar, for outputs and targets of equal shape (n, …)."""
        if output.shape != target.shape:
            raise CriterionError(
                f"HalfSquaredError expected outputs and targets of one shape, got {tuple(output.shape)} and "
                f"{tuple(target.shape)}. Class labels must be one-hot."
            )
        return 0.5 * (output - target).square().sum() / len(output)


class ChunkedCriterion:
    """A criterion over data in chunks: which share of the whole each chunk's value is.

    With ``reduction="mean"`` the value on chunk c is kept as the criterion gives it and enters with weight
    d_c/Σd, where d is what the criterion averages over. One chunk has weight 1, so its value is the
    criterion's, bit for bit.

    Parameters
    ----------
    criterion : callable
        ``criterion(output, target) -> Tensor``. Never changed.
    reduction : {"mean", "none", "sum"}
        As found by :func:`resolve_reduction`.

    Attributes
    ----------
    weighted_by : {"items", "counted", "rows", "elements"}
        What d counts: items of the data set; the targets that count in cross-entropy and negative log-likelihood
        (with class weights and ``ignore_index``), by weight; rows or elements of the target.
    """

    def __init__(self, criterion: Callable[..., Tensor], reduction: Reduction) -> None:
        self.criterion = criterion
        self.reduction = reduction
        self.weighted_by: Weighting = "items"

    def candidates(self, target: Tensor) -> list[Weighting]:
        """Return what the criterion may average over, the most likely first."""
        if self.reduction != "mean":
            return ["items"]
        counts = (
            isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss)
            or function_of(self.criterion) in _COUNTING
        )
        return ["counted"] if counts and not target.is_floating_point() else ["items", "rows", "elements"]

    def denominator(self, target: Tensor, n_items: int, weighted_by: Weighting | None = None) -> float:
        """Return d_c of one chunk."""
        match weighted_by or self.weighted_by:
            case "items":
                return float(n_items)
            case "rows":
                return float(len(target))
            case "elements":
                return float(target.numel())
        ignored = option_of(self.criterion, "ignore_index", -100)  # the functions' default
        counted = target[target != ignored]
        weight = option_of(self.criterion, "weight", None)
        if weight is None:
            return float(counted.numel())
        return float(weight.detach().double().to(counted.device)[counted].sum())

    def share(
        self, evaluate: Callable[..., Tensor], output: Tensor, target: Tensor, d: float, total: float
    ) -> Tensor:
        """Return one chunk's share of the loss, a scalar.

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


def check_criterion(criterion: object) -> None:
    """Refuse what isn't a criterion."""
    if isinstance(criterion, type):
        raise InvalidTypeError(f"Expected an instance as criterion, got the class: {criterion.__name__}().")
    if not callable(criterion):
        raise InvalidTypeError(
            f"Expected criterion to be a callable (output, target) -> loss, got {type(criterion).__name__}."
        )


def resolve_reduction(criterion: Callable[..., Any], value: Tensor, n_samples: int) -> Reduction:
    """Find out how a criterion reduces, from its attribute and from a value on `n_samples` samples."""
    if not isinstance(value, Tensor):
        raise CriterionError(
            f"The criterion must return a torch.Tensor, got {type(value).__name__}. "
            "Write it with torch functions so that it can be differentiated."
        )
    if not value.is_floating_point():
        raise CriterionError(f"The criterion must return a real floating-point value, got {value.dtype}.")
    declared = option_of(criterion, "reduction", None)
    if value.dim() == 0 or (value.shape == (1,) and n_samples > 1):
        if declared == "sum":
            warnings.warn(
                'A criterion with reduction="sum" is divided by the number of samples, so that the loss is a '
                'mean over samples. Use reduction="mean" or "none" to say so yourself.',
                ConventionWarning,
                stacklevel=5,
            )
            return "sum"
        return "mean"
    if value.shape[0] == n_samples or declared == "none":
        return "none"
    raise CriterionError(
        f"The criterion returned shape {tuple(value.shape)} for {n_samples} samples: expected a scalar or one "
        "value per sample, shape (n, …)."
    )


def check_broadcast(evaluate: Callable[..., Tensor], output: Tensor, target: Tensor) -> None:
    """Refuse outputs and targets that are of one size but not of one shape, where the criterion pairs all with all."""
    if (
        output.shape == target.shape
        or output.numel() != target.numel()
        or not target.is_floating_point()
        or len(output) < 2
    ):
        return
    try:
        paired = evaluate(output.clone(), target.clone().reshape(output.shape)).sum()
    except Exception:  # not a shape that the criterion takes
        return
    value = evaluate(output.clone(), target.clone()).sum()
    if not torch.allclose(value, paired, rtol=1e3 * torch.finfo(output.dtype).eps, equal_nan=True):
        raise CriterionError(
            f"The criterion pairs each output with each target: outputs and targets have shapes {tuple(output.shape)} "
            f"and {tuple(target.shape)}. Give the targets the shape of the outputs."
        )


def n_classes(criterion: Callable[..., Any], output: Tensor) -> int | None:
    """Return the number of classes of a cross-entropy, which is blind to a shift of all logits; None of another."""
    if function_of(criterion) is token_cross_entropy:
        return output.shape[-1]
    if isinstance(criterion, nn.CrossEntropyLoss) or function_of(criterion) is F.cross_entropy:
        return output.shape[1] if output.dim() > 1 else len(output)
    return None
