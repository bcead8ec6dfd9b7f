"""The classical Runge–Kutta method with steps tied to the sharpness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gradflow.integrators.runge_kutta import FixedTableau
from gradflow.integrators.tableau import Tableau


@dataclass(frozen=True)
class RK4(FixedTableau):
    """The classical fourth-order Runge–Kutta method with h = min(alpha/λ₁, max_step).

    Kutta (1901); Hairer, Nørsett & Wanner (1993), table II.1.2. The flow of Cohen et al. (2021, appendix on gradient
    flow): four gradients a step, and now and then a few Hessian–vector products for λ₁. Stable for alpha < 2.785. A
    step that raises the loss, which gradient flow can't, is taken again from a fresh λ₁ and with half the size.
    """

    name: ClassVar[str] = "rk4"
    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = Tableau(
        A=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    )

    def increment(self, h: float, K: Sequence[Tensor]) -> Tensor:
        """Return h/6 (k₁ + 2 k₂ + 2 k₃ + k₄)."""
        k1, k2, k3, k4 = K
        return h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
