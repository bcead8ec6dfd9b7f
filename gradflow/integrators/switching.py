"""Two methods for one flow, a stiff and an explicit one, and a change between them where the other costs less."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, cast

import numpy as np

from gradflow.flows import Field, Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.controlled import ErrorControlled
from gradflow.integrators.runge_kutta import EmbeddedPair
from gradflow.integrators.step_size import StepSize
from gradflow.integrators.step_size.base import Proposal, safe_divide
from gradflow.integrators.step_size.error_control import Control
from gradflow.loss import LossFunction
from gradflow.plain import restorable

#: What a Hessian–vector product costs, in gradients: by itself, and as one of P at once.
_PRODUCT, _IN_A_BLOCK = 1.2, 0.1
#: At the stability limit some steps of the explicit method are rejected: it costs this much more.
_REJECTED = 1.25
#: What the stiff method costs, in gradients, until the time has doubled, before that is measured: for rtol = 1e-4.
_PRIOR = 30.0
#: Steps after a change before the next one, and the gain that is worth one; a clear gain is enough after one step.
_SETTLE, _GAIN, _CLEAR = 2, 0.9, 0.5
#: Changes that the record tells of.
_TOLD = 20
#: Part of its stability interval with which the explicit method begins.
_BEGIN = 0.7
#: Part of it that its steps may use, over the rate that its stages show.
_STABLE = 0.95


@restorable
@dataclass(frozen=True)
class Course:
    """Which method takes the steps, and what is known of both.

    Attributes
    ----------
    explicit : bool
        The explicit method takes the next step.
    states : tuple
        Of the stiff and the explicit method.
    costs : tuple of float
        What the last steps of each cost per unit of time, times t, in gradients.
    rate : float
        The flow's largest rate λ₁, as a step saw it last; in proportion to 1/t from there on, if later ones saw less.
    steps : int
        Since the last change.
    size : float
        Of the last step that the stiff method took.
    begin : float
        Size with which the next method begins.
    t : float
        Time since the start.
    changes : tuple of (float, bool, float, float)
        Time, whether to the explicit method, and what the stiff and the explicit one were to cost per unit of time.
    """

    explicit: bool
    states: tuple[Any, Any]
    costs: tuple[float, float]
    rate: float = math.nan
    steps: int = 0
    size: float = 0.0
    begin: float = 0.0
    t: float = 0.0
    changes: tuple[tuple[float, bool, float, float], ...] = ()


@dataclass(frozen=True)
class Switching(Integrator):
    """A stiff method, and an explicit one where that costs less.

    Where accuracy limits the steps, they follow the flow, which slows down: over times [t, 2t] a method costs about as
    much as over [t/2, t], so that what a step cost per unit of time is expected again in proportion to 1/t. Where
    stability limits those of the explicit method, it costs its stages over its stability interval, times λ₁, which the
    steps of both show. The method that is to cost less until 2t takes the next step. All of this counts gradients and
    products, not seconds: a run takes the same steps everywhere.

    Parameters
    ----------
    stiff : ErrorControlled
    explicit : EmbeddedPair
        Without a cap.
    explicit_first : bool
        The explicit method takes the first step.
    given : mapping
        Options as a user gave them, for the record.
    """

    stiff: ErrorControlled
    explicit: EmbeddedPair
    explicit_first: bool = True
    given: Mapping[str, Any] = field(default_factory=dict, hash=False)

    name: ClassVar[str] = "auto"
    order: ClassVar[int] = 2
    error_order: ClassVar[int] = 3  # judged by the rules of the two
    error_norm: ClassVar[str] = "l2"
    interpolates: ClassVar[bool] = True

    @property
    def methods(self) -> tuple[ErrorControlled, EmbeddedPair]:
        """The stiff one, and the explicit one."""
        return self.stiff, self.explicit

    def _of(self, explicit: bool) -> ErrorControlled:
        return self.explicit if explicit else self.stiff

    @property
    def keep_graph(self) -> bool:  # type: ignore[override]
        """As the method that begins."""
        return self._of(self.explicit_first).keep_graph

    @property
    def step_rule(self) -> StepSize:
        """Those of the two methods."""
        return _BothRules(
            self.stiff.step_rule,
            self.explicit.step_rule,
            self.explicit_first,
            _STABLE * self.explicit.stability_interval,
        )

    @property
    def loss_tolerance(self) -> float:
        """As the methods."""
        return self.stiff.loss_tolerance

    def resolve(self, loss: LossFunction) -> Self:
        """Fill in the options of both."""
        return dataclasses.replace(self, stiff=self.stiff.resolve(loss), explicit=self.explicit.resolve(loss))

    def settings(self) -> dict[str, Any]:
        """Return the options as given, and the two methods with theirs."""
        methods = {
            role: {"method": method.name, **method.settings()}
            for role, method in (("stiff", self.stiff), ("explicit", self.explicit))
        }
        return dict(self.given) | methods

    def init(self, point: Point) -> Course:
        """Begin."""
        states = self.stiff.init(point), self.explicit.init(point)
        expected = _PRIOR * (1e-4 / self.stiff.rtol) ** (1 / cast(int, self.stiff.error_order))
        return Course(self.explicit_first, states, (expected, 0.0))

    def first_size(self, point: Point, state: Course) -> float:
        """Return the guess of the method that begins."""
        return self._of(state.explicit).first_size(point, state.states[state.explicit])

    def after_rejection(self, point: Point, state: Course) -> Course:
        """Let the method that was rejected know, which takes the step again."""
        method = self._of(state.explicit)
        point.field.keep_graph = method.keep_graph
        return _with_state(state, method.after_rejection(point, state.states[state.explicit]))

    def step(self, point: Point, h: float, state: Course) -> StepResult:
        """Take a step by the method that is at it, and say which takes the next."""
        spent = point.work(self, lambda: self._spent(point.field))
        result = self._of(state.explicit).step(point, h, state.states[state.explicit])
        took = h if result.h is None else result.h
        cost = self._spent(point.field) - spent + (result.end is None)
        after = self._chosen(self._measured(state, result, cost / took, took), took)
        point.field.keep_graph = self._of(after.explicit).keep_graph
        return dataclasses.replace(result, state=after)

    def _spent(self, field: Field) -> float:
        """Return what a run has cost so far, in gradients."""
        in_a_block = getattr(self.stiff, "dense", False)
        return field.cost.n_gradients + (_IN_A_BLOCK if in_a_block else _PRODUCT) * field.cost.n_hvps

    def _measured(self, state: Course, result: StepResult, price: float, took: float) -> Course:
        """Note what a step cost per unit of time, and the rate that it saw."""
        pairs = result.pairs
        seen = float(pairs.values[0]) if pairs is not None and len(pairs) else math.nan
        t, before = state.t + took, state.costs[state.explicit]
        # What the velocity has no part in, a step doesn't see: λ₁ falls at most as the flow slows down, with 1/t.
        rate = float(np.fmax(seen, state.rate * state.t / t))
        # The first steps after a change are of their own kind.
        cost = 0.5 * (before + price * t) if state.steps > 1 else price * t
        stiff, explicit = state.costs
        costs = (stiff, cost) if state.explicit else (cost, explicit)
        size = state.size if state.explicit else took
        now = dataclasses.replace(state, costs=costs, rate=rate, steps=state.steps + 1, size=size, t=t)
        return _with_state(now, result.state)

    def _least(self, rate: float) -> float:
        """Return what the explicit method costs per unit of time if stability alone limits its steps."""
        stages = len(self.explicit.tableau.b)
        return _REJECTED * stages * max(rate, 0.0) / self.explicit.stability_interval

    def _chosen(self, state: Course, took: float) -> Course:
        """Return the state with the method that is to take the next step."""
        stiff, explicit = (math.log(2) * cost / state.t for cost in state.costs)
        explicit = max(explicit, self._least(state.rate))
        gain = _GAIN if state.steps >= _SETTLE else _CLEAR
        change = state.t, not state.explicit, stiff, explicit
        if state.explicit and stiff < gain * explicit:
            begin = max(took, state.size)
        elif not state.explicit and explicit < gain * stiff:
            stable = safe_divide(_BEGIN * self.explicit.stability_interval, max(state.rate, 0.0))
            begin = min(took, stable)
        else:
            return state
        return dataclasses.replace(
            state, explicit=not state.explicit, steps=0, begin=begin, changes=(*state.changes, change)
        )

    def remarks(self, state: Course) -> dict[str, str]:
        """Say which method took the steps from when on, and what both were to cost."""
        said = [f"{self._of(self.explicit_first).name} from t = 0"]
        for t, explicit, stiff_cost, explicit_cost in state.changes[:_TOLD]:
            costs = (explicit_cost, stiff_cost) if explicit else (stiff_cost, explicit_cost)
            said.append(
                f"{self._of(explicit).name} from t = {t:.6g} "
                f"({costs[0]:.3g} against {costs[1]:.3g} gradients per unit of time)"
            )
        if len(state.changes) > _TOLD:
            said.append(f"and {len(state.changes) - _TOLD} changes more")
        return {"method_choices": "; ".join(said)}

    def state_dict(self, state: Course) -> dict[str, Any]:
        """Return the state with those of the methods as they give them."""
        pairs = zip(self.methods, state.states, strict=True)
        return {
            "course": dataclasses.replace(state, states=(None, None)),
            "states": [method.state_dict(each) for method, each in pairs],
        }

    def load_state(self, saved: Mapping[str, Any], point: Point) -> Course:
        """Make the state again."""
        course = cast(Course, saved["course"])
        pairs = zip(self.methods, saved["states"], strict=True)
        point.field.keep_graph = self._of(course.explicit).keep_graph
        stiff, explicit = (method.load_state(each, point) for method, each in pairs)
        return dataclasses.replace(course, states=(stiff, explicit))


def _with_state(course: Course, state: Any) -> Course:
    stiff, explicit = course.states
    return dataclasses.replace(course, states=(stiff, state) if course.explicit else (state, explicit))


@restorable
@dataclass(frozen=True)
class _State:
    """Whose rule is at it, its state, and whose step was judged last."""

    explicit: bool
    inner: Any
    judged: bool


@dataclass(frozen=True)
class _BothRules(StepSize):
    """The rule of the method that takes the step."""

    stiff: StepSize
    explicit: StepSize
    explicit_first: bool
    stable: float

    def _of(self, explicit: bool) -> StepSize:
        return self.explicit if explicit else self.stiff

    def init(self, point: Point, first_size: Callable[[], float]) -> _State:
        """Begin with the rule of the method that begins."""
        first = self.explicit_first
        return _State(first, self._of(first).init(point, first_size), first)

    def propose(self, point: Point, t: float, step: int, state: _State, *, fresh: bool = False) -> Proposal:
        """Propose what the method's rule proposes."""
        proposal = self._of(state.explicit).propose(point, t, step, state.inner, fresh=fresh)
        return dataclasses.replace(proposal, state=dataclasses.replace(state, inner=proposal.state))

    def judge(self, point: Point, h: float, result: StepResult, state: _State) -> tuple[bool, _State]:
        """Judge by the method's rule, and go on with that of the next step's method."""
        accepted, inner = self._of(state.explicit).judge(point, h, result, state.inner)
        course = cast(Course, result.state)
        state = dataclasses.replace(state, judged=state.explicit)
        if accepted and course.explicit != state.explicit:
            return True, _State(course.explicit, Control(course.begin), state.explicit)
        if accepted and state.explicit and course.rate > 0:
            inner = dataclasses.replace(inner, size=min(inner.size, self.stable / course.rate))
        return accepted, dataclasses.replace(state, inner=inner)

    def after_loss_increase(self, h: float, state: _State) -> _State:
        """Go on as the rule of the method says that took the step, and takes it again."""
        inner = self._of(state.judged).after_loss_increase(h, state.inner)
        return _State(state.judged, inner, state.judged)
