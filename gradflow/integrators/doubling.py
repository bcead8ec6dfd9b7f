"""An error estimate for methods that have none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.errors import InvalidInputError
from gradflow.flows import Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.step_size import StepSize
from gradflow.integrators.step_size.base import norm


@dataclass(frozen=True)
class StepDoubling(Integrator):
    """A method whose error is estimated by a second step of half the size, and a third.

    With z₁ the end of one step of size h and z₂ that of two of h/2, by a method of order p, z₂ − z₁ over 2ᵖ − 1 is
    the error of z₂ (Hairer, Nørsett & Wanner 1993, II.4), which is where the step ends.

    Parameters
    ----------
    method : Integrator
        Whose steps depend on the point alone.
    """

    method: Integrator

    name: ClassVar[str] = "step doubling"

    def __post_init__(self) -> None:
        if self.method.discrete or self.method.limits_itself:
            raise InvalidInputError(
                f"ErrorControl can't size the steps of {self.method.name}: "
                + (
                    "an optimiser's steps are its learning rate's."
                    if self.method.discrete
                    else "it controls its own error."
                )
            )
        object.__setattr__(self, "order", self.method.order)
        object.__setattr__(self, "error_order", self.method.order + 1)

    @property
    def step_rule(self) -> StepSize:
        """The method's."""
        return self.method.step_rule

    @property
    def stability_interval(self) -> float | None:
        """The method's: the whole step is the first to be unstable."""
        return self.method.stability_interval

    @property
    def rejects_loss_increase(self) -> bool:
        """As the method."""
        return self.method.rejects_loss_increase

    @property
    def loss_tolerance(self) -> float:
        """The method's."""
        return self.method.loss_tolerance

    def init(self, point: Point) -> Any:
        """Return the method's state."""
        return self.method.init(point)

    def first_size(self, point: Point, state: Any) -> float:
        """Return the method's guess."""
        return self.method.first_size(point, state)

    def after_rejection(self, point: Point, state: Any) -> Any:
        """Return the method's state."""
        return self.method.after_rejection(point, state)

    def state_dict(self, state: Any) -> Any:
        """Return the method's, as plain data."""
        return self.method.state_dict(state)

    def load_state(self, saved: Any, point: Point) -> Any:
        """Make the method's state again."""
        return self.method.load_state(saved, point)

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take two steps of h/2, and compare with one of h."""
        step, p = self.method.step, self.method.order
        whole = step(point, h, state)
        first = step(point, h / 2, state)
        middle = point.field.at(first.z) if first.end is None else first.end
        second = step(middle, h / 2, first.state)
        if any(each.h is not None for each in (whole, first, second)):
            raise InvalidInputError(
                f"ErrorControl can't double the steps of {self.method.name}, which says itself how long they are "
                "(StepResult.h). Give its steps an error estimate, or use another controller."
            )
        error = norm(second.z - whole.z) / (2**p - 1)
        return StepResult(second.z, error=error, state=second.state, end=second.end)
