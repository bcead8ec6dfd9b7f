"""Steps of the central flow below the edge of stability, where it is gradient flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradflow.flows import GradientFlow, Point
from gradflow.integrators.base import StepResult
from gradflow.integrators.exprb import Exprb43
from gradflow.integrators.step_size import ErrorControl
from gradflow.integrators.step_size.error_control import tolerance

if TYPE_CHECKING:
    from gradflow.integrators.central.projected import Attempt

#: Attempts to find where the edge is reached, and how near it is met, over `edge_tol`.
_LOCATIONS, _NEAR = 30, 0.1


def gradient_flow_step(attempt: Attempt, h: float) -> StepResult:
    """Take a step of ``exprb43``, which ends where the edge is reached.

    Parameters
    ----------
    attempt : Attempt
    h : float
        Its size at most.
    """
    tolerances, point = attempt.method.tolerances, attempt.point
    method = Exprb43(rtol=tolerances.rtol, atol=tolerances.atol)
    step = method.step(_of_gradient_flow(point), h, attempt.state)
    assert step.interpolant is not None
    assert step.error is not None
    allowed = tolerance(tolerances, point, step.z)
    ratio = math.sqrt(step.error / allowed)  # of O(h²), as the control expects
    taken = h if step.h is None else step.h
    if isinstance(attempt.method.step_rule, ErrorControl) and not ratio <= 1:  # it will be rejected
        return StepResult(step.z, error=ratio * allowed, state=attempt.state, h=taken)
    path = step.interpolant
    s, end = _until_edge(attempt, path, step.z)
    return StepResult(
        end.z,
        lambda part: path(s * part),
        error=ratio * tolerance(tolerances, point, end.z),
        state=step.state,
        h=s * taken,
        end=end,
        events=attempt.happened(end),
    )


def _of_gradient_flow(point: Point) -> Point:
    """Return a point of the central flow as one of gradient flow, with what is known there."""

    def make() -> Point:
        linearization = point.linearization
        made = point.field.along(GradientFlow()).at(point.z, point.evaluation)
        made.__dict__["linearization"] = linearization
        return made

    return point.work("of gradient flow", make)


def _until_edge(attempt: Attempt, path: Callable[[float], Tensor], z: Tensor) -> tuple[float, Point]:
    """Return the part of a step after which λ₁ reaches the edge, or 1, and the point there."""
    flow, field, tol = attempt.flow, attempt.point.field, attempt.flow.edge_tol
    near = max(_NEAR * tol, 50 * torch.finfo(z.dtype).eps)

    def excess(end: Point) -> float:
        return float(flow.tracked(end, 2 + tol)[0][0]) - 2

    s, end = 1.0, field.at(z)
    g = excess(end)
    if g <= tol:
        return s, end
    a, ga, b, gb, side = 0.0, min(float(attempt.edge.values[0]) - 2, -tol), 1.0, g, 0
    for _ in range(_LOCATIONS):  # the Illinois variant of regula falsi, for g = 0
        s = b - gb * (b - a) / (gb - ga)
        end = field.at(path(s))
        g = excess(end)
        if abs(g) <= near:
            break
        if g > 0:
            ga = ga / 2 if side > 0 else ga
            b, gb, side = s, g, 1
        else:
            gb = gb / 2 if side < 0 else gb
            a, ga, side = s, g, -1
    return s, end
