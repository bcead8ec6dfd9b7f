"""What a flow adds to a record."""

from __future__ import annotations

from typing import Any

from gradflow.flows import Flow
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint


class FlowObserver(Observer):
    """The variables of a flow, at each record.

    Parameters
    ----------
    flow : Flow
    """

    name = "flow"

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.variables = flow.variables  # type: ignore[misc]

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        return self._flow.measure(point)
