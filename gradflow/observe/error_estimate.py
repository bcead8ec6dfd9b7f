"""How far θ is from the flow, as a second run tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.driver import NumericalFailure, Stepper
from gradflow.flows import Field
from gradflow.integrators.second_run import SecondRun
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


class ErrorEstimate(Observer):
    """An estimate of ‖θ − θ*‖₂, θ* on the flow from the same θ₀, by a second run to the same times.

    The second run is one of :func:`gradflow.integrators.second_run.second_run`, which costs no more than the first.
    It has a field of its own, so that the first run doesn't change by a bit, and its cost counts as observing.

    What a tolerance promises: error control keeps the error of each step to atol + rtol·‖θ‖₂. Where the flow doesn't
    make errors larger, the error of θ(t) is at most their sum over the steps up to t, which is recorded as
    ``theta_error_tolerance``. An estimate beyond it says that errors grew along the way, or that the steps' own
    estimates were too small.

    Both runs may overlook the same: where the flow leaves a saddle along a component that is small beside the
    tolerance, the estimate is too small.

    Parameters
    ----------
    second : SecondRun
    field : Field
        Of the second run alone.
    theta : Tensor, shape (P,)
        θ₀.

    Attributes
    ----------
    advice : str or None
        What there is to say of the estimates so far; None where all is as the tolerance promises.
    """

    name = "error_estimate"
    all_variables: ClassVar[Mapping[str, Variable]] = {
        "theta_error_estimate": Variable(
            long_name="estimated distance of the parameters from the flow, by a second run"
        ),
        "theta_error_tolerance": Variable(
            long_name="sum over the steps so far of the error that the tolerance allows each"
        ),
    }

    def __init__(self, second: SecondRun, field: Field, theta: Tensor) -> None:
        self.second = second
        wanted = self.all_variables.items()
        self.variables = {  # type: ignore[misc]
            name: v for name, v in wanted if second.control is not None or name != "theta_error_tolerance"
        }
        self.field = field
        self._theta = theta
        self._stepper: Stepper | None = None
        #: The state before the last step, and the time that it was not to step over.
        self._last: tuple[dict[str, Any], float] | None = None
        self._failure = ""
        self._allowed = (0.0, 0.0, 0.0)  # steps, tolerance and its sum at the last record
        self._worst = (0.0, 0.0, 0.0, 0.0)  # estimate over its sum of tolerances, both, and when

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Take the second run to the point's time, and compare."""
        self._advance(point.t)
        estimate = math.nan
        if not self._failure:
            estimate = self._estimate(point)
        if self.second.control is None:
            return {"theta_error_estimate": estimate}
        allowed = self._allow(point)
        if allowed > 0 and estimate / allowed > self._worst[0]:
            self._worst = estimate / allowed, estimate, allowed, point.t
        return {"theta_error_estimate": estimate, "theta_error_tolerance": allowed}

    def _begun(self) -> Stepper:
        if self._stepper is None:
            self._stepper = Stepper(self.second.integrator, self.field, self._theta)
        return self._stepper

    def _advance(self, t: float) -> None:
        """Take steps until one has reached a time."""
        stepper = self._begun()
        target = math.inf if stepper.integrator.interpolates else t
        while stepper.t < t and not self._failure:
            self._last = stepper.state_dict(), target
            self._step(target)

    def _step(self, target: float) -> None:
        try:
            self._begun().advance(target)
        except NumericalFailure as failure:
            self._failure = f"it ended at t = {self._begun().t:.6g}: {failure.message}"

    def _estimate(self, point: ObservedPoint) -> float:
        stepper, t, flow = self._begun(), point.t, self.field.flow
        second = flow.theta(stepper.point.z if t == stepper.t else stepper.within(t))
        distance = float(torch.linalg.vector_norm(point.theta - second, dtype=torch.float64))
        return self.second.error(distance, point.snapshot.steps_taken, stepper.steps_taken(t))

    def _allow(self, point: ObservedPoint) -> float:
        """Return the sum of the errors that the steps up to here were allowed; ‖θ‖ is that of the records."""
        n_before, before, total = self._allowed
        n, now = point.snapshot.steps_taken, tolerance(self.second.control, point)
        total += (n - n_before) * max(before, now)
        self._allowed = n, now, total
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return the second run's state before its last step, which may go on beyond the last record."""
        last = (self._begun().state_dict(), None) if self._last is None else self._last
        return {"last": last, "allowed": self._allowed, "worst": self._worst}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, and take the last step again."""
        before, target = state["last"]
        self._begun().load_state_dict(before)
        self._allowed, self._worst = tuple(state["allowed"]), tuple(state["worst"])
        if target is not None:
            self._last = before, target
            self._step(target)

    @property
    def advice(self) -> str | None:
        """What there is to say of the estimates so far; None where all is as the tolerance promises."""
        if self._failure:
            return f"The error is not estimated to the end, because the second run failed: {self._failure}."
        ratio, estimate, allowed, t = self._worst
        if ratio <= 1:
            return None
        return (
            f"The error of θ is estimated at {estimate:.2g} at t = {t:.6g}, {ratio:.2g} times what the tolerances of "
            f"the steps add up to there ({allowed:.2g}): errors grew along the flow, or the steps missed some. "
            "Divide rtol by ten, and see whether the estimate falls with it."
        )
