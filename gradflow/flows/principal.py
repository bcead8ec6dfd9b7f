"""The principal flow of gradient descent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.flows.base import Flow
from gradflow.spectrum import Eigenpairs
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.point import Point

#: The least |1 − ηλ| of a velocity: where ηλ = 1 a component decays to this part of itself in a step, not to 0.
LEAST_FACTOR = 1e-3
#: Residual of the eigenpairs, with which the velocity is smooth enough for error control to a relative 1e-7.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PrincipalFlow(Flow):
    """The flow that gradient descent with learning rate η follows exactly on a quadratic, up to ηλ₁ = 2.

    The real part of the principal flow of Rosca, Wu, Qin & Dherin (2023, arXiv:2302.01952), with the eigenpairs
    (λᵢ, uᵢ) of the Hessian:

        dθ/dt = Σᵢ c(ηλᵢ) (uᵢᵀg) uᵢ,        c(x) = log|1 − x| / x,        g = ∇L(θ).

    A step of gradient descent multiplies a component by 1 − ηλ, and so does this flow in the time η, up to the sign:
    for ηλ > 1 gradient descent alternates, and the flow follows the size. The sum is taken over the k largest
    eigenvalues; on the rest, where ηλ is small, c(x) is replaced by its series −(1 + x/2), which is the modified flow.
    Where ηλ → 1 the rate −log|1 − ηλ|/η is infinite, so |1 − ηλ| counts as at least 1e-3. Beyond ηλ₁ = 2 the flow
    grows without bound where gradient descent stays near the edge of stability: a start there is refused, and a run
    that comes there ends.

    A velocity costs a gradient, a product, and those of an eigensolve of k pairs that starts from the last one. It
    has no Jacobian, so explicit methods follow it.

    Parameters
    ----------
    lr : float
        Learning rate η of the gradient descent that it describes.
    n_directions : int, default 10
        k; P where that is less.
    """

    lr: float
    n_directions: int = 10

    name: ClassVar[str] = "principal"
    variables: ClassVar[Mapping[str, Variable]] = {
        "edge_residual": Variable(long_name="lr times the sharpness, minus 2")
    }

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_count("n_directions", self.n_directions, least=1)

    def velocity(self, point: Point) -> Tensor:
        """Return −(I + ½ηH) g + Σᵢ (c(ηλᵢ) + 1 + ½ηλᵢ) (uᵢᵀg) uᵢ.

        An error of an eigenpair enters by its second term alone, which is small where ηλᵢ is.
        """
        η, H, g = self.lr, point.linearization, point.linearization.gradient
        pairs = self._pairs(point)
        U, x = pairs.vectors, η * pairs.values
        beyond = (coefficients(x) + 1 + x / 2).to(g)
        return U @ (beyond * (U.T @ g)) - (g + η / 2 * (H @ g))

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Return bounds of the k largest rates, without eigenvectors: −log|1 − ηλᵢ|/η, and of the rest (λ + ½ηλ²).

        What the change of the eigenvectors adds is left out.
        """
        pairs = self._pairs(point)
        λ = pairs.values
        rates = -coefficients(self.lr * λ) * λ
        if len(pairs) < len(point.theta):
            rates = rates.clamp(min=float(λ[-1] + self.lr / 2 * λ[-1] ** 2))
        order = rates.argsort(descending=True)[:k]
        return Eigenpairs(
            rates[order],
            pairs.vectors[:, :0],
            pairs.residuals[order],
            0,
            pairs.converged[order],
            max(float(rates.abs().max()), pairs.scale),
        )

    def refusal(self, point: Point) -> str | None:
        """Refuse ηλ₁ ≥ 2."""
        x = self.lr * float(self._pairs(point).values[0])
        if x < 2:
            return None
        return (
            f"lr·λ₁ is {x:.4g} here, and the principal flow describes gradient descent below 2 alone. Take a smaller "
            "lr, end the run before, or use flow='central' or flow='edge', which are made for what comes there"
        )

    def measure(self, point: Point) -> dict[str, Any]:
        """Return ηλ₁ − 2."""
        return {"edge_residual": self.lr * float(point.top(1, tol=1e-3).values[0]) - 2}

    def _pairs(self, point: Point) -> Eigenpairs:
        """Return the top eigenpairs that the velocity is made of."""
        return point.top(min(self.n_directions, len(point.theta)), tol=_TOLERANCE)


def coefficients(x: Tensor) -> Tensor:
    """Return c(x) = log|1 − x|/x, with |1 − x| at least :data:`LEAST_FACTOR`; −1 at x = 0."""
    factor = torch.where(x < 0.5, torch.log1p(-x.clamp(max=0.5)), (1 - x).abs().clamp(min=LEAST_FACTOR).log())
    return torch.where(x.abs() < math.sqrt(torch.finfo(x.dtype).eps), -(1 + x / 2), factor / x)
