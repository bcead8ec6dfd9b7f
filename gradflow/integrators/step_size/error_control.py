"""Steps whose size follows an estimate of the error."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import IntegrationWarning, InvalidTypeError
from gradflow.flows import Point
from gradflow.integrators.step_size.base import Proposal, StepSize, norm, safe_divide
from gradflow.integrators.step_size.sharpness import SharpnessCap
from gradflow.plain import restorable

if TYPE_CHECKING:
    from gradflow.integrators.base import Integrator, StepResult

_SAFETY = 0.9
_SHRINK, _GROW = 0.1, 5.0
#: In the first step, whose size is a guess, an attempt that could have been this much longer is taken again.
_TOO_SMALL, _GROW_FIRST, _ENLARGEMENTS = 2.0, 1e3, 8
_LARGEST = 1e100
#: Smallest rtol in machine epsilons: a tenth of it, which the φ-functions are computed to, is still above rounding.
_LEAST = 20


@restorable
@dataclass(frozen=True)
class Control:
    """What the error control carries from attempt to attempt, and from step to step.

    Attributes
    ----------
    size : float
        The step that it would take next.
    grow : float
        What the next size may be over this one at most.
    first : bool
        No step has been accepted.
    n_rejected : int
        Attempts at this step that were rejected.
    cap : Any
        State of the cap.
    """

    size: float
    grow: float = _GROW
    first: bool = False
    n_rejected: int = 0
    cap: Any = None


@dataclass(frozen=True)
class ErrorControl(StepSize):
    """Keeps ‖e‖₂ ≤ atol + rtol·max(‖zₙ‖₂, ‖zₙ₊₁‖₂) for the method's estimate e of a step's error.

    The norm is not divided by √P: an error in one direction counts in full, however many parameters there are.
    The next step is 0.9 h (tolerance/‖e‖)^{1/q} for an estimate of O(h^q), grows at most fivefold, and not
    after a rejection (Hairer, Nørsett & Wanner 1993, II.4). The first step starts from a guess and is taken
    again while it comes out far too short. A method without an estimate is given one by step doubling
    (:class:`gradflow.integrators.doubling.StepDoubling`).

    Parameters
    ----------
    rtol : float, default 1e-4
        Tolerance of a step relative to ‖z‖₂, for most flows ‖θ‖₂.
    atol : float, default 1e-6
        Absolute tolerance of a step, in units of ‖z‖₂.
    max_step : float, default inf
        Largest step in time.
    cap : SharpnessCap, optional
        Bounds every step besides, so that an instability doesn't have to be seen as an error first.
    order : int, optional
        q. Default: the method's.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_step: float = math.inf
    cap: SharpnessCap | None = None
    order: int | None = None

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, least=0)
        check_number("max_step", self.max_step, above=0, finite=False)
        if not isinstance(self.cap, SharpnessCap | None):
            raise InvalidTypeError(f"Expected cap as a SharpnessCap, got {type(self.cap).__name__}.")
        if self.order is not None:
            check_count("order", self.order, least=1)

    def resolve(self, integrator: Integrator) -> Self:
        """Take q from the method: one more than its order, where the estimate is by step doubling."""
        q = integrator.error_order or integrator.order + 1
        cap = None if self.cap is None else self.cap.resolve(integrator)
        return dataclasses.replace(self, order=self.order or q, cap=cap)

    def init(self, point: Point, first_size: Callable[[], float]) -> Control:
        """Bound the method's guess by the time in which z would change by its own length, or by 1."""
        warn_if_unreachable(self.rtol, self.atol, point.z, "is used")
        speed = norm(point.velocity)
        longest = safe_divide(1 + norm(point.z), speed) if speed > 0 else 1.0
        return Control(min(first_size(), longest), _GROW_FIRST, first=True)

    def propose(self, point: Point, t: float, step: int, state: Control, *, fresh: bool = False) -> Proposal:
        """Propose the size that the last error asks for, within the cap."""
        h = min(state.size, self.max_step)
        if self.cap is None:
            return Proposal(h, state=state)
        cap = self.cap.propose(point, t, step, state.cap, fresh=fresh)
        return Proposal(h, cap.h, cap.pairs, dataclasses.replace(state, cap=cap.state))

    def judge(self, point: Point, h: float, result: StepResult, state: Control) -> tuple[bool, Control]:
        """Accept a step whose error is within the tolerance."""
        assert result.error is not None
        assert self.order is not None
        taken = h if result.h is None else result.h
        error = _ratio(result.error, tolerance(self, point, result.z))
        factor = state.grow
        if error > 0:
            factor = min(state.grow, max(_SHRINK, _SAFETY * error ** (-1 / self.order)))
        could_be_longer = factor >= _TOO_SMALL and taken == state.size
        too_small = state.first and could_be_longer and state.n_rejected < _ENLARGEMENTS
        if error <= 1 and not too_small:
            # A step that was cut short, to land on a time, says little about the next.
            size = max(taken * factor, state.size if taken == h < state.size else 0.0)
            return True, Control(min(size, _LARGEST), cap=state.cap)
        grow = 1.0 if error > 1 else state.grow
        n = state.n_rejected + 1
        return False, dataclasses.replace(state, size=taken * factor, grow=grow, n_rejected=n)

    def after_loss_increase(self, h: float, state: Control) -> Control:
        """Go on from half the size."""
        return Control(h / 2, cap=state.cap)


def tolerance(control: Any, point: Point, end: Tensor | None = None) -> float:
    """Return atol + rtol·‖z‖, of the larger z of a step, with the least rtol that z's dtype resolves.

    Parameters
    ----------
    control : object
        With rtol and atol: an :class:`ErrorControl`, or a method that has them as options.
    point : Point
        The step's start.
    end : Tensor, optional
        The state at its end.
    """
    size = point.field.flow.size
    rtol = max(control.rtol, least_rtol(point.z.dtype))
    before = size(point.z)
    return float(control.atol + rtol * (before if end is None else max(before, size(end))))


def least_rtol(dtype: torch.dtype) -> float:
    """Return the least rtol that a dtype resolves."""
    return float(_LEAST * torch.finfo(dtype).eps)


def _ratio(error: float, tol: float) -> float:
    """Return error/tol; infinite where either is not a number that can be trusted."""
    if not (math.isfinite(error) and math.isfinite(tol)):
        return math.inf
    return error / tol if tol > 0 else (0.0 if error == 0 else math.inf)


def warn_if_unreachable(rtol: float, atol: float, z: Tensor, consequence: str) -> None:
    """Warn of a tolerance that is below what z's dtype resolves, and say which isn't."""
    least = least_rtol(z.dtype)
    if rtol < least and atol < least * norm(z):
        warnings.warn(
            f"rtol = {rtol:g} is below what {z.dtype} resolves; rtol = {least:.1e} {consequence}. "
            "Integrate in float64 for less: integrate(loss, params.double(), …).",
            IntegrationWarning,
            stacklevel=2,
        )
