"""What a user measures of a net on the data of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradflow.errors import InvalidInputError
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
        check_metrics(self.loss)
        self.variables = {  # type: ignore[misc]
            name: Variable(long_name=f"{name.replace('_', ' ')}, mean over the training set")
            for name in self.loss.metrics
        }

    def measure(self, point: ObservedPoint) -> Mapping[str, Any]:
        """Measure at the point."""
        return self.loss.measure(point.theta)


#: What a file has under names that a metric would take.
_TAKEN = frozenset(
    "time step train_loss test_loss train_accuracy test_accuracy gradient_norm step_size wall_time n_gradients n_hvps "
    "n_third eigenvalue eigenvalue_residual theta params params_initial projection density".split()
)


def on_test_set(name: str) -> str:
    """Return the name of a metric on the test set: "train_f1" is "test_f1" there."""
    return f"test_{name.removeprefix('train_')}"


def check_metrics(loss: LossFunction) -> None:
    """Refuse metrics whose names, of the training or of the test set, are taken."""
    seen: dict[str, str] = {}
    for name in loss.metrics:
        clash = next((each for each in (name, on_test_set(name)) if each in _TAKEN), None)
        if clash is not None:
            raise InvalidInputError(
                f"The metric {name!r} would be recorded as {clash!r}, which is taken. Rename it."
            )
        other = seen.setdefault(on_test_set(name), name)
        if other != name:
            raise InvalidInputError(
                f"The metrics {other!r} and {name!r} would both be {on_test_set(name)!r} on a test set. Rename one."
            )
