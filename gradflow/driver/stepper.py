"""One accepted step after another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradflow.autocast import without_autocast
from gradflow.driver.clock import Clock, fit_step, underflows
from gradflow.errors import InvalidInputError, InvalidTypeError, NonFiniteLossError
from gradflow.flows import Field, Point
from gradflow.flows.point import all_finite
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.doubling import StepDoubling
from gradflow.integrators.step_size import ErrorControl, FixedStep, Proposal, StepSize
from gradflow.loss import Evaluation
from gradflow.spectrum import Eigenpairs
from gradflow.status import NumericalFailure, Status

#: Attempts at one step, and those of them that are rejected because the loss rose.
_MAX_ATTEMPTS, _MAX_LOSS_REJECTIONS = 40, 3


@dataclass(frozen=True)
class StepReport:
    """An accepted step: its time, size and cost, and what the method knew where it started.

    Attributes
    ----------
    step : int
        Accepted steps so far, this one included.
    t, dt : float
        Time at the end of the step, and its size.
    loss : float
        Loss before the step; that of the mini-batch where the step saw no more.
    sharpness : float
        λ₁ that the step was sized with, or came by; NaN where there is none that has converged. Along another flow
        than the gradient's: the flow's largest rate.
    eigenvalues : Tensor, shape (k,), float64, on the CPU
        Those that the step was sized with, largest first; empty for a method that measures none.
    n_gradients, n_hvps : int
        Cumulative cost; the gradient at the end of the step, which the next one starts from, is counted.
    n_rejected : int
        Rejected attempts so far.
    theta : Tensor, shape (P,)
        θ at the end of the step: the run's own, never to be written to.
    gradient : Tensor, shape (P,), or None
        Before the step, when asked for.
    eigenvectors : Tensor, shape (P, k), or None
        When asked for, and measured for this step.
    """

    step: int
    t: float
    dt: float
    loss: float
    sharpness: float
    eigenvalues: Tensor
    n_gradients: int
    n_hvps: int
    n_rejected: int
    theta: Tensor = field(repr=False)
    gradient: Tensor | None = field(default=None, repr=False)
    eigenvectors: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Start:
    """Where a step started: point, where it is needed, and integrator's state; from when to when, and its size."""

    point: Point | None
    state: Any
    t: float
    end: float
    h: float


class Stepper:
    """Advances a flow's state by accepted steps: the one place where steps are taken and judged.

    A step is proposed by the method's step-size controller, fitted before the times that must be hit, and taken by
    the method. It is rejected if its error is too large, which the controller judges, or if it raises a loss that the
    flow can't raise.

    Parameters
    ----------
    integrator : Integrator
        With its options resolved.
    field : Field
        The flow, of the loss.
    theta : Tensor, shape (P,)
        Where to start. Never written.

    Raises
    ------
    NonFiniteLossError
        If loss or velocity at `theta` aren't finite.
    InvalidInputError
        If the flow can't be followed from `theta`.

    Attributes
    ----------
    t : float
    n_steps, n_rejected, n_loss_increases : int
        Accepted steps, rejected attempts, and steps that were accepted although they raised the loss.
    point : Point
        The present state with what is known there.
    before : Start or None
        Where the last step started.
    result : StepResult or None
        Of the last step.
    error_if_unstable : bool
        Fail on a step that raises the loss instead of accepting it.
    """

    @without_autocast()
    def __init__(self, integrator: Integrator, field: Field, theta: Tensor) -> None:
        rule = integrator.step_rule
        if not isinstance(rule, StepSize):
            raise InvalidTypeError(
                f"Expected {integrator.name}.step_rule to give a gradflow.integrators.step_size.StepSize, got "
                f"{type(rule).__name__}. Derive it from StepSize, which has its contract."
            )
        rule = rule.resolve(integrator)
        if isinstance(rule, ErrorControl) and integrator.error_order is None:
            integrator = StepDoubling(integrator)
        self.integrator = integrator
        self.field = field
        self.n_steps = self.n_rejected = self.n_loss_increases = 0
        self.point: Point = field.start(theta.detach())
        self.before: Start | None = None
        self.result: StepResult | None = None
        self.error_if_unstable = False
        self._rule = rule
        self._clock = Clock()
        try:
            finite = self.point.is_finite
        except NumericalFailure as failure:
            if self._has_finite_loss:
                raise InvalidInputError(
                    f"The flow {field.flow.name!r} can't start here. {failure.message}"
                ) from failure
            finite = False
        if not finite:
            if self._has_finite_loss:
                raise NonFiniteLossError(
                    f"Expected a finite velocity of the flow {field.flow.name!r} at the initial θ, got NaN or inf; "
                    "loss and gradient are finite there."
                )
            raise NonFiniteLossError(
                f"Expected a finite loss and gradient at the initial θ, got loss {self.point.loss}. Check the data for "
                "NaN or inf, and the scale of the weights."
            )
        refusal = field.flow.refusal(self.point)
        if refusal is not None:
            raise InvalidInputError(f"The flow {field.flow.name!r} can't start here: {refusal}.")
        self._state = integrator.init(self.point)
        self._control: Any = None
        self._started = False

    @property
    def _has_finite_loss(self) -> bool:
        """Whether loss and gradient are finite."""
        return math.isfinite(self.point.loss) and all_finite(self.point.gradient)

    @property
    def t(self) -> float:
        """Time now."""
        return self._clock.t

    @without_autocast()
    def advance(
        self, target: float = math.inf, *, with_gradient: bool = False, with_eigenvectors: bool = False
    ) -> StepReport:
        """Take one accepted step.

        Parameters
        ----------
        target : float
            A time that must not be stepped over, and is hit when it is near. Discrete methods ignore it.
        with_gradient, with_eigenvectors : bool
            Put them into the report.

        Raises
        ------
        NumericalFailure
            If there is no good state to step to; the present one stays.
        """
        self.result = self.before = None  # with its interpolant, which may hold what the step was computed in
        self._start()
        limit, n_rises = math.inf, 0
        for _ in range(_MAX_ATTEMPTS):
            proposal = self._rule.propose(self.point, self.t, self.n_steps, self._control, fresh=n_rises > 0)
            self._control = proposal.state
            h, lands = self._fit(proposal, limit, target)
            result = self.integrator.step(self.point, h, self._state)
            self.n_rejected += result.n_rejected
            taken = h if result.h is None else result.h
            self._check_size(taken)
            accepted, self._control = self._rule.judge(self.point, h, result, self._control)
            if accepted:
                new = self.field.at(result.z) if result.end is None else result.end
                rises = self._looks_ahead and self._rises(new)
                if not rises or not self._rejects_rise or n_rises == _MAX_LOSS_REJECTIONS:
                    self._check_end(new, taken, rises=rises)
                    self.n_loss_increases += rises and self._rejects_rise
                    landed = target if lands and taken >= h else None
                    return self._accept(
                        proposal, taken, landed, result, new, with_gradient, with_eigenvectors
                    )
                n_rises, limit = n_rises + 1, taken / 2
                self._control = self._rule.after_loss_increase(taken, self._control)
            self.n_rejected += 1
            self._state = self.integrator.after_rejection(self.point, self._state)
        raise NumericalFailure(
            Status.STEP_UNDERFLOW,
            f"{self.integrator.name}: {_MAX_ATTEMPTS} attempts were rejected, the last of size {taken:.3g}",
        )

    def _start(self) -> None:
        """Let the controller begin, before the first step."""
        if not self._started:
            self._control = self._rule.init(
                self.point, lambda: self.integrator.first_size(self.point, self._state)
            )
            self._started = True

    @property
    def _looks_ahead(self) -> bool:
        """Whether the loss at a step's end is looked at: not if it is no part of the method, or may be anything."""
        return not (self.integrator.stochastic or self.integrator.allows_nonfinite)

    @property
    def _rejects_rise(self) -> bool:
        """Whether a step that raises the loss is taken again."""
        return self.integrator.rejects_loss_increase and not self.field.flow.raises_loss

    def _fit(self, proposal: Proposal, limit: float, target: float) -> tuple[float, bool]:
        """Return the size to try, and whether the step lands on the target."""
        h, cap = min(proposal.h, limit), min(proposal.cap, limit)
        if self.integrator.discrete:
            return h, False
        h, lands = fit_step(h, cap, self.t, target)
        if not (math.isinf(h) and self.integrator.limits_itself):
            self._check_size(h)
        return h, lands

    def _check_size(self, h: float) -> None:
        if self.integrator.discrete and h == 0:  # to which a scheduler may take a learning rate
            return
        if not math.isfinite(h):
            raise NumericalFailure(Status.NO_SHARPNESS, "no sharpness, no max_step and no time to land on")
        if underflows(h, self.t):
            raise NumericalFailure(Status.STEP_UNDERFLOW, f"step of {h:.3g} at t = {self.t:.6g}")

    def _rises(self, new: Point) -> bool:
        """Whether the loss rose by more than rounding and tolerance, or isn't finite."""
        if not new.is_finite:
            return True
        if self.field.flow.raises_loss:
            return False
        before = self.point.loss
        rounding = 50 * torch.finfo(self.point.z.dtype).eps
        return new.loss > before + max(rounding, self.integrator.loss_tolerance) * abs(before)

    def _check_end(self, new: Point, h: float, *, rises: bool) -> None:
        """Refuse a step to where nothing is finite, or, if that is asked for, one that raised the loss."""
        if not (new.is_finite if self._looks_ahead else all_finite(new.z)):
            led_to = f"a loss of {new.loss}" if self._looks_ahead else "parameters that aren't finite"
            raise NumericalFailure(
                Status.NOT_FINITE, f"a step of {h:.3g} from t = {self.t:.6g} led to {led_to}"
            )
        refusal = self.field.flow.refusal(new)
        if refusal is not None:
            raise NumericalFailure(
                Status.LEFT_MODEL, f"a step of {h:.3g} from t = {self.t:.6g} led there: {refusal}"
            )
        if rises and self.error_if_unstable:
            detail = f"a step of {h:.3g} from t = {self.t:.6g} took it from {self.point.loss:.6g} to {new.loss:.6g}"
            raise NumericalFailure(Status.UNSTABLE, detail)

    def _accept(
        self,
        proposal: Proposal,
        h: float,
        landed_on: float | None,
        result: StepResult,
        new: Point,
        with_gradient: bool,
        with_eigenvectors: bool,
    ) -> StepReport:
        before, before_t, before_state, self.point = self.point, self.t, self._state, new
        if result.pairs is not None and result.pairs.vectors.shape[1] and before.z is before.theta:
            self.field.spectrum.warm_start(before.theta, result.pairs.vectors)
        self.result, self._state = result, result.state
        self.n_steps += 1
        if landed_on is not None:
            self._clock.set(landed_on)
        elif self.integrator.discrete and isinstance(self._rule, FixedStep) and self._rule.exact:
            self._clock.set(self.n_steps * h)
        else:
            self._clock.add(h)
        stays = result.interpolant is None and not self.integrator.discrete  # its graph may be large
        self.before = Start(before if stays else None, before_state, before_t, self.t, h)
        pairs = proposal.pairs if result.pairs is None else result.pairs
        values = _trusted(pairs, by_product=result.pairs is not None)
        measured = with_eigenvectors and pairs is not None and pairs.vectors.shape[1] == len(pairs)
        return StepReport(
            step=self.n_steps,
            t=self.t,
            dt=h,
            loss=before.loss if result.loss is None else result.loss,
            sharpness=float(values[0]) if len(values) else math.nan,
            eigenvalues=values,
            n_gradients=self.field.cost.n_gradients,
            n_hvps=self.field.cost.n_hvps,
            n_rejected=self.n_rejected,
            theta=new.theta,
            gradient=before.gradient if with_gradient else None,
            eigenvectors=pairs.vectors[:, : len(values)] if measured and pairs is not None else None,
        )

    def within(self, t: float) -> Tensor:
        """Return the state at a time within the last step: of its interpolant, or at the end of a shorter step."""
        assert self.before is not None
        assert self.result is not None
        start = self.before
        with self.field.looking():
            if self.result.interpolant is not None:
                return self.result.interpolant(1.0 - (start.end - t) / start.h)
            assert start.point is not None
            return self.integrator.step(start.point, t - start.t, start.state).z

    def steps_taken(self, t: float) -> float:
        """Return the accepted steps up to a time: of the last one, the part."""
        return self.n_steps if self.before is None else self.n_steps - (self.before.end - t) / self.before.h

    @without_autocast()
    def cut_short(self, t: float) -> None:
        """Go back to a time within the last step, where the run is to end."""
        self.point = self.field.at(self.within(t))
        self._clock.set(t)

    def remarks(self) -> dict[str, str]:
        """Return what the method has to say of its steps."""
        return self.integrator.remarks(self._state)

    def preconditioner(self) -> Tensor | None:
        """Return the diagonal of the method's preconditioner, shape (P,), as it is now."""
        return self.integrator.preconditioner(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run's continuation depends on: what :mod:`gradflow.plain` can hold."""
        return {
            "z": self.point.z,
            "known": None if self.point.known_value is None else tuple(self.point.known_value),
            "linearized": self.point.known_linearization is not None,
            "moving": self.point.known_velocity is not None,
            "clock": self._clock.state(),
            "n_steps": self.n_steps,
            "n_rejected": self.n_rejected,
            "n_loss_increases": self.n_loss_increases,
            "integrator": self.integrator.state_dict(self._state),
            "control": (self._started, self._control),
            "field": self.field.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, as if nothing had happened."""
        known = state["known"]
        self.field.load_state_dict(state["field"])  # what the velocity starts from
        self.point = self.field.at(state["z"], None if known is None else Evaluation(*known))
        if state["linearized"]:
            _ = self.point.linearization  # whose graph a checkpoint can't hold
        if state["moving"]:
            _ = self.point.velocity  # which may take products
        self._state = self.integrator.load_state(state["integrator"], self.point)
        self._started, self._control = state["control"]
        self._clock.restore(state["clock"])
        self.n_steps, self.n_rejected = state["n_steps"], state["n_rejected"]
        self.n_loss_increases = state["n_loss_increases"]
        self.field.load_state_dict(state["field"])  # last: what was computed again isn't counted


def _trusted(pairs: Eigenpairs | None, *, by_product: bool) -> Tensor:
    """Return the eigenvalues to report: those of a step's by-products have converged, or may be far from any."""
    if pairs is None:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    if not by_product:
        return pairs.values
    return pairs.values[: int(pairs.converged.long().cumprod(0).sum())]
