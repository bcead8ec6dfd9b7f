"""Loss and accuracy on the test set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.loss import LossFunction
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


@dataclass(eq=False)
class TestSet(Observer):
    """Loss and accuracy on the test set; without one the file has both all the same, NaN."""

    __test__ = False  # no test for pytest

    loss: LossFunction | None

    name = "test"
    variables: ClassVar[Mapping[str, Variable]] = {
        "test_loss": Variable(long_name="test loss"),
        "test_accuracy": Variable(long_name="fraction of the test set classified right"),
    }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        if self.loss is None:
            return {}
        loss, accuracy = self.loss.evaluate(point.theta)
        return {"test_loss": loss, "test_accuracy": accuracy}
