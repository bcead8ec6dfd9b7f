"""What losses that are made of others have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.loss.data_loss import DataLoss
from gradflow.loss.function import LossFunction

# What a combination has from its first term with data.
_OF_DATA = ("n_outputs", "n_samples", "classifies", "device", "dtype", "stiff_dim", "metrics")


class Combination(LossFunction):
    """A loss that is computed from others of the same θ.

    Accuracy, metrics, ``n_samples``, ``n_outputs``, ``stiff_dim`` and the net's weights are those of the first of them
    that has data. Mini-batches take rows of the data set, if there is one, and all of the terms without data.

    Parameters
    ----------
    parts : sequence of LossFunction
    """

    def __init__(self, parts: Sequence[LossFunction]) -> None:
        self.losses = list(parts)
        self._with_data = [part for part in self.losses if part.n_samples is not None]
        named = [part for part in self.losses if part.n_parameters is not None]
        for other in named[1:]:
            _check_same_parameters(named[0], other)
        self._leading = (self._with_data or named or self.losses)[0]
        self.names = self._leading.names
        self.n_parameters = self._leading.n_parameters
        for name in _OF_DATA:
            setattr(self, name, getattr(self._leading, name))
        budgets = [part.memory_budget for part in self.losses if part.memory_budget is not None]
        self.memory_budget = min(budgets, default=None)
        self.kinks = sorted({kink for part in self.losses for kink in part.kinks})
        self._labels: dict[str, Any] = {}
        self._rounds = next((part._rounds for part in self.losses if part._rounds is not None), None)

    def of(self, parts: Sequence[LossFunction]) -> Self:
        """Return the same combination of other losses."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what it is

    @property
    def data_term(self) -> DataLoss | None:
        """The first loss of a network."""
        return self._leading.data_term

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ as the first term with data does."""
        return self._leading.leaves(theta)

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether each term keeps its graphs, and those of several data sets fit in the smallest budget together."""
        if not all(part.keeps_graphs(dtype, order=order) for part in self.losses):
            return False
        sizes = [
            part.kept_bytes(dtype, order=order) for part in self._with_data if isinstance(part, DataLoss)
        ]
        return len(sizes) < 2 or self.memory_budget is None or sum(sizes) <= self.memory_budget

    @property
    def has_exact_products(self) -> bool:
        """Whether those of all terms are."""
        return all(part.has_exact_products for part in self.losses)

    @property
    def functions(self) -> list[str]:
        """The subclasses of ``torch.autograd.Function`` that were seen in the graphs of the terms."""
        return sorted({name for part in self.losses for name in part.functions})

    # ------------------------------------------------------------------ parts of the data

    def check_rows(self, what: str) -> None:
        """Refuse `what` unless there is one data set."""
        if len({id(part.data_term.data.dataset) for part in self._with_data if part.data_term}) > 1:
            sizes = ", ".join(str(part.n_samples) for part in self._with_data)
            raise InvalidInputError(
                f"{what} needs a loss with one data set; this one is made of {len(self._with_data)}, of {sizes} "
                "samples. Take rows of each by its own subset() or minibatch(), and put them together again."
            )
        self._leading.check_rows(what)

    def subset(self, rows: Sequence[int]) -> Self:
        """Return the combination with some samples of the data, by their numbers, and all else as it is."""
        self.check_rows("subset()")
        return self._with_rows({id(part): part.subset(rows) for part in self._with_data})

    def minibatch(self, rows: Tensor) -> Self:
        """Return it with a mini-batch of the data, by numbers of shape (b,), int64, and all else as it is."""
        self.check_rows("minibatch()")
        return self._with_rows({id(part): part.minibatch(rows) for part in self._with_data})

    def on_few_samples(self, n: int) -> Self:
        """Return the combination with each of its terms on at most n samples."""
        return self.of([part.on_few_samples(n) for part in self.losses])

    def _with_rows(self, new: dict[int, LossFunction]) -> Self:
        made = self.of([new.get(id(part), part) for part in self.losses])
        made._labels = dict(self._labels)
        return made

    # ------------------------------------------------------------------ values

    def measure(self, theta: Tensor) -> dict[str, float]:
        """Return the metrics of the first term with data."""
        return self._leading.measure(theta)


def _check_same_parameters(one: LossFunction, other: LossFunction) -> None:
    """Refuse to add losses that aren't functions of the same θ."""
    if one.n_parameters != other.n_parameters:
        raise InvalidInputError(
            f"Expected losses of the same θ, got {one.n_parameters} and {other.n_parameters} parameters. Add losses "
            "of one network, or of copies of it."
        )
    shapes = [
        {name: tuple(leaf.shape) for name, leaf in zip(loss.names, leaves, strict=True)}
        for loss in (one, other)
        for leaves in [loss.leaves(torch.empty(one.n_parameters or 0, device="meta"))]
    ]
    if list(shapes[0].items()) != list(shapes[1].items()):
        differing = [name for name in (*shapes[0], *shapes[1]) if shapes[0].get(name) != shapes[1].get(name)]
        raise InvalidInputError(
            f"Expected losses of the same parameters, in the same order, got nets that differ in "
            f"{', '.join(differing[:4]) or 'the order'}. Add losses of one network, or of copies of it."
        )
    if one.device != other.device:
        raise InvalidInputError(
            f"Expected losses of nets on one device, got {one.device} and {other.device}. Call net.to(device) first."
        )
