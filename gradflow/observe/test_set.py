"""Loss and accuracy on the test set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.loss import LossFunction
from gradflow.observe.base import Observer
from gradflow.observe.metrics import check_metrics, on_test_set
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


@dataclass(eq=False)
class TestSet(Observer):
    """Loss, accuracy and metrics on the test set; without one the file has the first two all the same, NaN."""

    __test__ = False  # no test for pytest

    loss: LossFunction | None

    name = "test"
    variables: ClassVar[Mapping[str, Variable]] = {
        "test_loss": Variable(long_name="test loss"),
        "test_accuracy": Variable(long_name="fraction of the test set classified right"),
    }

    def __post_init__(self) -> None:
        metrics = {} if self.loss is None else self.loss.metrics
        if self.loss is not None:
            check_metrics(self.loss)
        self.variables = dict(type(self).variables) | {  # type: ignore[misc]
            on_test_set(name): Variable(
                long_name=f"{on_test_set(name).replace('_', ' ')}, mean over the test set"
            )
            for name in metrics
        }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        if self.loss is None:
            return {}
        loss, accuracy = self.loss.evaluate(point.theta)
        measured = {on_test_set(name): value for name, value in self.loss.measure(point.theta).items()}
        return {"test_loss": loss, "test_accuracy": accuracy} | measured
