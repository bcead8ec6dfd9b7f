"""The state of a run at a time at which something is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gradflow.flows import Cost, Point


@dataclass(frozen=True)
class Snapshot:
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
    step_end : float or None
        Time at which the last step ended, where `t` is within it.
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
    step_end: float | None = None

    @property
    def steps_taken(self) -> float:
        """Accepted steps up to `t`: of the one that `t` is within, the part."""
        rest = 0.0 if self.step_end is None else (self.step_end - self.t) / self.step_size
        return self.step - rest
