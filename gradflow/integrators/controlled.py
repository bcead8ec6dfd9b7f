"""What the methods for flows have in common: a step-size controller that a user may choose."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError
from gradflow.integrators.base import Integrator
from gradflow.integrators.step_size import ErrorControl, StepSize
from gradflow.integrators.step_size.read import read_step_size


@dataclass(frozen=True)
class FlowMethod(Integrator):
    """A method for flows, whose steps are sized by a controller of its own choice or of the user's.

    Parameters
    ----------
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    step_size : StepSize, float or str, optional
        What sizes and judges the steps, in the place of the method's own controller and its options: a number for
        steps of that size, ``ErrorControl(rtol=1e-6)`` or ``SharpnessCap(alpha=1.0)`` of
        :mod:`gradflow.integrators.step_size`, or one of these as text.
    """

    loss_rtol: float = field(default=0.0, kw_only=True)
    step_size: StepSize | float | str | None = field(default=None, kw_only=True)

    #: Options that belong to the method's own controller.
    own_options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_number("loss_rtol", self.loss_rtol, least=0)
        if self.step_size is None:
            return
        given = [name for name in self.own_options if getattr(self, name) != getattr(type(self), name)]
        if given:
            raise InvalidInputError(
                f"{', '.join(given)} belongs to {self.name}'s own step-size controller, which step_size replaces: "
                "give one of them."
            )
        object.__setattr__(self, "step_size", read_step_size(self.step_size))

    @property
    def step_rule(self) -> StepSize:
        """The controller that was given, or the method's own."""
        assert not isinstance(self.step_size, str | float)
        return (self.own_step_rule if self.step_size is None else self.step_size).resolve(self)

    def settings(self) -> dict[str, Any]:
        """Return the options by name, as resolved; `step_size` if it was given."""
        settings = super().settings()
        step_size = settings.pop("step_size")
        return settings if step_size is None else settings | {"step_size": repr(step_size)}

    @property
    @abstractmethod
    def own_step_rule(self) -> StepSize:
        """The method's own controller."""


@dataclass(frozen=True)
class ErrorControlled(FlowMethod):
    """A method with an error estimate e, which keeps ‖e‖₂ ≤ atol + rtol·max(‖zₙ‖₂, ‖zₙ₊₁‖₂).

    By :class:`gradflow.integrators.step_size.ErrorControl`.

    Parameters
    ----------
    rtol : float, default 1e-4
        Tolerance of a step relative to ‖θ‖₂.
    atol : float, default 1e-6
        Absolute tolerance of a step, in units of ‖θ‖₂.
    max_step : float, default inf
        Largest step in time.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_step: float = math.inf

    interpolates: ClassVar[bool] = True
    own_options: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_step")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, least=0)
        check_number("max_step", self.max_step, above=0, finite=False)

    @property
    def tolerances(self) -> Any:
        """What has the rtol and the atol of a step: the error control that was given, or the method's options."""
        return self.step_size if isinstance(self.step_size, ErrorControl) else self

    @property
    def own_step_rule(self) -> ErrorControl:
        """The error control alone."""
        return ErrorControl(self.rtol, self.atol, self.max_step)
