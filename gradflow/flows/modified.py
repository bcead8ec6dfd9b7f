"""The modified flow of gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from gradflow.checks import check_number
from gradflow.flows.base import Flow
from gradflow.spectrum import SymmetricOperator

if TYPE_CHECKING:
    from gradflow.flows.point import Point


@dataclass(frozen=True)
class ModifiedFlow(Flow):
    """The flow that gradient descent with learning rate η follows to second order in η.

    By backward error analysis (Barrett & Dherin 2021, arXiv:2009.11162) it is gradient flow of the loss
    L + (η/4)‖∇L‖²:

        dθ/dt = −(I + ½ηH) ∇L(θ),        ∂f/∂θ = −H − ½η (H² + ∇³L[∇L]).

    After k steps gradient descent is O(η²) from it at t = kη, and O(η) from gradient flow. The expansion needs
    ηλ₁ < 1: it says nothing of the edge of stability. A velocity costs a gradient and a product with the Hessian; a
    product with the Jacobian costs two with the Hessian and one with its derivative.

    Parameters
    ----------
    lr : float
        Learning rate η of the gradient descent that it describes.
    """

    lr: float

    name: ClassVar[str] = "modified"
    symmetric: ClassVar[bool] = True
    third_derivatives: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)

    def velocity(self, point: Point) -> Tensor:
        """Return −(I + ½ηH) ∇L(θ)."""
        H, g = point.linearization, point.linearization.gradient
        return -(g + self.lr / 2 * (H @ g))

    def jacobian(self, point: Point) -> SymmetricOperator:
        """Return −H − ½η (H² + ∇³L[∇L])."""
        H, η = point.linearization, self.lr
        T = H.third(H.gradient)

        def multiply(v: Tensor) -> Tensor:
            Hv = H @ v
            return -(Hv + η / 2 * (H @ Hv + T @ v))

        return point.operator(multiply)
