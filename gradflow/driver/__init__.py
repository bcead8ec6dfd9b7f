"""The driver: the only time loop."""

from gradflow.driver.events import Event, Goal, check_events
from gradflow.driver.loop import Outcome, Recorder, run
from gradflow.driver.schedule import (
    AtTimes,
    Cadence,
    EverySteps,
    EveryTime,
    Schedule,
    at_times,
    cadence,
    cadences,
    steps,
)
from gradflow.driver.snapshot import Snapshot
from gradflow.driver.stepper import Stepper, StepReport
from gradflow.driver.stop_conditions import StopConditions
from gradflow.status import NumericalFailure, Status

__all__ = [
    "AtTimes",
    "Cadence",
    "StopConditions",
    "Event",
    "Goal",
    "EverySteps",
    "EveryTime",
    "Snapshot",
    "NumericalFailure",
    "Outcome",
    "Recorder",
    "Schedule",
    "Status",
    "StepReport",
    "Stepper",
    "at_times",
    "cadence",
    "cadences",
    "check_events",
    "run",
    "steps",
]
