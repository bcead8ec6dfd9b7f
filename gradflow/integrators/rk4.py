"""The classical Runge–Kutta method with steps tied to the sharpness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError
from gradflow.flows.field import Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.step_size.rules import SharpnessCap


@dataclass(frozen=True)
class RK4(Integrator):
    """The classical fourth-order Runge–Kutta method with h = min(alpha/λ₁, max_step).

    The flow of Cohen et al. (2021, appendix on gradient flow): four gradients a step, and now and then a
    few Hessian–vector products for λ₁. Stable for alpha < 2.785. A step that raises the loss, which the
    flow can't, is taken again from a fresh λ₁ and with half the size.

    Parameters
    ----------
    alpha : float, default 1.0
        Step size times sharpness; at most the stability limit of 2.785.
    max_step : float, default inf
        Largest step in time.
    sharpness_every : float, optional
        Time after which λ₁ is measured again at the latest. Default: whenever t has grown by ten steps.
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    """

    alpha: float = 1.0
    max_step: float = math.inf
    sharpness_every: float | None = None
    loss_rtol: float = 0.0

    name: ClassVar[str] = "rk4"
    order: ClassVar[int] = 4
    stability_limit: ClassVar[float | None] = 2.785

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=0)
        if self.stability_limit is not None and self.alpha > self.stability_limit:
            raise InvalidInputError(
                f"Expected alpha ≤ {self.stability_limit}, the stability limit of the method in terms of h·λ₁, "
                f"got {self.alpha}."
            )
        check_number("max_step", self.max_step, above=0, finite=False)
        check_number("loss_rtol", self.loss_rtol, least=0)
        if self.sharpness_every is not None:
            check_number("sharpness_every", self.sharpness_every, above=0)

    @property
    def step_rule(self) -> SharpnessCap:
        """Steps of alpha/λ₁."""
        return SharpnessCap(self.alpha, self.max_step, self.sharpness_every)

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take one step (Kutta 1901; Hairer, Nørsett & Wanner 1993, table II.1.2)."""
        f, y = point.flow, point.theta
        k1 = -point.gradient
        k2 = f(y + h / 2 * k1)
        k3 = f(y + h / 2 * k2)
        k4 = f(y + h * k3)
        return StepResult(y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
