"""When a run stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradflow.driver.stepper import Stepper, StepReport
from gradflow.status import Status

#: Steps after which a run without a `max_steps` of its own has failed.
STEP_CAP = 10_000_000
#: Times that are closer to `t_max`, relative to it, are `t_max`.
AT_END = 1e-12


@dataclass(frozen=True)
class StopConditions:
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
        if self.t_max is not None and t >= self.t_max * (1 - AT_END):
            return Status.REACHED_T_MAX
        if self.max_steps is not None and n >= self.max_steps:
            return Status.REACHED_MAX_STEPS
        if self.max_wall_time is not None and elapsed >= self.max_wall_time:
            return Status.REACHED_WALL_TIME
        if self.max_steps is None and n >= STEP_CAP:
            return Status.STEP_CAP
        return None
