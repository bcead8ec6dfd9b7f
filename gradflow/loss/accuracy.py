"""How many samples a network classifies right, counted as its outputs are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.loss.criteria import function_of, option_of, token_cross_entropy


class Tally:
    """Counts of the samples that are classified right, summed over chunks.

    They stay on the outputs' device, so that counting doesn't wait for it, until :attr:`accuracy` is read as a number.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None

    def add(self, criterion: Callable[..., Any], output: Tensor, target: Tensor) -> None:
        """Count one chunk."""
        counts = count_correct(criterion, output.detach(), target)
        if counts is not None:
            self._counts = counts if self._counts is None else self._counts + counts

    def add_share(self, mean: Tensor, weight: float) -> None:
        """Count the fraction that is right, shape (), of so much."""
        counts = mean.detach().double() * weight, mean.new_tensor(weight, dtype=torch.float64)
        counted = torch.stack(counts)
        self._counts = counted if self._counts is None else self._counts + counted

    @property
    def accuracy(self) -> Tensor:
        """Fraction that is right, shape (), float64; NaN if no sample has a class."""
        if self._counts is None:
            return torch.tensor(torch.nan, dtype=torch.float64, device="cpu")
        right, counted = self._counts.double()
        return torch.where(counted > 0, right / counted, torch.nan)


def count_correct(criterion: Callable[..., Any], output: Tensor, target: Tensor) -> Tensor | None:
    """Count the samples classified right, and those that count: shape (2,), int64; None if there can't be classes.

    Classes are integer targets against logits, one-hot rows, or 0/1 targets of one logit with
    ``BCEWithLogitsLoss``.
    """
    if function_of(criterion) is token_cross_entropy:
        output = output.movedim(-1, 1)
        target = target.movedim(-1, 1) if target.is_floating_point() else target
    if output.dim() >= 2 and output.shape[1] >= 2:
        if not target.is_floating_point() and target.shape == output.shape[:1] + output.shape[2:]:
            counted = target != option_of(criterion, "ignore_index", -100)
            return _count(output.argmax(1) == target, counted)
        if target.shape == output.shape:
            is_one_hot = _are_bits(target) & (target.sum(1) == 1).all()
            return _count(output.argmax(1) == target.argmax(1), is_one_hot)
    elif isinstance(criterion, nn.BCEWithLogitsLoss):
        return _count((output > 0) == (target > 0.5), _are_bits(target))
    return None


def _count(right: Tensor, counted: Tensor) -> Tensor:
    return torch.stack([(right & counted).sum(), counted.expand_as(right).sum()])


def _are_bits(target: Tensor) -> Tensor:
    return ((target == 0) | (target == 1)).all()
