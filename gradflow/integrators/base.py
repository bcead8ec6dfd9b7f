"""The contract of an integrator."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from gradflow.flows.field import Point
from gradflow.integrators.step_size.rules import StepRule
from gradflow.loss import LossFunction
from gradflow.spectrum import Eigenpairs


@dataclass(frozen=True)
class StepResult:
    """What a step returns.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        θ at the end of the step; a new tensor.
    interpolant : callable or None
        ``interpolant(s)`` gives θ at the fraction s ∈ [0, 1] of the step, to the method's order. A method
        without one lands on the times at which it is to be recorded.
    error : float or None
        Estimate of the local error over its tolerance; a step is accepted at ≤ 1. None: no estimate.
    state : Any
        The integrator's state from here on.
    h : float or None
        Size of the step, where it is smaller than the one asked for. None: as asked for.
    known : (Tensor, Tensor) or None
        Loss, shape (), and gradient, shape (P,), at the end of the step, where the step computed them.
    n_rejected : int
        Attempts that the method's own error control rejected.
    pairs : Eigenpairs or None
        Top eigenpairs of the Hessian at the step's start, where the step came by them.
    loss : float or None
        Loss at the step's start, where the step saw a part of the data alone.
    """

    theta: Tensor
    interpolant: Callable[[float], Tensor] | None = None
    error: float | None = None
    state: Any = None
    h: float | None = None
    known: tuple[Tensor, Tensor] | None = None
    n_rejected: int = 0
    pairs: Eigenpairs | None = None
    loss: float | None = None


class StepUnderflow(ArithmeticError):
    """An error-controlled method can't meet its tolerance with any step that advances t."""


@dataclass(frozen=True)
class Integrator(ABC):
    """A method that advances θ along the gradient flow.

    To add one:

    1. A frozen dataclass in a file of its own, named as the method; its fields are its options, each with
       its line under *Parameters* in the docstring, or in a base's (the command line takes its help from there).
    2. ``__post_init__`` checks the options and raises :class:`gradflow.errors.InvalidInputError`.
    3. ``name``, ``order`` (of convergence), ``discrete`` (an optimiser: one record a step, doesn't land on
       save times), ``keep_graph`` (products are
       wanted at every point), ``interpolates`` (its steps have an interpolant),
       ``limits_itself`` (its own error control limits the step), ``error_norm`` (of that control),
       ``stability_limit`` (of h·λ₁, where there is one), ``threshold_formula`` (of :attr:`stability_threshold`),
       ``preconditions`` (has a :meth:`preconditioner`), ``recovers`` (goes on from a loss that isn't finite).
    4. :meth:`resolve`, where a default depends on the loss.
    5. :attr:`step_rule`: how large a step.
    6. :meth:`step`: the formula, with its paper cited. It never writes θ or a gradient that it was given,
       and returns its state instead of keeping it.
    7. One line in ``METHODS`` of ``gradflow/integrators/__init__.py``, one in the list of methods in
       ``tests/helpers/methods.py``, which runs every shared test on it, and a row in the tables of the docs.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    discrete: ClassVar[bool] = False
    keep_graph: ClassVar[bool] = False
    interpolates: ClassVar[bool] = False
    limits_itself: ClassVar[bool] = False
    error_norm: ClassVar[str | None] = None
    family: ClassVar[str | None] = None
    stability_limit: ClassVar[float | None] = None
    recovers: ClassVar[bool] = False
    preconditions: ClassVar[bool] = False
    threshold_formula: ClassVar[str | None] = None

    @property
    def watches_loss(self) -> bool:
        """Whether a step that raises the loss is rejected: a flow can't raise it, an optimiser can."""
        return not self.discrete

    @property
    def stochastic(self) -> bool:
        """Whether steps see a part of the data alone."""
        return False

    @property
    def time_definition(self) -> str:
        """What time means: "flow" where it can be compared with the flow's."""
        return "flow"

    @property
    def stability_threshold(self) -> float | None:
        """λ₁ above which an optimiser with these options is unstable on a quadratic; None for a flow."""
        return None

    def resolve(self, loss: LossFunction) -> Self:
        """Fill in the options whose defaults depend on the loss; raise where that can't be done."""
        return self

    def init(self, point: Point) -> Any:
        """Return the integrator's state before the first step."""
        return None

    @property
    @abstractmethod
    def step_rule(self) -> StepRule:
        """How large a step."""

    @abstractmethod
    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take one step of size h from a point."""

    def preconditioner(self, state: Any) -> Tensor | None:
        """Return the diagonal of P, shape (P,), of an update P⁻¹∇L; None where there is none."""
        return None

    def refused(self, h: float, state: Any) -> Any:
        """Return the state to go on from after a step of size h was refused, because the loss rose."""
        return state

    def portable(self, state: Any) -> Any:
        """Return what of a state a checkpoint needs: what :mod:`gradflow.plain` can hold."""
        return state

    def restore(self, portable: Any, point: Point) -> Any:
        """Make the state again of what :meth:`portable` gave, at the point where it was."""
        return portable

    def settings(self) -> dict[str, Any]:
        """Return the options by name, as resolved."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
