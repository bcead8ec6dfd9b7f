"""The central flow by exponential steps that are projected on the edge of stability."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradflow.flows import CentralFlow, Point
from gradflow.flows.central.edge import Constraint, Edge, aligned, to_numpy
from gradflow.flows.central.sdcp import smat, solve, svec
from gradflow.flows.point import all_finite
from gradflow.integrators.base import StepResult
from gradflow.integrators.central.below import gradient_flow_step
from gradflow.integrators.central.euler import central_flow
from gradflow.integrators.central.stiff import StiffPart
from gradflow.integrators.controlled import ErrorControlled
from gradflow.integrators.phi.spaces import Term
from gradflow.integrators.step_size import ErrorControl
from gradflow.integrators.step_size.base import norm
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.status import NumericalFailure, Status

#: Eigenvalues of P⁻¹H that are nearer than this to one another are one cluster.
_CLUSTER = 1e-4
#: Slack within which the edge counts as reached between the stages of a step.
_LOOSE = 1e-3
#: Steps of a projection, and what each must shrink the slack to at least.
_PROJECTIONS, _SHRINKS = 12, 0.7
#: Attempts to end a step where a direction enters or leaves.
_LOCATIONS = 12
#: Least slack that is asked for, over that of `edge_tol`: eigenvalues aren't more exact.
_LEAST_SLACK = 1e-3
#: Machine epsilons of rounding in an eigenvalue of P⁻¹H near 2.
_ROUNDING = 40.0
#: Part of the tolerance that the Krylov error and the way to the edge may each have.
_KRYLOV = 0.1
#: Steps of the optimiser than which no step need be shorter.
_SHORTEST = 1e-8
#: Part of the largest variance that a negative one may have where its direction leaves.
_LEAVES = 1e-4
#: What a step that the Krylov space can't resolve is shortened by.
_SHORTER = 0.8
#: Slack below which a direction is near the edge.
_NEAR = 0.1
#: Part of the gap that the critical eigenvalues would move by in a step, beyond which directions may come and go.
_MOVES = 0.1
#: Steps of the optimiser within which a direction that leaves isn't waited for.
_SOON = 0.1
#: Squared cosine of the angle by which the critical subspace may turn in a step, at least.
_TURN = 0.5


@dataclass(frozen=True)
class Landed:
    """A state on the edge.

    Attributes
    ----------
    point : Point
    basis : Tensor, shape (P, r)
        The critical directions there, turned to be nearest to the former ones.
    quotient : ndarray, shape (r, r)
        UᵀHU.
    below : float
        The largest other eigenvalue of P⁻¹H.
    turn : float
        Smallest squared cosine between the critical subspace and the former one.
    """

    point: Point
    basis: Tensor
    quotient: np.ndarray
    below: float
    turn: float


@dataclass(frozen=True)
class Directions:
    """The directions that a step works with.

    Attributes
    ----------
    constraint : Constraint or None
        None below the edge.
    x : ndarray
        X at the step's start.
    stay : bool
        All of them stay at the edge. Else they may come and go, by a complementarity problem for the whole step, which
        is of first order where they do.
    """

    constraint: Constraint | None
    x: np.ndarray
    stay: bool


@dataclass(frozen=True)
class CentralProjected(ErrorControlled):
    """The central flow with error control: a projected exponential trapezoid, of second order.

    With J = −P⁻¹H at the step's start, velocity F there and F₁ at the first stage w₁:

        w₁ = Π(z + h φ₁(hJ) F),     r = F₁ − F − J (w₁ − z),
        z ← Π(z + h φ₁(hJ) F + h φ₂(hJ) r),

    Π going back to the edge along the drifts of Σ until the critical eigenvalues of P⁻¹H are 2. The error estimate is
    the last term. A step ends where an eigenvalue reaches the edge or a direction's variance
    vanishes; both are recorded as events. Below the edge gradient descent's central flow is gradient flow, which
    ``exprb43`` integrates.

    Options are those of :class:`gradflow.integrators.controlled.ErrorControlled`.
    """

    name: ClassVar[str] = "central-projected"
    order: ClassVar[int] = 2
    error_order: ClassVar[int | None] = 2
    only_for: ClassVar[str | None] = "central"
    keep_graph: ClassVar[bool] = True
    events: ClassVar[dict[str, str]] = {
        "enter": "an eigenvalue reaches the edge of stability",
        "leave": "a direction leaves the edge of stability",
    }

    @property
    def rejects_loss_increase(self) -> bool:
        """No: the flows of RMSProp may raise it."""
        return False

    def first_size(self, point: Point, state: Any) -> float:
        """Guess a step of the optimiser."""
        flow = central_flow(point)
        return flow.optimizer.duration(flow.state(point.z))

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take a step of at most h."""
        attempt = Attempt(self, point, state)
        rule = attempt.flow.optimizer
        if attempt.edge.active is None and rule.flow_time and not rule.clock:
            return gradient_flow_step(attempt, h)
        result = attempt.within(h)
        while result.error == math.inf and not isinstance(
            self.step_rule, ErrorControl
        ):  # nothing else shortens it
            shorter = attempt.within(0.5 * (h if result.h is None else result.h))
            result = dataclasses.replace(shorter, n_rejected=result.n_rejected + 1)
        return result


class Attempt:
    """A step from one point, shortened to where a direction enters or leaves the edge.

    Parameters
    ----------
    method : CentralProjected
    point : Point
    state : Any
        Of the method below the edge.
    """

    def __init__(self, method: CentralProjected, point: Point, state: Any) -> None:
        self.method, self.point, self.state = method, point, state
        self.flow: CentralFlow = central_flow(point)
        self.edge: Edge = self.flow.edge(point)
        self.tol = tolerance(method.tolerances, point)

    def within(self, h: float) -> StepResult:
        """Return a step of at most h."""
        directions = self.directions(h)
        for _ in range(_LOCATIONS):
            trial = Trial(self, h, directions)
            if not trial.landed:
                break
            h = trial.h
            part = self._part_to_exit(trial) if directions.stay else 1.0
            soon = _SOON * self.method.first_size(self.point, self.state)
            if part < 1 and part * h < soon:  # in all likelihood it would be back as soon
                directions = self.movable()
                continue
            part = min(part, self._part_to_entry(trial))
            if part >= 1:
                return self._result(trial)
            h *= min(0.95, max(0.02, part))
        if h < _SHORTEST * self.method.first_size(self.point, self.state):
            raise NumericalFailure(Status.NO_MULTIPLIER, f"steps of {h:.3g} are too long to keep to the edge")
        return StepResult(self.point.z, error=math.inf, state=self.state, h=h)

    def directions(self, h: float) -> Directions:
        """Return the directions that a step of h works with: those that oscillate, or more, which may come and go.

        As an eigenvalue comes near the edge, its eigenvector and the critical ones turn into each other, the faster the
        narrower the gap. Steps that followed this would be as short as the gap; with all of them in one set of
        directions it is a part of the complementarity problem.
        """
        critical, active = self.edge.critical, self.edge.active
        if critical is None or active is None:
            return Directions(None, np.zeros(0), stay=True) if critical is None else self.movable()
        r = self.edge.n_active
        gap = 2 - self.edge.values[r] if len(self.edge.values) > r else math.inf
        if r < critical.basis.shape[1] or (
            gap < _NEAR and h * float(np.abs(active[0].alpha).max()) > _MOVES * gap
        ):
            return self.movable()
        return Directions(active[0], svec(np.diag(active[1])), stay=True)

    def movable(self) -> Directions:
        """Return all directions at or near the edge."""
        edge, flow = self.edge, self.flow
        assert edge.solution is not None
        n = int(np.sum(edge.values > 2 - _NEAR))
        X, x = np.zeros((n, n)), smat(edge.solution.x)
        X[: len(x), : len(x)] = x
        constraint = self.point.work(
            "near the edge",
            lambda: flow.constraint(self.point, edge.vectors[:, :n], np.diag(edge.values[:n])),
        )
        return Directions(constraint, svec(X), stay=False)

    def _part_to_entry(self, trial: Trial) -> float:
        """Return the part of the step after which an eigenvalue that was below the edge reaches it; 1 if none does."""
        before, after = self.edge.values[trial.r : trial.r + 1] - 2, trial.end.below - 2
        if trial.end.turn < _TURN:  # the critical subspace is another one: it was overtaken
            after = abs(after)
        if not len(before) or after <= self.flow.edge_tol:
            return 1.0
        return float(max(-before[0], 0.0) / (max(-before[0], 0.0) + after))

    def _part_to_exit(self, trial: Trial) -> float:
        """Return the part of the step after which a direction's variance vanishes; 1 if none does."""
        if trial.r == 0 or self.edge.active is None:
            return 1.0
        before, after = self.edge.active[1], np.linalg.eigvalsh(smat(trial.x1))
        allowed = _LEAVES * max(before.max(), after.max())
        if after.min() >= -allowed:
            return 1.0
        least = before.min() + allowed / 2
        return float(least / (least - (after.min() + allowed / 2)))

    def _result(self, trial: Trial) -> StepResult:
        end = trial.end.point
        return StepResult(
            end.z,
            trial.at,
            error=self.length(trial.correction),
            state=self.state,
            h=trial.h,
            end=end,
            events=self.happened(end),
        )

    def happened(self, end: Point) -> tuple[str, ...]:
        """Return which of the method's events happened between here and a point."""
        change = self.flow.edge(end).n_active - self.edge.n_active
        return ("enter",) if change > 0 else ("leave",) if change < 0 else ()

    def length(self, difference: Tensor) -> float:
        """Return the length of a difference of states: ν relative to its length, t to 1 + t, to the same rtol as w."""
        flow, z = self.flow, self.point.z
        rule, s, change = flow.optimizer, flow.state(z), flow.state(difference)
        n = len(s) - rule.clock
        ν = norm(s[:n])
        of_nu = norm(change[:n]) / ν if ν > 0 else 0.0
        of_clock = abs(rule.step(change)) / (1 + rule.step(s))
        return max(
            norm(flow.theta(difference)), max(of_nu, of_clock) * self.tol / self.method.tolerances.rtol
        )


class Trial:
    """One trapezoidal step.

    Parameters
    ----------
    attempt : Attempt
    h : float
        Its size at most.
    directions : Directions

    Attributes
    ----------
    h : float
        Its size, as asked for or less.
    r : int
        Critical directions.
    end : Landed
    correction : Tensor
        h φ₂(hJ) r, by which the second stage differs from the first.
    constraint : Constraint or None
        That of the critical directions, with gradients and drifts of the middle of the step.
    x, x1 : ndarray
        X in the middle of the step, and at the first stage, where it may be no covariance if all directions stay.
    landed : bool
        Whether the edge was reached.
    """

    def __init__(self, attempt: Attempt, h: float, directions: Directions) -> None:
        self._attempt, self._flow = attempt, attempt.flow
        point, edge = attempt.point, attempt.edge
        self._z, self._field = point.z, point.field
        self._stiff: StiffPart = point.work("stiff part", lambda: StiffPart(self._flow, point))
        self._stay, constraint, self.x = directions.stay, directions.constraint, directions.x
        self.r = 0 if constraint is None else constraint.basis.shape[1]
        self.x1 = np.zeros(0)
        self._F = edge.velocity
        self._cF = self._stiff.coordinates(self._F)
        self._allowed = (
            _KRYLOV * attempt.tol * self._stiff.length(point.z) / (self._flow.size(point.z) or 1.0)
        )
        while self._stiff.resolve([Term(1, h, self._cF)], self._allowed) > self._allowed:
            h *= _SHORTER
        self.h = h
        try:
            self.landed = self._take(constraint)
        except NumericalFailure:  # a stage went where the flow has no velocity
            self.landed = False

    def _take(self, constraint: Constraint | None) -> bool:
        """Take the step; return whether it stays on the edge."""
        flow, stiff = self._flow, self._stiff
        first = self.land(self._z + stiff.evaluate(Term(1, self.h, self._cF), self._F), constraint, _LOOSE)
        if first is None:
            return False
        if constraint is None:
            F1 = flow.free(first.point)
        else:
            there = flow.constraint(first.point, first.basis, first.quotient)
            self.x1 = there.unconstrained() if self._stay else self._complementary(there)
            F1 = there.velocity(self.x1)
            constraint, self.x = constraint.mean(there), (self.x + self.x1) / 2
        self.constraint = constraint
        self._r = F1 - self._F - stiff.times(first.point.z - self._z)
        self._cr = stiff.coordinates(self._r)
        stiff.resolve([Term(2, self.h, self._cr)], self._allowed)
        self.correction = stiff.evaluate(Term(2, self.h, self._cr), self._r)
        end = self.land(self._path(1.0), constraint, self.tight(constraint))
        if end is None:
            return False
        self.end = end
        return True

    def _complementary(self, there: Constraint) -> np.ndarray:
        """Return X at the first stage, where a slack that has opened is no constraint for the rest of the step."""
        return solve(there.alpha + there.slack / self.h, there.beta).x

    def _path(self, s: float) -> Tensor:
        """Return z + sh φ₁(shJ) F + s · sh φ₂(shJ) r."""
        h, stiff = s * self.h, self._stiff
        return (
            self._z
            + stiff.evaluate(Term(1, h, self._cF), self._F)
            + s * stiff.evaluate(Term(2, h, self._cr), self._r)
        )

    def at(self, s: float) -> Tensor:
        """Return the state at the part s of the step, on the edge."""
        landed = self.land(self._path(s), self.constraint, self.tight(self.constraint), s)
        if landed is None:
            raise NumericalFailure(
                Status.STEP_UNDERFLOW, "a state within a step couldn't be projected on the edge"
            )
        return landed.point.z

    def tight(self, constraint: Constraint | None) -> float:
        """Return the slack within which a step ends: the way to the edge is much shorter than its tolerance then."""
        tol = self._flow.edge_tol / 2
        if constraint is None:
            return tol
        least = max(_LEAST_SLACK * tol, min(tol, _ROUNDING * torch.finfo(self._z.dtype).eps))
        return max(least, min(tol, _KRYLOV * self._attempt.tol / way(constraint)))

    def land(self, z: Tensor, constraint: Constraint | None, tol: float, s: float = 1.0) -> Landed | None:
        """Go to the edge along the drifts; None if it isn't reached.

        To R = 0, or where directions may come and go, to 0 ⪯ Y ⟂ R ⪰ 0 with the sum Y of X over the part s of the step,
        the way to the edge included.
        """
        flow, last = self._flow, math.inf
        Y = s * self.h * self.x
        r = 0 if constraint is None else constraint.basis.shape[1]
        for _ in range(_PROJECTIONS):
            if not all_finite(z):
                return None
            point = self._field.at(z)
            values, vectors = flow.tracked(point, 2 + flow.edge_tol, r)
            if constraint is None:
                return Landed(point, vectors[:, :0], np.zeros((0, 0)), float(values[0]), 1.0)
            PU = constraint.images / 2  # HU = 2PU at the edge
            basis, quotient = aligned(vectors, PU, values, r, _CLUSTER)
            slack = svec(2 * np.eye(r) - quotient)
            if self._stay:
                change = -np.linalg.lstsq(constraint.beta, slack, rcond=None)[0]
            else:
                change = solve(slack - constraint.beta @ Y, constraint.beta).x - Y
            size = float(np.abs(constraint.beta @ change).max())
            if size <= tol:
                rest = np.append(values[r:], -math.inf)
                below = float(values[0] if values[0] > 2 + flow.edge_tol else rest[0])
                turn = float(np.linalg.svd(to_numpy(basis.T @ PU), compute_uv=False).min()) ** 2
                return Landed(point, basis, quotient, below, turn)
            if size > _SHRINKS * last:
                return None
            last, z = size, z + constraint.along(change)
            Y = Y if self._stay else Y + change
        return None


def way(constraint: Constraint) -> float:
    """Return about how far the state is from the edge, over the slack there."""
    return norm(constraint.drifts[:, 0]) / float(constraint.beta[0, 0])
