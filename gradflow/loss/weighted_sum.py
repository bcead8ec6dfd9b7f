"""Sums and multiples of losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

from torch import Tensor

from gradflow.checks import check_number
from gradflow.loss.combination import Combination
from gradflow.loss.function import Evaluation, LossFunction
from gradflow.loss.graphs import accumulate
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative


class WeightedSum(Combination):
    """L(θ) = Σ wᵢ Lᵢ(θ); made by ``a + b``, ``2.0 * a`` and the like.

    All that is linear is the sum of what the terms give: value, gradient, products with the Hessian and third
    derivatives.

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
        super().__init__([part for _, part in self.parts])

    def of(self, parts: Sequence[LossFunction]) -> Self:
        """Return the sum of other losses with the same weights."""
        return type(self)(zip((weight for weight, _ in self.parts), parts, strict=True))

    def describe(self) -> dict[str, Any]:
        """Describe the first term with data, and name all terms with their weights."""
        terms = [{"weight": weight} | part.describe() for weight, part in self.parts]
        return self._leading.describe() | {"terms": terms} | self._labels

    def fingerprint(self) -> str:
        """Hash what the terms are of."""
        return " + ".join(f"{weight!r} × ({part.fingerprint()})" for weight, part in self.parts)

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
