"""The one time loop: step, then events, then records, then checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from gradflow.autocast import without_autocast
from gradflow.driver.events import Event, EventTracker, Occurrence
from gradflow.driver.interrupts import Interrupts
from gradflow.driver.progress import Progress
from gradflow.driver.schedule import Schedule
from gradflow.driver.stepper import Stepper, StepReport
from gradflow.errors import RecordingError
from gradflow.flows import Cost, Point
from gradflow.status import NumericalFailure, Status

#: Steps after which a run without a `max_steps` of its own has failed.
STEP_CAP = 10_000_000
#: What a checkpoint holds of a step's report.
_KEPT = (
    "step", "t", "dt", "loss", "sharpness", "eigenvalues", "n_gradients", "n_hvps", "n_rejected",
)  # fmt: skip
#: Times that are closer to `t_max`, relative to it, are `t_max`.
_AT_END = 1e-12


@dataclass(frozen=True)
class Moment:
    """A time at which something is to be recorded.

    Attributes
    ----------
    t : float
    step : int
        Accepted steps so far.
    z : Tensor
        The flow's state, for most flows θ.
    point : Point or None
        z with what the run knows there; None where z was interpolated within a step, or the run knows nothing of
        the whole data there.
    preconditioner : callable
        Gives the diagonal of the method's preconditioner, shape (P,), or None.
    step_size, sharpness_used : float
        Of the last step; NaN before the first.
    cost : Cost
    wall_time : float
        Seconds since the run began.
    """

    t: float
    step: int
    z: Tensor
    point: Point | None
    step_size: float
    sharpness_used: float
    cost: Cost
    wall_time: float
    preconditioner: Callable[[], Tensor | None] = lambda: None


class Recorder(Protocol):
    """Where the driver's records go: to memory, to a file, or to the caller."""

    def measure(self, moment: Moment, due: Collection[str]) -> dict[str, Any]:
        """Measure the groups of quantities that are due."""

    def quantity(self, quantity: str | Callable[[Any], Any], moment: Moment) -> float:
        """Evaluate the quantity of an event."""

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record."""

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the record that was kept last."""

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Bring records, and the state of the run, to safety if it is time to, or now; called after every step."""

    def flush(self) -> None:
        """Bring what was appended to safety."""


@dataclass(frozen=True)
class Ends:
    """When to stop; what is None doesn't count.

    Attributes
    ----------
    t_max : float or None
    max_steps : int or None
    max_wall_time : float or None
        Seconds.
    callback : callable or None
        Gets the :class:`StepReport` of every step; a true value stops.
    """

    t_max: float | None = None
    max_steps: int | None = None
    max_wall_time: float | None = None
    callback: Callable[[StepReport], Any] | None = None

    def reached(self, stepper: Stepper, elapsed: float) -> Status | None:
        """Return the end that the present state is at, if any."""
        t, n = stepper.t, stepper.n_steps
        if self.t_max is not None and t >= self.t_max * (1 - _AT_END):
            return Status.REACHED_T_MAX
        if self.max_steps is not None and n >= self.max_steps:
            return Status.REACHED_MAX_STEPS
        if self.max_wall_time is not None and elapsed >= self.max_wall_time:
            return Status.REACHED_WALL_TIME
        if self.max_steps is None and n >= STEP_CAP:
            return Status.STEP_CAP
        return None


@dataclass(frozen=True)
class Outcome:
    """The end of a run.

    Attributes
    ----------
    status : Status
    message : str
        The status's advice, with what happened.
    signal : signal.Signals or None
        What interrupted it.
    """

    status: Status
    message: str
    signal: signal.Signals | None = None


class _Run:
    """The state of the loop."""

    def __init__(
        self, stepper: Stepper, schedule: Schedule, recorder: Recorder, ends: Ends, events: Sequence[Event]
    ) -> None:
        self.stepper = stepper
        self.schedule = schedule
        self.recorder = recorder
        self.ends = ends
        self.events = EventTracker(events, recorder.quantity)
        self.ending: Occurrence | None = None
        self._moment: Moment | None = None
        self.started = time.perf_counter()
        self.report: StepReport | None = None
        self.last_recorded: tuple[float, frozenset[str]] = (-1.0, frozenset())

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        """Return all that the run goes on from."""
        last = None
        if self.report is not None:
            last = {name: getattr(self.report, name) for name in _KEPT}
        t, due = self.last_recorded
        return {
            "stepper": self.stepper.state_dict(),
            "report": last,
            "last_recorded": (t, sorted(due)),
            "events": self.events.state_dict(),
            "elapsed": self.elapsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.stepper.load_state_dict(state["stepper"])
        self.report = None
        if state["report"] is not None:
            self.report = StepReport(**state["report"], theta=self.stepper.point.theta)
        t, due = state["last_recorded"]
        self.last_recorded = t, frozenset(due)
        self.events.load_state_dict(state["events"])
        self.started = time.perf_counter() - state["elapsed"]

    def moment(self) -> Moment:
        """Return the present state: one object, as long as it is the present one."""
        if self._moment is None or self._moment.z is not self.stepper.point.z:
            self._moment = self._present()
        return self._moment

    def _present(self) -> Moment:
        stepper, report = self.stepper, self.report
        return Moment(
            t=stepper.t,
            step=stepper.n_steps,
            z=stepper.point.z,
            point=None if stepper.integrator.stochastic else stepper.point,
            step_size=math.nan if report is None else report.dt,
            sharpness_used=math.nan if report is None else report.sharpness,
            cost=stepper.field.cost.copy(),
            wall_time=self.elapsed,
            preconditioner=stepper.preconditioner,
        )

    def moment_at(self, t: float) -> Moment:
        """Return the state at a time within the last step, or at its end."""
        now = self.moment()
        if t == now.t:
            return now
        return dataclasses.replace(
            now, t=t, z=self.stepper.within(t), point=None, preconditioner=lambda: None
        )

    def record(self, moment: Moment, due: frozenset[str], happened: Collection[Event] = ()) -> None:
        """Record what is due, and what happened there."""
        if self.stepper.integrator.stochastic and moment.t > self.last_recorded[0] >= 0:
            found = self.events.look(self.last_recorded[0], moment.t, moment, None)
            self.ending = next((each for each in found if each.event.terminal), None)
            happened = [each.event for each in found]
            due = self.schedule.groups if happened else due
        record = self.recorder.measure(moment, due)
        self.recorder.append(record | {e.variable: 1 for e in happened if e.variable})
        self.last_recorded = moment.t, due

    def complete(self) -> None:
        """Make the present state, with all quantities, the last record."""
        t, due = self.last_recorded
        if t != self.stepper.t:
            self.record(self._present(), self.schedule.groups)
        elif due != self.schedule.groups:
            self.recorder.amend(self.recorder.measure(self._present(), self.schedule.groups - due))

    def leave(self) -> None:
        """Record the present state, unless it is; a run that goes on from the checkpoint before drops this record."""
        if self.last_recorded[0] != self.stepper.t:
            self.record(self._present(), self.schedule.groups)

    def target(self) -> float:
        """Return the time that the next step must not step over."""
        tol = _tolerance(self.stepper.t, 0.0 if self.report is None else self.report.dt)
        t_max = math.inf if self.ends.t_max is None else self.ends.t_max
        if self.stepper.integrator.interpolates:
            return t_max
        t = self.schedule.next_time(self.stepper.t, tol)
        return t if t < t_max * (1 - _AT_END) else t_max

    def step(self) -> Status | None:
        """Take a step, record what is due, and return the run's end if this is it."""
        t0 = self.stepper.t
        self.report = self.stepper.advance(self.target())
        happened = self.look(t0)
        report = self.report
        status = self.status()
        if self.ends.callback is not None and self.ends.callback(report) and status is None:
            status = Status.STOPPED_BY_CALLBACK
        interpolates = self.stepper.integrator.interpolates
        due = dict(
            self.schedule.due(
                t0, report.t, report.step, _tolerance(report.t, report.dt), at_end=not interpolates
            )
        )
        due |= dict.fromkeys(happened, self.schedule.groups)
        if status is not None:
            due[report.t] = self.schedule.groups
        for t, groups in sorted(due.items()):
            self.record(self.moment_at(t), groups, happened.get(t, ()))
        return self.status() if status is None else status

    def look(self, t0: float) -> dict[float, list[Event]]:
        """Return the events of the last step by time; cut the step short at one that ends the run."""
        stepper, report = self.stepper, self.report
        if not self.events.events or stepper.integrator.stochastic:  # which are looked for at the records
            return {}
        assert report is not None
        within = None if stepper.integrator.discrete else self.moment_at
        happened: dict[float, list[Event]] = {}
        for found in self.events.look(t0, report.t, self.moment(), within):
            happened.setdefault(found.t, []).append(found.event)
            if found.event.terminal:
                self.ending = found
        if self.ending is not None and self.ending.t < report.t:
            t = self.ending.t
            stepper.cut_short(t)
            self.report = dataclasses.replace(report, t=t, dt=t - t0, theta=stepper.point.theta)
        return happened

    def status(self) -> Status | None:
        """Return the end that the run is at, if any."""
        reached = self.ends.reached(self.stepper, self.elapsed)
        if self.ending is None or reached is Status.REACHED_T_MAX:
            return reached
        return self.ending.event.status

    def message(self, status: Status) -> str:
        """Return the text of a status, with the event that it is of."""
        if status is Status.EVENT and self.ending is not None:
            return f"{status.advice} At t = {self.ending.t:.9g}: {self.ending.event.describe()}."
        return status.advice


@without_autocast()
def run(
    stepper: Stepper,
    schedule: Schedule,
    recorder: Recorder,
    ends: Ends,
    events: Sequence[Event] = (),
    *,
    progress: bool | None,
    start: Mapping[str, Any] | None = None,
) -> Outcome:
    """Integrate until an end is reached, recording on the way.

    The first record is the initial state, the last the final one; both hold all quantities. A signal that would end
    the process is held back until the step is done.

    Parameters
    ----------
    stepper : Stepper
        At the initial state.
    schedule : Schedule
    recorder : Recorder
    ends : Ends
    events : sequence of Event
    progress : bool or None
    start : mapping, optional
        State of an earlier run, from which this one goes on.

    Returns
    -------
    Outcome
    """
    this = _Run(stepper, schedule, recorder, ends, events)
    try:
        with Interrupts() as interrupts:
            status, message = _loop(this, interrupts, progress, start)
    except BaseException:
        with contextlib.suppress(RecordingError):  # the first error counts
            recorder.flush()
        raise
    return Outcome(status, message, interrupts.pending)


def _loop(
    this: _Run, interrupts: Interrupts, progress: bool | None, start: Mapping[str, Any] | None
) -> tuple[Status, str]:
    status = _begin(this, start)
    with Progress(progress, this.ends.t_max, this.ends.max_steps) as bar:
        while status is None:
            if interrupts.pending is not None:
                this.recorder.sync(this.state_dict, now=True)
                this.leave()
                return Status.INTERRUPTED, Status.INTERRUPTED.advice
            try:
                status = this.step()
            except NumericalFailure as failure:
                this.complete()
                return failure.status, failure.message
            if this.report is not None:
                bar.update(this.report)
            if status is None:
                this.recorder.sync(this.state_dict)
    return status, this.message(status)


def _begin(this: _Run, start: Mapping[str, Any] | None) -> Status | None:
    """Record the initial state, or take up an earlier run; return the end that is reached already."""
    if start is not None:
        this.load_state_dict(start)
        return this.ends.reached(this.stepper, this.elapsed)
    status = this.ends.reached(this.stepper, 0.0)
    goal = this.events.begin(this.moment())
    if goal is not None:
        this.ending = Occurrence(this.stepper.t, goal)
        status = goal.status if status is None else status
    this.record(this.moment(), this.schedule.groups)
    if status is None:
        this.recorder.sync(this.state_dict, now=True)
    return status


def _tolerance(t: float, dt: float) -> float:
    """Return how close two times must be to be the same: 1e-9 of a step, and no less than rounding."""
    return max(1e-9 * dt, 8 * math.ulp(t))
