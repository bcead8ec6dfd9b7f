"""Products with the Hessian by differences of gradients, where an operation has no second derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from gradflow.errors import InexactDerivativeError, InvalidInputError
from gradflow.loss.accuracy import Tally
from gradflow.loss.graphs import value_and_gradient
from gradflow.loss.linearization import Count, Linearization, ThirdDerivative

if TYPE_CHECKING:
    from gradflow.loss.terms import TermLoss

#: How products with the Hessian are computed.
Products = Literal["exact", "difference"]

PRODUCTS = ("exact", "difference")


def check_products(hvp: object) -> None:
    """Refuse what says no way to compute products."""
    if hvp not in PRODUCTS:
        raise InvalidInputError(f'Expected hvp as "exact" or "difference", got {hvp!r}.')


class DifferenceLinearization(Linearization):
    """H·v = (∇L(θ + εv) − ∇L(θ − εv)) / 2ε, two gradients a product.

    θ moves by a distance of eps^⅓ to either side, where rounding, eps/ε, and what the curvature changes by, ε², are of
    a size (Nocedal & Wright, Numerical Optimization, 2nd ed., §8.1). On the digits and on chebyshev-3 products were off
    by 2e-6 to 3e-4 of their size in float32, by 1e-12 to 1e-9 in float64; :func:`relative_error` estimates it.

    Parameters
    ----------
    loss : TermLoss
    theta : Tensor, shape (P,)
    count, count_third : callable or None
    tally : Tally or None
        Counts what the network classifies right, for the accuracy.
    """

    def __init__(
        self, loss: TermLoss, theta: Tensor, count: Count, count_third: Count, tally: Tally | None
    ) -> None:
        super().__init__(loss, theta.detach().clone(), count, count_third)
        self._loss = loss
        self.value, self.gradient = value_and_gradient(loss, self.theta, tally)
        self.accuracy = None if tally is None else tally.accuracy
        self._distance = torch.finfo(theta.dtype).eps ** (1 / 3)

    def multiply(self, rows: Tensor, stretch: float = 1.0) -> Tensor:
        """Multiply vectors in rows, shape (k, P), by the Hessian; over a distance `stretch` times as long."""
        products = torch.zeros_like(rows)
        for product, v in zip(products, rows, strict=True):
            norm = float(v.norm())
            if norm == 0:
                continue
            ε = stretch * self._distance / norm
            ahead, behind = self.theta + ε * v, self.theta - ε * v
            difference = value_and_gradient(self._loss, ahead)[1] - value_and_gradient(self._loss, behind)[1]
            product.copy_(difference / (2 * ε))
        return products

    def _third(self, direction: Tensor) -> ThirdDerivative:
        raise InexactDerivativeError(
            'There are no third derivatives of a loss with hvp="difference". Take a flow without them.'
        )


def relative_error(loss: TermLoss, theta: Tensor) -> float:
    """Estimate the error of products by differences, relative to their size, along a random direction.

    A distance twice as long has four times the error that falls with ε², and half of the rounding errors; the
    difference is no less than either but for chance.
    """
    linearization = DifferenceLinearization(loss, theta, None, None, None)
    generator = torch.Generator("cpu").manual_seed(0)
    v = torch.randn(1, len(theta), generator=generator, dtype=torch.float64, device="cpu").to(theta)
    short, long = linearization.multiply(v), linearization.multiply(v, 2.0)
    size = float(short.norm())
    return float((short - long).norm()) / size if size else 0.0
