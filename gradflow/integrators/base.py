"""The contract of an integrator."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from gradflow.errors import InvalidTypeError
from gradflow.flows import Flow, Point
from gradflow.flows.base import Needs
from gradflow.integrators.step_size import StepSize
from gradflow.loss import LossFunction
from gradflow.spectrum import Eigenpairs


@dataclass(frozen=True)
class StepResult:
    """What a step returns.

    Attributes
    ----------
    z : Tensor
        The flow's state at the end of the step, for most flows θ; a new tensor.
    interpolant : callable or None
        ``interpolant(s)`` gives z at the fraction s ∈ [0, 1] of the step, to the method's order. A method
        without one lands on the times at which it is to be recorded.
    error : float or None
        2-norm of the estimate of the local error, in units of z. None: the method has no estimate.
    state : Any
        The integrator's state from here on.
    h : float or None
        Size of the step, where it is smaller than the one asked for. None: as asked for.
    end : Point or None
        The point at the end of the step, where the step evaluated something there.
    n_rejected : int
        Attempts that a solver rejected which controls its own error.
    pairs : Eigenpairs or None
        Eigenpairs of the flow's rates at the step's start, where the step came by them.
    loss : float or None
        Loss at the step's start, where the step saw a part of the data alone.
    events : tuple of str
        What happened at the step's end, of :attr:`Integrator.events`.
    """

    z: Tensor
    interpolant: Callable[[float], Tensor] | None = None
    error: float | None = None
    state: Any = None
    h: float | None = None
    end: Point | None = None
    n_rejected: int = 0
    pairs: Eigenpairs | None = None
    loss: float | None = None
    events: tuple[str, ...] = ()

    @property
    def theta(self) -> Tensor:
        """`z` by its former name."""
        return self.z


#: What methods of an integrator were called before.
_FORMER = {
    "refused": "after_rejection(point, state)",
    "portable": "state_dict(state)",
    "restore": "load_state(saved, point)",
    "watches_loss": "rejects_loss_increase",
    "recovers": "allows_nonfinite",
}


@dataclass(frozen=True)
class Integrator(ABC):
    """A method that advances the state of a flow: a formula, without a loop.

    docs/adding-an-integrator.md has the contract, point by point.

    Attributes
    ----------
    name : str
    order : int
        Of convergence.
    error_order : int or None
        q where the estimate of a step's error is O(h^q); None where there is none.
    needs : str
        What it asks of a flow: its velocity, its Jacobian, or a symmetric Jacobian; None for an optimiser, which
        descends the loss itself.
    only_for : str or None
        The one flow that it was made for.
    discrete : bool
        An optimiser: a record at every step, and steps that don't land on times.
    interpolates : bool
        Its steps have an interpolant.
    keep_graph : bool
        Products with the Hessian are wanted at every point.
    limits_itself : bool
        Its solver controls the error of its own steps.
    allows_nonfinite : bool
        Goes on from a loss that isn't finite.
    preconditions : bool
        Has a :meth:`preconditioner`.
    events : mapping of str to str
        What may happen at the end of a step and is recorded then, as ``event_NAME``, by name and in words.
    error_norm, threshold_formula, family : str or None
        For the record: the norm of an error control of its own, the formula of :attr:`stability_threshold`, and what
        kind of method it is.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    error_order: ClassVar[int | None] = None
    needs: ClassVar[Needs | None] = "velocity"
    only_for: ClassVar[str | None] = None
    discrete: ClassVar[bool] = False
    interpolates: ClassVar[bool] = False
    keep_graph: ClassVar[bool] = False
    limits_itself: ClassVar[bool] = False
    allows_nonfinite: ClassVar[bool] = False
    preconditions: ClassVar[bool] = False
    events: ClassVar[Mapping[str, str]] = {}
    error_norm: ClassVar[str | None] = None
    threshold_formula: ClassVar[str | None] = None
    family: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for former, now in _FORMER.items():
            if former in vars(cls):
                raise InvalidTypeError(f"{cls.__name__}.{former} has a new name: call it {now}.")

    # ------------------------------------------------------------------ the formula

    def init(self, point: Point) -> Any:
        """Return the integrator's state before the first step."""
        return None

    @abstractmethod
    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take one step of size h from a point. Never writes what it was given."""

    # ------------------------------------------------------------------ how large a step

    @property
    @abstractmethod
    def step_rule(self) -> StepSize:
        """What proposes the size of each step, and judges the step."""

    def first_size(self, point: Point, state: Any) -> float:
        """Guess the size of the first step under error control, on the small side."""
        pairs = point.rates(1, tol=0.1)
        return 1.0 / pairs.scale if pairs.scale > 1e-300 else float("inf")

    def after_rejection(self, point: Point, state: Any) -> Any:
        """Return the state from which a step is tried again, after its error or its loss was too large."""
        return state

    @property
    def stability_interval(self) -> float | None:
        """The largest h·λ at which the method is stable for a decay of rate λ; None where nothing limits it so."""
        return None

    # ------------------------------------------------------------------ what it is

    @property
    def rejects_loss_increase(self) -> bool:
        """Whether a step that raises the loss is taken again where the flow can't raise it; an optimiser may."""
        return not self.discrete

    @property
    def loss_tolerance(self) -> float:
        """Relative rise of the loss over one step that is tolerated, beyond rounding."""
        return float(getattr(self, "loss_rtol", 0.0))

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

    def choose(self, loss: LossFunction, flow: Flow) -> Integrator:
        """Return the method that takes the steps: itself, unless it stands for others."""
        return self

    def resolve(self, loss: LossFunction) -> Self:
        """Fill in the options whose defaults depend on the loss; raise where that can't be done."""
        return self

    def preconditioner(self, state: Any) -> Tensor | None:
        """Return the diagonal of P, shape (P,), of an update P⁻¹∇L; None where there is none."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return the options by name, as resolved."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def remarks(self, state: Any) -> dict[str, str]:
        """Return what the record is to say of the steps that were taken, by the name of an attribute."""
        return {}

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self, state: Any) -> Any:
        """Return what of a state a checkpoint needs: what :mod:`gradflow.plain` can hold."""
        return state

    def load_state(self, saved: Any, point: Point) -> Any:
        """Make the state again of what :meth:`state_dict` gave, at the point where it was."""
        return saved
