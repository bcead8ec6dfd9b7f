"""What a user measures of a net on the data of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradflow.loss import LossFunction
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


@dataclass(eq=False)
class Metrics(Observer):
    """The metrics of a loss, under their names; each takes a forward pass."""

    loss: LossFunction

    name = "metrics"

    def __post_init__(self) -> None:
        self.variables = {  # type: ignore[misc]
            name: Variable(long_name=f"{name.replace('_', ' ')}, mean over the training set")
            for name in self.loss.metrics
        }

    def measure(self, point: ObservedPoint) -> Mapping[str, Any]:
        """Measure at the point."""
        return self.loss.measure(point.theta)
