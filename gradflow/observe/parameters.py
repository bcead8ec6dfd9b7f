"""θ itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


@dataclass(eq=False)
class Parameters(Observer):
    """θ; and the flow's whole state, where it is more than θ.

    Parameters
    ----------
    whole_state : bool
    """

    whole_state: bool = False

    name = "params"
    all_variables: ClassVar[Mapping[str, Variable]] = {
        "theta": Variable(("param",), "flat parameters", dtype=None),
        "state": Variable(("z",), "flat state of the flow, which contains the parameters", dtype=None),
    }

    def __post_init__(self) -> None:
        wanted = self.all_variables.items()
        self.variables = {name: v for name, v in wanted if self.whole_state or name != "state"}  # type: ignore[misc]

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Read θ, and the state."""
        values = {"theta": point.theta, "state": point.z}
        return {name: values[name] for name in self.variables}
