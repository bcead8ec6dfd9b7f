"""Loss, gradient norm and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.loss import LossFunction
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.observe.quantities import gradient_norm
from gradflow.variable import Variable


@dataclass(eq=False)
class Scalars(Observer):
    """Training loss, gradient norm and training accuracy, which are known or cheap: every record has them."""

    loss: LossFunction

    name = "scalars"
    variables: ClassVar[Mapping[str, Variable]] = {
        "train_loss": Variable(long_name="training loss"),
        "train_accuracy": Variable(long_name="fraction of the training set classified right"),
        "gradient_norm": Variable(long_name="2-norm of the gradient of the training loss"),
    }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        values = {
            "train_loss": point.loss,
            "gradient_norm": gradient_norm(point),
        }
        if self.loss.classifies:
            values["train_accuracy"] = point.accuracy
        return values
