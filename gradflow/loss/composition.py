"""A smooth function of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from gradflow.errors import CriterionError, InexactDerivativeError, InvalidTypeError
from gradflow.loss.check import examine
from gradflow.loss.combination import Combination
from gradflow.loss.function import Evaluation, LossFunction, as_loss
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative

#: Of as many scalars as there are losses.
Smooth = Callable[..., Tensor]


def compose(function: Smooth, *losses: LossFunction | Callable[[Tensor], Tensor]) -> LossFunction:
    """Make a loss of a smooth function of losses: the root of a mean, a ratio, a logarithm.

    The data are processed in chunks as the losses process them; value, gradient, products with the Hessian and third
    derivatives follow by the chain rule and are exact.

    Parameters
    ----------
    function : callable
        ``function(a, b, …) -> Tensor``, a scalar, of one scalar for each loss, written in torch.
    *losses : LossFunction or callable
        Of the same θ.

    Returns
    -------
    LossFunction

    Raises
    ------
    CriterionError
        If the function's value is no scalar, or doesn't depend on the losses through torch.
    InexactDerivativeError
        If the derivatives aren't those of the function: it detaches, or leaves torch.

    Examples
    --------
    The root of the mean squared error:

    >>> from torch import nn
    >>> data = torch.utils.data.TensorDataset(torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1))
    >>> mse = LossFunction(data, nn.MSELoss(), nn.Linear(1, 1, bias=False), batch_size=1)
    >>> rmse = compose(torch.sqrt, mse)
    >>> rmse(torch.tensor([2.0])), rmse.gradient(torch.tensor([2.0]))[1]
    (tensor(3.1623), tensor([1.5811]))
    """
    if not callable(function):
        raise InvalidTypeError(f"Expected a function of losses first, got {type(function).__name__}.")
    if not losses:
        raise InvalidTypeError("Expected at least one loss after the function: compose(torch.sqrt, loss).")
    made = Composition(function, [as_loss(loss) for loss in losses])
    if made.data_term is not None:  # a callable has no θ to look at
        for finding in examine(made, made.parameters(), "full"):
            if finding.name in {"loss", "gradient"} and not finding.passed:
                raise InexactDerivativeError(finding.message)
    return made


class Composition(Combination):
    """L(θ) = g(L₁(θ), …, Lₙ(θ)); made by :func:`compose`.

    Parameters
    ----------
    function : callable
        g.
    losses : sequence of LossFunction
    """

    def __init__(self, function: Smooth, losses: Sequence[LossFunction]) -> None:
        super().__init__(losses)
        self._function = function

    def of(self, parts: Sequence[LossFunction]) -> Self:
        """Return the same function of other losses."""
        return type(self)(self._function, parts)

    def describe(self) -> dict[str, Any]:
        """Describe the first term with data, and name the function and all terms."""
        terms = [part.describe() for part in self.losses]
        name = getattr(self._function, "__name__", type(self._function).__name__)
        return self._leading.describe() | {"function": name, "terms": terms} | self._labels

    def fingerprint(self) -> str:
        """Hash what the terms are of."""
        return f"a function of {', '.join(f'({part.fingerprint()})' for part in self.losses)}"

    def at(self, values: Tensor) -> Tensor:
        """Return g at values, shape (n,)."""
        found = self._function(*values)
        if not isinstance(found, Tensor) or found.numel() != 1:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise CriterionError(f"The function of losses must return a scalar torch.Tensor, got {got}.")
        return found.reshape(())

    def derivatives(self, values: Tensor, order: int) -> list[Tensor]:
        """Return the derivatives of g at values, shape (n,), up to an order: of shapes (n,), (n, n), (n, n, n)."""
        with torch.enable_grad():
            if not self.at(values.detach().clone().requires_grad_()).requires_grad:
                raise CriterionError(
                    "The function of losses doesn't depend on them through differentiable torch functions. Don't leave "
                    "torch (float(), item(), numpy)."
                )
        found, function = [], self.at
        for _ in range(order):
            function = torch.func.jacrev(function)
            found.append(function(values))
        return found

    # ------------------------------------------------------------------ values and derivatives

    def _value(self, theta: Tensor) -> Tensor:
        return self.at(torch.stack([part._value(theta) for part in self.losses]))

    def _evaluated(self, theta: Tensor, *, accuracy: bool) -> Evaluation:
        found = [part._evaluated(theta, accuracy=accuracy and part is self._leading) for part in self.losses]
        values = torch.stack([each.value for each in found])
        (slopes,) = self.derivatives(values, 1)
        gradient = slopes @ torch.stack([each.gradient for each in found])
        rate = next((each.accuracy for each in found if each.accuracy is not None), None)
        return Evaluation(self.at(values), gradient, rate)

    def _linearized(
        self, theta: Tensor, *, count: Count, count_third: Count, accuracy: bool, keep: bool
    ) -> Linearization:
        parts = [
            part._linearized(
                theta,
                count=None,
                count_third=None,
                accuracy=accuracy and part is self._leading,
                keep=keep or (part.n_samples is None and part.keeps_graphs(theta.dtype)),
            )
            for part in self.losses
        ]
        return _ComposedLinearization(self, parts, count, count_third)

    def _evaluate(self, theta: Tensor) -> tuple[float, float]:
        found = [part._evaluate(theta) for part in self.losses]
        values = torch.tensor([value for value, _ in found], dtype=torch.float64)
        return float(self.at(values)), found[self.losses.index(self._leading)][1]


class _ComposedLinearization(Linearization):
    """H = Σ gᵢ Hᵢ + Σ gᵢⱼ ∇Lᵢ ∇Lⱼᵀ, from the linearizations of all terms."""

    def __init__(
        self, source: Composition, parts: Sequence[Linearization], count: Count, count_third: Count
    ) -> None:
        super().__init__(source, parts[0].theta, count, count_third)
        self.composition, self.parts = source, parts
        self.values = torch.stack([part.value for part in parts])
        self.gradients = torch.stack([part.gradient for part in parts])
        self.slopes, self.curvatures = source.derivatives(self.values, 2)
        self.value = source.at(self.values)
        self.gradient = self.slopes @ self.gradients
        self.accuracy = next((part.accuracy for part in parts if part.accuracy is not None), None)

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the Hessian."""
        product = rows @ self.gradients.T @ self.curvatures @ self.gradients
        for slope, part in zip(self.slopes, self.parts, strict=True):
            product = product + slope * part.multiply(rows)
        return product

    def _third(self, direction: Tensor) -> ThirdDerivative:
        return _ComposedThird(self, direction, [part._third(direction) for part in self.parts])


class _ComposedThird(ThirdDerivative):
    """The derivative of H along u: each factor of each term of H changes by its own."""

    def __init__(
        self, hessian: _ComposedLinearization, direction: Tensor, parts: Sequence[ThirdDerivative]
    ) -> None:
        super().__init__(hessian)
        self._hessian, self._parts = hessian, parts
        _, _, self._thirds = hessian.composition.derivatives(hessian.values, 3)
        # Each Lᵢ changes by ∇Lᵢ·u, and its gradient by Hᵢu.
        self._changes = hessian.gradients @ direction
        self._turns = torch.cat([part.multiply(direction[None]) for part in hessian.parts])

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the derivative of the Hessian."""
        of = self._hessian
        G, dG = of.gradients, self._turns
        product = rows @ G.T @ (self._thirds @ self._changes) @ G
        product = product + rows @ dG.T @ of.curvatures @ G + rows @ G.T @ of.curvatures @ dG
        steeper = of.curvatures @ self._changes
        for slope, change, part, third in zip(of.slopes, steeper, of.parts, self._parts, strict=True):
            product = product + change * part.multiply(rows) + slope * third.multiply(rows)
        return product
