"""How large a step: small objects that an integrator has one of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gradflow.flows.field import Point
from gradflow.plain import restorable
from gradflow.spectrum import Eigenpairs


class NoUsableSharpness(ArithmeticError):
    """The eigensolver returned no finite λ₁, so that no step can be sized."""


@dataclass(frozen=True)
class Proposal:
    """A step size, and what it was sized with.

    Attributes
    ----------
    h : float
        Greater than 0; may be infinite where nothing limits it.
    pairs : Eigenpairs or None
        Those of the measurement that it rests on.
    state : Any
        The rule's state from here on.
    """

    h: float
    pairs: Eigenpairs | None
    state: Any


class StepRule(Protocol):
    """Proposes the size of each step.

    A rule is a value: what it learns along the way is in the state that it returns.
    """

    def init(self) -> Any:
        """Return the state before the first step."""

    def propose(self, point: Point, t: float, step: int, state: Any, *, fresh: bool = False) -> Proposal:
        """Propose the step from `point`.

        Parameters
        ----------
        point : Point
        t : float
        step : int
            Accepted steps so far.
        state : Any
        fresh : bool
            The last proposal was rejected here: measure again rather than trust what is older.
        """


@dataclass(frozen=True)
class FixedStep:
    """Every step has size h; times are k·h exactly."""

    h: float

    def init(self) -> None:
        """No state."""

    def propose(self, point: Point, t: float, step: int, state: None, *, fresh: bool = False) -> Proposal:
        """Propose h."""
        return Proposal(self.h, None, None)


@dataclass(frozen=True)
class Nominal:
    """Steps of an optimiser whose learning rate changes: h at first, later what the step says."""

    h: float

    def init(self) -> None:
        """No state."""

    def propose(self, point: Point, t: float, step: int, state: None, *, fresh: bool = False) -> Proposal:
        """Propose h."""
        return Proposal(self.h, None, None)


@dataclass(frozen=True)
class NoLimit:
    """The method's own error control is all that limits the step."""

    def init(self) -> None:
        """No state."""

    def propose(self, point: Point, t: float, step: int, state: None, *, fresh: bool = False) -> Proposal:
        """Propose any size."""
        return Proposal(math.inf, None, None)


@restorable
@dataclass(frozen=True)
class _Measured:
    pairs: Eigenpairs
    t: float
    valid_for: float


@dataclass(frozen=True)
class SharpnessCap:
    """h = min(alpha/λ₁, max_step), λ₁ measured again as the run goes.

    Where λ₁ ≤ 0, max|λ| takes its place: it bounds how fast the flow can turn there.

    Parameters
    ----------
    alpha : float
    max_step : float
    every : float or None
        No step begins that would end later than this after the last measurement; None: ten steps.
    tol : float
        Residual to which λ₁ is measured.
    """

    alpha: float
    max_step: float
    every: float | None
    tol: float = 1e-2

    def init(self) -> _Measured | None:
        """Nothing is measured yet."""
        return None

    def propose(
        self, point: Point, t: float, step: int, state: _Measured | None, *, fresh: bool = False
    ) -> Proposal:
        """Propose alpha/λ₁, capped."""
        if state is not None and not fresh:
            h = self._size(state.pairs)
            if t + h <= state.t + state.valid_for * (1 + 1e-9):
                return Proposal(h, state.pairs, state)
        pairs = usable(point.top(1, tol=self.tol))
        h = self._size(pairs)
        # What is kept from step to step is λ₁ alone, not its eigenvector.
        kept = Eigenpairs(
            pairs.values, pairs.vectors[:, :0], pairs.residuals, 0, pairs.converged, pairs.scale
        )
        valid_for = 10 * h if self.every is None else self.every
        return Proposal(h, pairs, _Measured(kept, t, valid_for))

    def _size(self, pairs: Eigenpairs) -> float:
        sharpness = float(pairs.values[0])
        rate = sharpness if sharpness > 0 else pairs.scale
        return min(divide(self.alpha, rate), self.max_step)


@dataclass(frozen=True)
class BulkCap:
    """h = min(1/|λ_{k+1}|, max_step): the stability of Euler on all but the top k eigenvectors.

    Lowell & Kastner (2024). The first `warmup_iters` steps have `warmup_factor` · max_step for max_step.

    Parameters
    ----------
    k : int
        Dimension of the subspace that is integrated exactly.
    max_step : float
    warmup_iters : int
    warmup_factor : float
    tol : float
        Residual to which the eigenpairs are measured.
    """

    k: int
    max_step: float
    warmup_iters: int
    warmup_factor: float
    tol: float

    def init(self) -> None:
        """No state."""

    def propose(self, point: Point, t: float, step: int, state: None, *, fresh: bool = False) -> Proposal:
        """Propose 1/|λ_{k+1}|, capped."""
        P = point.theta.numel()
        pairs = usable(point.top(min(self.k + 1, P), tol=self.tol))
        max_step = self.max_step * (self.warmup_factor if step < self.warmup_iters else 1.0)
        if self.k >= P:
            return Proposal(max_step, pairs, None)
        return Proposal(min(divide(1.0, abs(float(pairs.values[self.k]))), max_step), pairs, None)


def usable(pairs: Eigenpairs) -> Eigenpairs:
    """Refuse eigenpairs that aren't numbers."""
    if not bool(torch.isfinite(pairs.values).all()):
        raise NoUsableSharpness(f"the eigensolver returned λ = {pairs.values.tolist()}")
    return pairs


def divide(a: float, b: float) -> float:
    """a/b for b ≥ 0, infinite where b is 0 or too small to divide by."""
    return a / b if b > a / 1e300 else math.inf
