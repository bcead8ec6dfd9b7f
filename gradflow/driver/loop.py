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
from gradflow.driver.snapshot import Snapshot
from gradflow.driver.stepper import Stepper, StepReport
from gradflow.driver.stop_conditions import AT_END, StopConditions
from gradflow.errors import RecordingError
from gradflow.status import NumericalFailure, Status

#: What a checkpoint holds of a step's report.
_KEPT = (
    "step", "t", "dt", "loss", "sharpness", "eigenvalues", "n_gradients", "n_hvps", "n_rejected",
)  # fmt: skip


class Recorder(Protocol):
    """Where the driver's records go: to memory, to a file, or to the caller."""

    def measure(self, snapshot: Snapshot, due: Collection[str]) -> dict[str, Any]:
        """Measure the groups of quantities that are due."""

    def quantity(self, quantity: str | Callable[[Any], Any], snapshot: Snapshot) -> float:
        """Evaluate the quantity of an event."""

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record."""

    def follow(self, z: Tensor) -> None:
        """See where a step led, before it is recorded: called after every step. It may amend the last record."""

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the record that was kept last."""

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Bring records, and the state of the run, to safety if it is time to, or now; called after every step."""

    def flush(self) -> None:
        """Bring what was appended to safety."""


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
        self,
        stepper: Stepper,
        schedule: Schedule,
        recorder: Recorder,
        stop: StopConditions,
        events: Sequence[Event],
    ) -> None:
        self.stepper = stepper
        self.schedule = schedule
        self.recorder = recorder
        self.stop = stop
        self.events = EventTracker(events, recorder.quantity)
        self.ending: Occurrence | None = None
        self._snapshot: Snapshot | None = None
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

    def snapshot(self) -> Snapshot:
        """Return the present state: one object, as long as it is the present one."""
        if self._snapshot is None:
            self._snapshot = self._present()
        return self._snapshot

    def _present(self) -> Snapshot:
        stepper, report = self.stepper, self.report
        return Snapshot(
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

    def forget(self) -> None:
        """Let the snapshot go, and with it the graphs of a point that may no longer be the present one."""
        self._snapshot = None

    def snapshot_at(self, t: float) -> Snapshot:
        """Return the state at a time within the last step, or at its end."""
        now = self.snapshot()
        if t == now.t:
            return now
        return dataclasses.replace(
            now, t=t, z=self.stepper.within(t), point=None, preconditioner=lambda: None, step_end=now.t
        )

    def record(self, snapshot: Snapshot, due: frozenset[str], happened: Collection[str] = ()) -> None:
        """Record what is due, and the variables of what happened there."""
        if self.stepper.integrator.stochastic and snapshot.t > self.last_recorded[0] >= 0:
            found = self.events.look(self.last_recorded[0], snapshot.t, snapshot, None)
            self.ending = next((each for each in found if each.event.terminal), None)
            happened = [each.event.variable for each in found]
            due = self.schedule.groups if happened else due
        record = self.recorder.measure(snapshot, due)
        self.recorder.append(record | {variable: 1 for variable in happened if variable})
        self.last_recorded = snapshot.t, due

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
        t_max = math.inf if self.stop.t_max is None else self.stop.t_max
        if self.stepper.integrator.interpolates:
            return t_max
        t = self.schedule.next_time(self.stepper.t, tol)
        return t if t < t_max * (1 - AT_END) else t_max

    def step(self) -> Status | None:
        """Take a step, record what is due, and return the run's end if this is it."""
        t0 = self.stepper.t
        self.forget()
        self.report = self.stepper.advance(self.target())
        self.recorder.follow(self.stepper.point.z)
        happened = self.look(t0)
        report = self.report
        status = self.status()
        if self.stop.callback is not None and self.stop.callback(report) and status is None:
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
            self.record(self.snapshot_at(t), groups, happened.get(t, ()))
        return self.status() if status is None else status

    def look(self, t0: float) -> dict[float, list[str]]:
        """Return the variables of what happened in the last step by time; cut the step short at what ends the run."""
        stepper, report = self.stepper, self.report
        assert report is not None
        assert stepper.result is not None
        at_end = [f"event_{name}" for name in stepper.result.events]
        happened: dict[float, list[str]] = {report.t: at_end} if at_end else {}
        if not self.events.events or stepper.integrator.stochastic:  # which are looked for at the records
            return happened
        within = None if stepper.integrator.discrete else self.snapshot_at
        for found in self.events.look(t0, report.t, self.snapshot(), within):
            happened.setdefault(found.t, []).append(found.event.variable)
            if found.event.terminal:
                self.ending = found
        if self.ending is not None and self.ending.t < report.t:
            t = self.ending.t
            happened = {when: what for when, what in happened.items() if when <= t}
            stepper.cut_short(t)
            self.forget()
            self.report = dataclasses.replace(report, t=t, dt=t - t0, theta=stepper.point.theta)
        return happened

    def status(self) -> Status | None:
        """Return the end that the run is at, if any."""
        reached = self.stop.reached(self.stepper, self.elapsed)
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
    stop: StopConditions,
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
    stop : StopConditions
    events : sequence of Event
    progress : bool or None
    start : mapping, optional
        State of an earlier run, from which this one goes on.

    Returns
    -------
    Outcome
    """
    this = _Run(stepper, schedule, recorder, stop, events)
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
    with Progress(progress, this.stop.t_max, this.stop.max_steps) as bar:
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
                this.forget()
                this.recorder.sync(this.state_dict)
    this.complete()  # where the time ran out between a step and its end
    return status, this.message(status)


def _begin(this: _Run, start: Mapping[str, Any] | None) -> Status | None:
    """Record the initial state, or take up an earlier run; return the end that is reached already."""
    if start is not None:
        this.load_state_dict(start)
        return this.stop.reached(this.stepper, this.elapsed)
    status = this.stop.reached(this.stepper, 0.0)
    goal = this.events.begin(this.snapshot())
    if goal is not None:
        this.ending = Occurrence(this.stepper.t, goal)
        status = goal.status if status is None else status
    this.record(this.snapshot(), this.schedule.groups)
    if status is None:
        this.forget()
        this.recorder.sync(this.state_dict, now=True)
    return status


def _tolerance(t: float, dt: float) -> float:
    """Return how close two times must be to be the same: 1e-9 of a step, and no less than rounding."""
    return max(1e-9 * dt, 8 * math.ulp(t))
