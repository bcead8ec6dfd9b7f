"""The contract of a step-size controller."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from gradflow.flows import Point
from gradflow.spectrum import Eigenpairs
from gradflow.status import NumericalFailure, Status

if TYPE_CHECKING:
    from gradflow.integrators.base import Integrator, StepResult


@dataclass(frozen=True)
class Proposal:
    """A step size, and what it rests on.

    Attributes
    ----------
    h : float
        The size that is wanted, greater than 0; infinite where nothing limits it.
    cap : float
        The largest size at which the step is stable.
    pairs : Eigenpairs or None
        The measured rates that it rests on.
    state : Any
        The controller's state from here on.
    """

    h: float
    cap: float = math.inf
    pairs: Eigenpairs | None = None
    state: Any = None


@dataclass(frozen=True)
class StepSize(ABC):
    """Proposes the size of each step, and judges the step.

    A value: what it learns along the way is in the state that it returns. The driver fits a proposal between the
    times that must be hit, lets the method take the step, has it judged here, and then looks at the loss itself.
    """

    def resolve(self, integrator: Integrator) -> Self:
        """Fill in what depends on the method; raise :class:`gradflow.errors.InvalidInputError` if it can't do it."""
        return self

    def init(self, point: Point, first_size: Callable[[], float]) -> Any:
        """Return the state before the first step.

        Parameters
        ----------
        point : Point
        first_size : callable
            The method's guess of the first step's size, on the small side.
        """
        return None

    @abstractmethod
    def propose(self, point: Point, t: float, step: int, state: Any, *, fresh: bool = False) -> Proposal:
        """Propose the size of the step from `point`.

        Parameters
        ----------
        point : Point
        t : float
        step : int
            Accepted steps so far.
        state : Any
        fresh : bool
            The last step from here raised the loss: measure again rather than trust what is older.
        """

    def judge(self, point: Point, h: float, result: StepResult, state: Any) -> tuple[bool, Any]:
        """Return whether a step's error is within the tolerance, and the state from here on.

        Parameters
        ----------
        point : Point
            Where the step started.
        h : float
            The size that was asked for; the step's own is ``result.h`` if it is smaller.
        result : StepResult
        state : Any
        """
        return True, state

    def after_loss_increase(self, h: float, state: Any) -> Any:
        """Return the state from which to go on after a step of size h raised the loss."""
        return state


def check_finite(pairs: Eigenpairs) -> Eigenpairs:
    """Refuse rates that aren't numbers: no step can be sized by them."""
    if not bool(torch.isfinite(pairs.values).all()):
        raise NumericalFailure(Status.NO_SHARPNESS, f"the eigensolver returned λ = {pairs.values.tolist()}")
    return pairs


def safe_divide(a: float, b: float) -> float:
    """a/b for b ≥ 0, infinite where b is 0 or too small to divide by."""
    return a / b if b > a / 1e300 else math.inf


def norm(z: Tensor) -> float:
    """2-norm, summed in float64."""
    return float(torch.linalg.vector_norm(z, dtype=torch.float64))
