"""Gradient descent with a learning rate below the edge of stability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.checks import check_count, check_number
from gradflow.flows import Point
from gradflow.flows.base import Needs
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.euler import euler_step
from gradflow.integrators.step_size import BulkEigenvalueCap


@dataclass(frozen=True)
class AdaptiveGD(Integrator):
    """Gradient descent with η = min(lr, 1/|λ₁|), λ₁ measured at every step.

    Lowell & Kastner (2024). A discrete method: every step is a record unless a cadence is given, and it
    doesn't land on times; t = Σ η. At half the stability limit it stays near the flow where gradient descent
    leaves it.

    Parameters
    ----------
    lr : float
        Largest learning rate.
    warmup_iters : int, default 0
        Number of first steps with a smaller `lr`.
    warmup_factor : float, default 1.0
        What `lr` is multiplied by in these.
    eigs_rtol : float, default 1e-2
        Residual ‖Hv − λv‖/max|λ| to which λ₁ is computed.
    """

    lr: float
    warmup_iters: int = 0
    warmup_factor: float = 1.0
    eigs_rtol: float = 1e-2

    name: ClassVar[str] = "adaptive-gd"
    order: ClassVar[int] = 1
    discrete: ClassVar[bool] = True
    keep_graph: ClassVar[bool] = True
    needs: ClassVar[Needs | None] = "symmetric jacobian"

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_count("warmup_iters", self.warmup_iters)
        check_number("warmup_factor", self.warmup_factor, above=0)
        check_number("eigs_rtol", self.eigs_rtol, above=0)

    @property
    def step_rule(self) -> BulkEigenvalueCap:
        """Steps of 1/|λ₁|: nothing is integrated exactly, so that λ₁ is the first eigenvalue outside."""
        return BulkEigenvalueCap(0, self.lr, self.warmup_iters, self.warmup_factor, self.eigs_rtol)

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take θ − h ∇L(θ)."""
        return StepResult(euler_step(point, h))
