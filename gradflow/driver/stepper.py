"""One accepted step after another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradflow.autocast import without_autocast
from gradflow.collective import agree
from gradflow.driver.clock import Clock, fit_step, underflows
from gradflow.driver.status import NumericalFailure, Status
from gradflow.errors import NonFiniteLossError
from gradflow.flows.field import Flow, Point, all_finite
from gradflow.integrators.base import Integrator, StepResult, StepUnderflow
from gradflow.integrators.step_size.rules import FixedStep, NoUsableSharpness, Proposal

_MAX_REJECTIONS = 3


@dataclass(frozen=True)
class StepReport:
    """What is known of an accepted step.

    Attributes
    ----------
    step : int
        Accepted steps so far, this one included.
    t, dt : float
        Time at the end of the step, and its size.
    loss : float
        Loss before the step; that of the mini-batch where the step saw no more.
    sharpness : float
        λ₁ that the step was sized with, or came by; NaN where there is none that has converged.
    eigenvalues : Tensor, shape (k,), float64, on the CPU
        Those that the step was sized with, largest first; empty for a method that measures none.
    n_gradients, n_hvps : int
        Cumulative cost; the gradient at the end of the step, which the next one starts from, is counted.
    n_rejected : int
        Rejected attempts so far.
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
    gradient: Tensor | None = field(default=None, repr=False)
    eigenvectors: Tensor | None = field(default=None, repr=False)


class Stepper:
    """Advances θ by accepted steps: propose, step, accept or reject.

    Parameters
    ----------
    integrator : Integrator
        With its options resolved.
    flow : Flow
    theta : Tensor, shape (P,)
        Where to start. Never written.

    Raises
    ------
    NonFiniteLossError
        If loss or gradient at `theta` aren't finite.

    Attributes
    ----------
    t : float
    n_steps, n_rejected, n_loss_increases : int
        Accepted steps, rejected attempts, and steps that were accepted although they raised the loss.
    point : Point
        The present θ with what is known there.
    error_if_unstable : bool
        Fail on a step that raises the loss instead of accepting it.
    """

    @without_autocast()
    def __init__(self, integrator: Integrator, flow: Flow, theta: Tensor) -> None:
        self.integrator = integrator
        self.flow = flow
        self.n_steps = self.n_rejected = self.n_loss_increases = 0
        self.point: Point = flow.at(theta.detach())
        self.result: StepResult | None = None
        self.error_if_unstable = False
        self._rule = integrator.step_rule
        self._rule_state = self._rule.init()
        self._clock = Clock()
        if not self.point.is_finite:
            raise NonFiniteLossError(
                f"Expected a finite loss and gradient at the initial θ, got loss {self.point.loss}. Check the data for "
                "NaN or inf, and the scale of the weights."
            )
        self._state = integrator.init(self.point)

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
        self.result = None  # with its interpolant, which may hold what the step was computed in
        h = math.inf
        for attempt in range(_MAX_REJECTIONS + 1):
            proposal = self._propose(fresh=attempt > 0)
            h = min(proposal.h, h / 2)
            discrete = self.integrator.discrete
            h, lands = (h, False) if discrete else fit_step(h, self.t, target)
            if not discrete:
                self._check_size(h)
            result = self._try(h)
            self.n_rejected += result.n_rejected
            if result.h is not None:
                lands, h = lands and result.h >= h, result.h
            if not (discrete and h == 0):  # to which a scheduler may take a learning rate
                self._check_size(h)
            new = self.flow.at(result.theta, result.known)
            rises = self._looks_ahead and self._rises(new)
            if not agree(rises and self.integrator.watches_loss and attempt < _MAX_REJECTIONS):
                break
            self.n_rejected += 1
            self._state = self.integrator.refused(h, self._state)
        if not (new.is_finite if self._looks_ahead else all_finite(new.theta)):
            raise NumericalFailure(
                Status.NOT_FINITE, f"a step of {h:.3g} from t = {self.t:.6g} led to {self._said(new)}"
            )
        if rises and self.error_if_unstable:
            detail = f"a step of {h:.3g} from t = {self.t:.6g} took it from {self.point.loss:.6g} to {new.loss:.6g}"
            raise NumericalFailure(Status.UNSTABLE, detail)
        self.n_loss_increases += rises and self.integrator.watches_loss
        return self._accept(
            proposal, h, target if lands else None, result, new, with_gradient, with_eigenvectors
        )

    @property
    def _looks_ahead(self) -> bool:
        """Whether the loss at a step's end is looked at: not if it is no part of the method, or may be anything."""
        return not (self.integrator.stochastic or self.integrator.recovers)

    def _try(self, h: float) -> StepResult:
        try:
            return self.integrator.step(self.point, h, self._state)
        except StepUnderflow as failure:
            raise NumericalFailure(Status.STEP_UNDERFLOW, str(failure)) from failure
        except NoUsableSharpness as failure:
            raise NumericalFailure(Status.NO_SHARPNESS, str(failure)) from failure

    def _said(self, new: Point) -> str:
        return f"a loss of {new.loss}" if self._looks_ahead else "parameters that aren't finite"

    def _propose(self, *, fresh: bool) -> Proposal:
        try:
            return self._rule.propose(self.point, self.t, self.n_steps, self._rule_state, fresh=fresh)
        except NoUsableSharpness as failure:
            raise NumericalFailure(Status.NO_SHARPNESS, str(failure)) from failure

    def _check_size(self, h: float) -> None:
        if math.isnan(h) or (math.isinf(h) and not self.integrator.limits_itself):
            raise NumericalFailure(Status.NO_SHARPNESS, "no sharpness, no max_step and no time to land on")
        if underflows(h, self.t):
            raise NumericalFailure(Status.STEP_UNDERFLOW, f"step of {h:.3g} at t = {self.t:.6g}")

    def _rises(self, new: Point) -> bool:
        """Whether the loss rose by more than rounding and tolerance; a flow can't raise it."""
        if not new.is_finite:
            return True
        before = self.point.loss
        rounding = 50 * torch.finfo(self.point.theta.dtype).eps
        tolerance = max(rounding, getattr(self.integrator, "loss_rtol", 0.0)) * abs(before)
        return new.loss > before + tolerance

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
        before, self.point = self.point, new
        if result.pairs is not None and result.pairs.vectors.shape[1]:
            self.flow.spectrum.warm_start(before.theta, result.pairs.vectors)
        self.result, self._state, self._rule_state = result, result.state, proposal.state
        self.n_steps += 1
        if landed_on is not None:
            self._clock.set(landed_on)
        elif self.integrator.discrete and isinstance(self._rule, FixedStep):
            self._clock.set(self.n_steps * h)
        else:
            self._clock.add(h)
        pairs = proposal.pairs if result.pairs is None else result.pairs
        measured = with_eigenvectors and pairs is not None and pairs.vectors.shape[1] == len(pairs)
        values = torch.empty(0, dtype=torch.float64, device="cpu") if pairs is None else pairs.values
        # Pairs that are a by-product of the step have Ritz values that may be far from eigenvalues.
        if result.pairs is not None:
            values = values[: int(result.pairs.converged.long().cumprod(0).sum())]
        return StepReport(
            step=self.n_steps,
            t=self.t,
            dt=h,
            loss=before.loss if result.loss is None else result.loss,
            sharpness=float(values[0]) if len(values) else math.nan,
            eigenvalues=values,
            n_gradients=self.flow.cost.n_gradients,
            n_hvps=self.flow.cost.n_hvps,
            n_rejected=self.n_rejected,
            gradient=before.gradient if with_gradient else None,
            eigenvectors=pairs.vectors[:, : len(values)] if measured and pairs is not None else None,
        )

    def preconditioner(self) -> Tensor | None:
        """Return the diagonal of the method's preconditioner, shape (P,), as it is now."""
        return self.integrator.preconditioner(self._state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the run's continuation depends on: what :mod:`gradflow.plain` can hold."""
        return {
            "theta": self.point.theta,
            "known": self.point.known_value,
            "linearized": self.point.known_linearization is not None,
            "clock": self._clock.state(),
            "n_steps": self.n_steps,
            "n_rejected": self.n_rejected,
            "n_loss_increases": self.n_loss_increases,
            "integrator": self.integrator.portable(self._state),
            "step_rule": self._rule_state,
            "flow": self.flow.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave, as if nothing had happened."""
        self.point = self.flow.at(state["theta"], state["known"])
        if state["linearized"]:
            _ = self.point.linearization  # whose graph a checkpoint can't hold
        self._state = self.integrator.restore(state["integrator"], self.point)
        self._rule_state = state["step_rule"]
        self._clock.restore(state["clock"])
        self.n_steps, self.n_rejected = state["n_steps"], state["n_rejected"]
        self.n_loss_increases = state["n_loss_increases"]
        self.flow.load_state_dict(state["flow"])  # last: what was computed again isn't counted
