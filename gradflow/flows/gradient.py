"""Gradient flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from gradflow.flows.base import Flow
from gradflow.spectrum import Eigenpairs, SymmetricOperator, negated

if TYPE_CHECKING:
    from gradflow.flows.point import Point


@dataclass(frozen=True)
class GradientFlow(Flow):
    """Gradient flow dθ/dt = −∇L(θ), along which the loss can't rise.

    Its Jacobian is minus the Hessian, so its largest rate is the sharpness λ₁.
    """

    name: ClassVar[str] = "gradient"
    symmetric: ClassVar[bool] = True
    raises_loss: ClassVar[bool] = False

    def velocity(self, point: Point) -> Tensor:
        """Return −∇L(θ)."""
        return -point.gradient

    def jacobian(self, point: Point) -> SymmetricOperator:
        """Return −∇²L(θ)."""
        return negated(point.linearization)

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Return the top eigenpairs of the Hessian."""
        return point.top(k, tol=tol)
