"""Euler's method for the central flow, with steps that catch up with the edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.flows import CentralFlow, Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.step_size import Proposal, StepSize


@dataclass(frozen=True)
class SubSteps(StepSize):
    """A fixed part of the optimiser's step, which a schedule may change."""

    def propose(self, point: Point, t: float, step: int, state: Any, *, fresh: bool = False) -> Proposal:
        """Propose the time of a step in the middle of this one, over the flow's `substeps`."""
        flow = central_flow(point)
        rule, s = flow.optimizer, flow.state(point.z)
        eta = rule.lr.at(rule.step(s) + 0.5 / flow.substeps) if rule.flow_time else 1.0
        return Proposal(eta / flow.substeps)


@dataclass(frozen=True)
class CentralEuler(Integrator):
    """The central flow by the scheme of Cohen et al. 2024, arXiv:2410.24206: several Euler steps to an optimiser's.

        z ← z + dt (f(z) + D[X]),     0 ⪯ X ⟂ R + dt (α + β[X]) ⪰ 0,

    with the slack R of all directions whose eigenvalue of P⁻¹H is above `threshold`. What earlier steps left above the
    edge is taken back by the next one, so nothing has to be located. Of first order. Chosen by ``scheme="euler"`` of
    the flow, whose options `substeps` and `threshold` are.
    """

    name: ClassVar[str] = "central-euler"
    order: ClassVar[int] = 1
    only_for: ClassVar[str | None] = "central"
    keep_graph: ClassVar[bool] = True

    @property
    def step_rule(self) -> SubSteps:
        """Every step is a substep."""
        return SubSteps()

    @property
    def rejects_loss_increase(self) -> bool:
        """No: the scheme takes every step once."""
        return False

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take z + h f(z), as long in steps of the optimiser as h is in time, whatever the learning rate's course."""
        flow = central_flow(point)
        rule, s = flow.optimizer, flow.state(point.z)
        if rule.clock:
            h = rule.duration(s) * (rule.step_after(s, h) - rule.step(s))
        return StepResult(point.z + h * point.velocity)


def central_flow(point: Point) -> CentralFlow:
    """Return the flow of a point, which is a central one."""
    flow = point.field.flow
    assert isinstance(flow, CentralFlow)
    return flow
