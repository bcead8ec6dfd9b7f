"""Where a run is, and what it has cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


@dataclass(eq=False)
class RunState(Observer):
    """Time, step and cost, with which every record begins.

    Parameters
    ----------
    third : bool
        The flow takes third derivatives, so that their number is recorded too.
    events : mapping of str to str
        Variables of events, which the driver sets, with what happens there in words.
    """

    third: bool = False
    events: Mapping[str, str] = field(default_factory=dict)

    name = "run_state"
    all_variables: ClassVar[Mapping[str, Variable]] = {
        "time": Variable(long_name="flow time"),
        "step": Variable(long_name="accepted steps so far", dtype="int64"),
        "step_size": Variable(long_name="size of the last step in time"),
        "sharpness_used": Variable(long_name="largest Hessian eigenvalue that the last step was sized with"),
        "n_gradients": Variable(long_name="cumulative gradient evaluations of the method", dtype="int64"),
        "n_hvps": Variable(long_name="cumulative Hessian-vector products of the method", dtype="int64"),
        "n_third": Variable(
            long_name="cumulative products of a vector with the Hessian's derivative of the method",
            dtype="int64",
        ),
        "wall_time": Variable(long_name="wall-clock time since the start, recording included", units="s"),
    }

    def __post_init__(self) -> None:
        wanted = self.all_variables.items()
        variables = {name: v for name, v in wanted if self.third or name != "n_third"}
        happened = {
            name: Variable(long_name=f"1 where {text}", dtype="int8") for name, text in self.events.items()
        }
        self.variables = variables | happened  # type: ignore[misc]

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Read the snapshot."""
        snapshot = point.snapshot
        values = {
            "time": snapshot.t,
            "step": snapshot.step,
            "step_size": snapshot.step_size,
            "sharpness_used": snapshot.sharpness_used,
            "n_gradients": snapshot.cost.n_gradients,
            "n_hvps": snapshot.cost.n_hvps,
            "n_third": snapshot.cost.n_third,
            "wall_time": snapshot.wall_time,
        }
        return {name: values[name] for name in self.variables if name in values}
