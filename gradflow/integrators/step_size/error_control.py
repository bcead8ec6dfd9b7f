"""Steps whose size follows an embedded error estimate."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.checks import check_number
from gradflow.errors import IntegrationWarning
from gradflow.flows.field import Point
from gradflow.integrators.base import Integrator, StepResult, StepUnderflow
from gradflow.integrators.step_size.rules import NoLimit, divide
from gradflow.plain import restorable
from gradflow.spectrum import Eigenpairs

_SAFETY = 0.9
_SHRINK, _GROW = 0.1, 5.0
#: In the first step, whose size is a guess, an attempt that could have been this much longer is taken again.
_TOO_SMALL, _GROW_FIRST, _ENLARGEMENTS = 2.0, 1e3, 8
_MAX_ATTEMPTS = 40
_LARGEST = 1e100
#: Smallest rtol in machine epsilons: a tenth of it, which the φ-functions are computed to, is still above rounding.
_LEAST = 20


@dataclass(frozen=True)
class Attempt:
    """A step that was tried.

    Attributes
    ----------
    theta : Tensor, shape (P,)
    h : float
        Its size; less than was asked for where the method can't do that much.
    error : float
        Estimate of the local error, in units of θ.
    interpolant : callable
        θ at the fraction s ∈ [0, 1].
    known : (Tensor, Tensor) or None
        Loss and gradient at θ, where the attempt computed them.
    """

    theta: Tensor
    h: float
    error: float
    interpolant: Callable[[float], Tensor]
    known: tuple[Tensor, Tensor] | None = None


@restorable
@dataclass(frozen=True)
class Control:
    """What the error control carries from step to step.

    Attributes
    ----------
    size : float or None
        The step that it would take next; None before the first.
    memory : Any
        What the method carries.
    """

    size: float | None = None
    memory: Any = None


@dataclass(frozen=True)
class ErrorControlled(Integrator):
    """A method with an embedded error estimate e, which keeps ‖e‖₂ ≤ atol + rtol·max(‖θₙ‖₂, ‖θₙ₊₁‖₂).

    The norm is not divided by √P: an error in one direction counts in full, however many parameters there are.
    The next step is 0.9 h (tolerance/‖e‖)^{1/q} for an estimate of O(h^q), grows at most fivefold, and not
    after a rejection (Hairer, Nørsett & Wanner 1993, II.4). The first step starts from a guess and is taken
    again while it comes out far too short.

    Parameters
    ----------
    rtol : float, default 1e-4
        Tolerance of a step relative to ‖θ‖₂.
    atol : float, default 1e-6
        Absolute tolerance of a step, in units of ‖θ‖₂.
    max_step : float, default inf
        Largest step in time.
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    max_step: float = math.inf
    loss_rtol: float = 0.0

    interpolates: ClassVar[bool] = True
    limits_itself: ClassVar[bool] = True
    error_norm: ClassVar[str | None] = "l2"
    error_order: ClassVar[int]  # q

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, least=0)
        check_number("max_step", self.max_step, above=0, finite=False)
        check_number("loss_rtol", self.loss_rtol, least=0)

    @property
    def step_rule(self) -> NoLimit:
        """The error control alone."""
        return NoLimit()

    @abstractmethod
    def prepare(self, point: Point, memory: Any) -> Any:
        """Compute what all attempts at a point need; `memory` is what the step before carried here."""

    @abstractmethod
    def first_size(self, point: Point, work: Any) -> float:
        """Guess the size of the first step, on the small side."""

    @abstractmethod
    def attempt(self, point: Point, work: Any, h: float, tol: float) -> Attempt:
        """Try a step of size h; `tol` is the tolerance in units of θ."""

    def missed(self, point: Point, work: Any) -> Any:
        """Compute anew what may have been wrong in an attempt that missed its tolerance."""
        return work

    def memory(self, work: Any) -> Any:
        """Return what is carried to the next step."""
        return None

    def pairs(self, work: Any) -> Eigenpairs | None:
        """Return top eigenpairs of the Hessian at the step's start, where the method came by them."""
        return None

    def init(self, point: Point) -> Control:
        """Nothing is known yet; say so if the tolerance can't be met in θ's dtype."""
        warn_if_unreachable(self.rtol, self.atol, point.theta, "is used")
        return Control()

    def step(self, point: Point, h: float, state: Control) -> StepResult:
        """Take one step of at most h that the error control accepts."""
        work = self.prepare(point, state.memory)
        size_θ, q = norm(point.theta), self.error_order
        rtol = max(self.rtol, _LEAST * torch.finfo(point.theta.dtype).eps)
        first = state.size is None
        size = self._first_size(point, work) if state.size is None else state.size
        grow = _GROW_FIRST if first else _GROW
        n_rejected = 0
        while True:
            trial = min(size, h, self.max_step)
            trial = h if h - trial <= 1e-9 * trial else trial  # lands on h in spite of rounding
            attempt = self.attempt(point, work, trial, self.atol + rtol * size_θ)
            tol = self.atol + rtol * max(size_θ, norm(attempt.theta))
            error = _ratio(attempt.error, tol)
            factor = min(grow, max(_SHRINK, _SAFETY * error ** (-1 / q))) if error > 0 else grow
            too_small = first and factor >= _TOO_SMALL and attempt.h == size and n_rejected < _ENLARGEMENTS
            if error <= 1 and not too_small:
                break
            n_rejected += 1
            if n_rejected == _MAX_ATTEMPTS:
                raise StepUnderflow(
                    f"{self.name}: {n_rejected} attempts were rejected, the last of size {attempt.h:.3g}"
                )
            size = attempt.h * factor
            if error > 1:
                grow = 1.0
                work = self.missed(point, work)
        # A step that was cut short, to land on a time, says little about the next.
        size = max(attempt.h * factor, size if attempt.h == trial < size else 0.0)
        return StepResult(
            attempt.theta,
            attempt.interpolant,
            error=error,
            state=Control(min(size, _LARGEST), self.memory(work)),
            h=attempt.h,
            known=attempt.known,
            n_rejected=n_rejected,
            pairs=self.pairs(work),
        )

    def _first_size(self, point: Point, work: Any) -> float:
        """Bound the method's guess by the time in which θ would change by its own length, or by 1."""
        speed = norm(point.gradient)
        return min(self.first_size(point, work), divide(1 + norm(point.theta), speed) if speed > 0 else 1.0)

    def refused(self, h: float, state: Control) -> Control:
        """Go on from half the size, and from nothing that was carried along."""
        return Control(h / 2)


def _ratio(error: float, tol: float) -> float:
    """Return error/tol; infinite where either is not a number that can be trusted."""
    if not (math.isfinite(error) and math.isfinite(tol)):
        return math.inf
    return error / tol if tol > 0 else (0.0 if error == 0 else math.inf)


def warn_if_unreachable(rtol: float, atol: float, theta: Tensor, consequence: str) -> None:
    """Say so if a tolerance is below what θ's dtype resolves, and which isn't."""
    least = _LEAST * torch.finfo(theta.dtype).eps
    if rtol < least and atol < least * norm(theta):
        warnings.warn(
            f"rtol = {rtol:g} is below what {theta.dtype} resolves; rtol = {least:.1e} {consequence}. "
            "Integrate in float64 for less: integrate(loss, params.double(), …).",
            IntegrationWarning,
            stacklevel=2,
        )


def norm(theta: Tensor) -> float:
    """2-norm, summed in float64."""
    return float(torch.linalg.vector_norm(theta, dtype=torch.float64))
