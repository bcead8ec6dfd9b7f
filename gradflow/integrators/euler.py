"""Gradient descent, which is explicit Euler on the gradient flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.checks import check_number
from gradflow.flows import Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.step_size import FixedStep


@dataclass(frozen=True)
class Euler(Integrator):
    """Gradient descent θ ← θ − lr ∇L(θ), which is Euler's method with h = lr.

    A discrete method: t = k·lr after k steps, every step is a record unless a cadence is given, and the run
    ends at the first step at or after `t_max`. Stable while λ₁ < 2/lr; beyond that it leaves the flow and
    trains at the edge of stability (Cohen et al. 2021). With one chunk of data it equals
    ``torch.optim.SGD`` bit for bit. Along another flow it is Euler's method on that.

    Parameters
    ----------
    lr : float
        Learning rate η, the step in time.
    """

    lr: float

    name: ClassVar[str] = "gd"
    order: ClassVar[int] = 1
    discrete: ClassVar[bool] = True
    threshold_formula: ClassVar[str | None] = "2/η"

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)

    @property
    def step_rule(self) -> FixedStep:
        """Every step is lr."""
        return FixedStep(self.lr)

    @property
    def stability_interval(self) -> float:
        """|1 − hλ| ≤ 1."""
        return 2.0

    @property
    def stability_threshold(self) -> float:
        """2/η."""
        return 2.0 / self.lr

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take z + h f(z)."""
        return StepResult(euler_step(point, h))


def euler_step(point: Point, h: float) -> Tensor:
    """Return z + h f(z), rounded as torch.optim.SGD does."""
    return torch.add(point.z, point.velocity, alpha=h)
