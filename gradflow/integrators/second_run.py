"""A second run beside a first one, whose distance to it tells the error of that."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

import torch

from gradflow.errors import InvalidInputError
from gradflow.integrators.base import Integrator
from gradflow.integrators.controlled import FlowMethod
from gradflow.integrators.pairs import DormandPrince5
from gradflow.integrators.step_size import ErrorControl
from gradflow.integrators.step_size.error_control import least_rtol
from gradflow.integrators.switching import Switching

M = TypeVar("M", bound=FlowMethod)

#: How much looser the tolerance of the second run is.
_LOOSER = 10.0
#: Ratio of the errors of both runs where stability sizes steps, too: between 3 and 30 (docs/decisions.md).
_CAPPED_RATIO = 8.0
#: Least ratio of the errors of both runs that is believed.
_LEAST_RATIO = 2.0
#: rtol of the second run beside a method without a tolerance.
_RTOL = 1e-6
#: Least order of a method without a tolerance whose error is estimated.
_LEAST_ORDER = 3


@dataclass(frozen=True)
class SecondRun:
    """A second run, and what its distance from the first one says.

    With errors e and r·e of both in about one direction, the distance d between them is (r − 1)‖e‖
    (Richardson; Hairer, Nørsett & Wanner 1993, II.4). Errors of order p are as the p-th power of the steps' sizes, so
    that the numbers of steps n and n̂ to the same time give r = (n/n̂)ᵖ.

    Attributes
    ----------
    integrator : Integrator
        Of the second run.
    order : int or None
        p. None: the errors have nothing to do with each other, and d is the estimate.
    ratio : float or None
        r where the numbers of steps don't tell it.
    control : ErrorControl or None
        What keeps the errors of the first run's steps to a tolerance.
    """

    integrator: Integrator
    order: int | None = None
    ratio: float | None = None
    control: ErrorControl | None = None

    def error(self, distance: float, n_steps: float, n_second: float) -> float:
        """Return the estimate of the first run's error.

        Parameters
        ----------
        distance : float
            Between both at one time.
        n_steps, n_second : float
            Steps of either up to there; the last one counts by its part.

        Returns
        -------
        float
            NaN where both took the same steps, so that their distance says nothing.
        """
        if self.ratio is not None and distance == 0:
            return math.nan if n_second > 0 else 0.0
        ratio = self.ratio
        if self.order is not None and n_second > 0:
            ratio = max((n_steps / n_second) ** self.order, _LEAST_RATIO)
        return distance if ratio is None else distance / (ratio - 1)

    def describe(self) -> str:
        """Return the second run in words, for the record."""
        options = self.integrator.settings()
        if "step_size" in options:
            return f"{self.integrator.name}(step_size={options['step_size']})"
        return f"{self.integrator.name}(rtol={options['rtol']:g}, atol={options['atol']:g})"


def second_run(integrator: Integrator, dtype: torch.dtype) -> SecondRun:
    """Return the run that tells the error of a method's run, and doesn't cost more.

    - Beside a method that sizes its steps by its error: the same at ten times the tolerance, by the steps of both.
    - Beside one whose steps its stability may size, too, so that the numbers of steps say little: as before, with the
      ratio of errors that was measured.
    - Beside `auto`, as beside the latter: its two methods at ten times their tolerances.
    - Beside one of order three or more without a tolerance: `dopri5` at a tolerance that is far below its errors.

    Parameters
    ----------
    integrator : Integrator
        The first run's.
    dtype : torch.dtype
        Of θ.

    Raises
    ------
    InvalidInputError
        If there is none: for an optimiser, for a method of first order, and for another library's.
    """
    if isinstance(integrator, Switching):
        stiff, explicit = integrator.stiff, integrator.explicit
        of_stiff = stiff.own_step_rule.resolve(stiff)
        looser_pair = _looser(explicit, explicit.own_step_rule.resolve(explicit), dtype)
        looser_stiff = _looser(stiff, of_stiff, dtype)
        rtol, atol = looser_stiff.rtol, looser_stiff.atol
        both = Switching(looser_stiff, looser_pair, integrator.explicit_first, {"rtol": rtol, "atol": atol})
        return SecondRun(both, ratio=_CAPPED_RATIO, control=of_stiff)
    rule = integrator.step_rule
    if isinstance(rule, ErrorControl) and isinstance(integrator, FlowMethod):
        looser: FlowMethod = _looser(integrator, rule, dtype)
        if rule.cap is None:
            return SecondRun(looser, order=integrator.order, control=rule)
        return SecondRun(looser, ratio=_CAPPED_RATIO, control=rule)
    _refuse(integrator)
    return SecondRun(DormandPrince5(rtol=max(_RTOL, least_rtol(dtype)), atol=0.01 * _RTOL))


def _looser(integrator: M, rule: ErrorControl, dtype: torch.dtype) -> M:
    """Return the same method at ten times the tolerance; a bound on its steps grows as they do."""
    assert rule.order is not None
    options = {
        "rtol": _LOOSER * max(rule.rtol, least_rtol(dtype)),
        "atol": _LOOSER * rule.atol,
        "max_step": _LOOSER ** (1 / rule.order) * rule.max_step,
    }
    if isinstance(integrator.step_size, ErrorControl):
        return dataclasses.replace(integrator, step_size=dataclasses.replace(integrator.step_size, **options))
    return dataclasses.replace(integrator, **options)


def _refuse(integrator: Integrator) -> None:
    """Refuse an error estimate of a method's run, and say what would do."""
    what = f"error_estimate=True has no second run beside {integrator.name}"
    if integrator.discrete:
        raise InvalidInputError(
            f"{what}, which is an optimiser: its steps are what it does, and approximate no flow. Leave it out. To see "
            'how far it is from the flow, run method="auto" too, and gradflow.compare both.'
        )
    if not isinstance(integrator, FlowMethod):
        raise InvalidInputError(
            f"{what}, whose tolerance gradflow can't change. Use a method with an error control of gradflow's own: "
            "auto, exprb43, exprb32, rkc, dopri5, tsit5."
        )
    if integrator.order < _LEAST_ORDER:
        raise InvalidInputError(
            f"{what} at steps without an error control, where its order is {integrator.order}: what is more accurate "
            'costs more. Use auto, or give it an error control: step_size="ErrorControl(rtol=1e-4)".'
        )
