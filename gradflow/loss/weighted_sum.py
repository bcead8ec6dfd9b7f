"""Sums and multiples of losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError
from gradflow.loss.function import Evaluation, LossFunction
from gradflow.loss.graphs import accumulate
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative
from gradflow.loss.network import NetworkLoss

# What a sum has from its first term with data.
_OF_DATA = ("n_outputs", "n_samples", "classifies", "device", "dtype", "stiff_dim")


class WeightedSum(LossFunction):
    """L(θ) = Σ wᵢ Lᵢ(θ); made by ``a + b``, ``2.0 * a`` and the like.

    All that is linear is the sum of what the terms give: value, gradient, products with the Hessian and third
    derivatives. Accuracy, ``n_samples``, ``n_outputs``, ``stiff_dim`` and the net's weights are those of the first
    term that has data. Mini-batches take rows of the one term that has data, and all of the others.

    Parameters
    ----------
    parts : iterable of (float, LossFunction)
        Weights wᵢ, any finite numbers, and losses; sums among them are taken apart.
    """

    def __init__(self, parts: Iterable[tuple[float, LossFunction]]) -> None:
        self.parts: list[tuple[float, LossFunction]] = []
        for weight, loss in parts:
            check_number("the weight of a loss", weight)
            inner = loss.parts if isinstance(loss, WeightedSum) else [(1.0, loss)]
            self.parts += [(float(weight) * w, part) for w, part in inner]
        self._with_data = [part for _, part in self.parts if part.n_samples is not None]
        named = [part for _, part in self.parts if part.n_parameters is not None]
        for other in named[1:]:
            _check_same_parameters(named[0], other)
        self._leading = (self._with_data or named or [part for _, part in self.parts])[0]
        self.names = self._leading.names
        self.n_parameters = self._leading.n_parameters
        for name in _OF_DATA:
            setattr(self, name, getattr(self._leading, name))
        budgets = [part.memory_budget for _, part in self.parts if part.memory_budget is not None]
        self.memory_budget = min(budgets, default=None)
        self.kinks = sorted({kink for _, part in self.parts for kink in part.kinks})
        self._labels: dict[str, Any] = {}
        self._rounds = next((part._rounds for _, part in self.parts if part._rounds is not None), None)

    # ------------------------------------------------------------------ what it is

    @property
    def data_term(self) -> NetworkLoss | None:
        """The first loss of a network."""
        return self._leading.data_term

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ as the first term with data does."""
        return self._leading.leaves(theta)

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether each term keeps its graphs, and those of several data sets fit in the smallest budget together."""
        if not all(part.keeps_graphs(dtype, order=order) for _, part in self.parts):
            return False
        sizes = [
            part.kept_bytes(dtype, order=order) for part in self._with_data if isinstance(part, NetworkLoss)
        ]
        return len(sizes) < 2 or self.memory_budget is None or sum(sizes) <= self.memory_budget

    def describe(self) -> dict[str, Any]:
        """Describe the first term with data, and name all terms with their weights."""
        terms = [{"weight": weight} | part.describe() for weight, part in self.parts]
        return self._leading.describe() | {"terms": terms} | self._labels

    def fingerprint(self) -> str:
        """Hash what the terms are of."""
        return " + ".join(f"{weight!r} × ({part.fingerprint()})" for weight, part in self.parts)

    # ------------------------------------------------------------------ parts of the data

    def check_rows(self, what: str) -> None:
        """Refuse `what` unless one term has data."""
        if len(self._with_data) > 1:
            sizes = ", ".join(str(part.n_samples) for part in self._with_data)
            raise InvalidInputError(
                f"{what} needs a loss with one data set; this one is a sum over {len(self._with_data)}, of {sizes} "
                "samples. Take rows of each by its own subset() or minibatch(), and add them up."
            )
        self._leading.check_rows(what)

    def subset(self, rows: Sequence[int]) -> LossFunction:
        """Return the sum with some samples of the data, by their numbers, and all else as it is."""
        self.check_rows("subset()")
        return self._with_leading(self._leading.subset(rows))

    def minibatch(self, rows: Tensor) -> LossFunction:
        """Return the sum with a mini-batch of the data, by numbers of shape (b,), int64, and all else as it is."""
        self.check_rows("minibatch()")
        return self._with_leading(self._leading.minibatch(rows))

    def on_few_samples(self, n: int) -> LossFunction:
        """Return the sum with each of its terms on at most n samples."""
        return WeightedSum((weight, part.on_few_samples(n)) for weight, part in self.parts)

    def _with_leading(self, new: LossFunction) -> LossFunction:
        changed = [(weight, new if part is self._leading else part) for weight, part in self.parts]
        return WeightedSum(changed).label(**self._labels)

    @property
    def functions(self) -> list[str]:
        """The subclasses of ``torch.autograd.Function`` that were seen in the graphs of the terms."""
        return sorted({name for _, part in self.parts for name in part.functions})

    # ------------------------------------------------------------------ values and derivatives

    def _value(self, theta: Tensor) -> Tensor:
        return _total((weight, part._value(theta)) for weight, part in self.parts)

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        found = [
            (weight, part._evaluated(theta, accuracy=accuracy and part is self._leading))
            for weight, part in self.parts
        ]
        return Evaluation(
            _total((weight, each.value) for weight, each in found),
            _total((weight, each.gradient) for weight, each in found),
            _first_accuracy(each.accuracy for _, each in found),
        )

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        def linearized(part: LossFunction) -> Linearization:
            keeps = keep or (part.n_samples is None and part.keeps_graphs(theta.dtype))
            asked = accuracy and part is self._leading
            return part._linearized(theta, count=None, count_third=None, accuracy=asked, keep=keeps)

        parts = [(weight, linearized(part)) for weight, part in self.parts]
        return _SumLinearization(self, parts, count, count_third)

    def _evaluate(self, theta: Tensor) -> tuple[float, float]:
        found = [(weight, part, part._evaluate(theta)) for weight, part in self.parts]
        accuracy = next(rate for _, part, (_, rate) in found if part is self._leading)
        return sum(weight * value for weight, _, (value, _) in found), accuracy


class _SumLinearization(Linearization):
    """The linearizations of all terms, with their weights."""

    def __init__(
        self,
        source: WeightedSum,
        parts: Sequence[tuple[float, Linearization]],
        count: Count,
        count_third: Count,
    ) -> None:
        super().__init__(source, parts[0][1].theta, count, count_third)
        self._parts = parts
        self.value = _total((weight, part.value) for weight, part in parts)
        self.gradient = _total((weight, part.gradient) for weight, part in parts)
        self.accuracy = _first_accuracy(part.accuracy for _, part in parts)

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the Hessian."""
        return _total((weight, part.multiply(rows)) for weight, part in self._parts)

    def _third(self, direction: Tensor) -> ThirdDerivative:
        return _SumThird(self, [(weight, part._third(direction)) for weight, part in self._parts])


class _SumThird(ThirdDerivative):
    """The third derivatives of all terms along one direction, with their weights."""

    def __init__(self, linearization: Linearization, parts: Sequence[tuple[float, ThirdDerivative]]) -> None:
        super().__init__(linearization)
        self._parts = parts

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the derivative of the Hessian."""
        return _total((weight, part.multiply(rows)) for weight, part in self._parts)


def _total(weighted: Iterable[tuple[float, Tensor]]) -> Tensor:
    total = None
    for weight, value in weighted:
        total = accumulate(total, weight * value)
    assert total is not None
    return total


def _first_accuracy(accuracies: Iterable[Tensor | None]) -> Tensor | None:
    return next((accuracy for accuracy in accuracies if accuracy is not None), None)


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
