"""The contract of a flow."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from gradflow.errors import InvalidTypeError
from gradflow.loss import LossFunction
from gradflow.spectrum import Eigenpairs, SymmetricOperator
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point

#: What a method may need of a flow, each more than the one before.
Needs = Literal["velocity", "jacobian", "symmetric jacobian"]


@dataclass(frozen=True)
class Flow(ABC):
    """An ordinary differential equation dz/dt = f(z) on a flat state z that contains θ.

    To write one:

    1. A frozen dataclass; its fields are its options.
    2. :attr:`name`, for the record.
    3. :meth:`velocity`: f at a point. Integrators see that and :meth:`jacobian`, and nothing else.
    4. :meth:`jacobian`, ∂f/∂z, for stiff methods; with ``symmetric = True`` if it is symmetric, which the
       exponential methods need.
    5. ``raises_loss = False`` if the loss can't rise along it: a step that raises it is then rejected.
    6. Where z is more than θ: :meth:`initial` and :meth:`theta`. Where the start depends on the loss: :meth:`begin`.
    7. ``variables`` and :meth:`measure`, for what it adds to a record.
    8. Where it says nothing of some points: :meth:`refusal`.

    Pass an instance: ``gradflow.integrate(loss, flow=MyFlow(…))``. Nothing has to be registered.

    Attributes
    ----------
    name : str
        Default: the name of the class.
    symmetric : bool
        The Jacobian is symmetric.
    raises_loss : bool
        The loss may rise along the flow.
    third_derivatives : bool
        It takes third derivatives of the loss, whose number is recorded as ``n_third``.
    variables : mapping of str to Variable
        What :meth:`measure` gives, by name.
    schemes : mapping of str to str
        Methods that were made for this flow, by the name of the scheme; no others can follow it. The first is the
        default; an option ``scheme`` of the flow chooses. Empty where any method will do that has what it needs.

    Examples
    --------
    Gradient flow with weight decay:

    >>> import torch, gradflow
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Decay(gradflow.Flow):
    ...     strength: float
    ...     name = "weight decay"
    ...     symmetric = True
    ...
    ...     def velocity(self, point):
    ...         return -(point.gradient + self.strength * point.theta)
    ...
    ...     def jacobian(self, point):
    ...         return point.operator(lambda v: -(point.hvp(v) + self.strength * v))
    >>> bowl = lambda x: 0.5 * (x**2).sum()
    >>> run = gradflow.integrate(bowl, torch.ones(2), flow=Decay(1.0), method="exprb43", t_max=1.0)
    >>> run.params.values.round(4)  # e^(-2)
    array([0.1353, 0.1353], dtype=float32)
    """

    name: ClassVar[str]
    symmetric: ClassVar[bool] = False
    raises_loss: ClassVar[bool] = True
    third_derivatives: ClassVar[bool] = False
    variables: ClassVar[Mapping[str, Variable]] = {}
    schemes: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__
        if "velocity" in vars(cls):
            for name in ("jacobian", "rates"):
                if name not in vars(cls) and getattr(cls, name) is not getattr(Flow, name):
                    raise InvalidTypeError(
                        f"{cls.__name__} has a velocity of its own and would inherit the {name} of another. Define "
                        f"{name} too, or derive from gradflow.Flow."
                    )

    def resolve(self, loss: LossFunction) -> Self:
        """Fill in the options whose defaults depend on the loss; raise where that can't be done."""
        return self

    def initial(self, theta: Tensor) -> Tensor:
        """Return z at the start, flat, on θ's device and in its dtype."""
        return theta

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        """Return z at the start of a run, where that takes evaluations of the loss; they are counted in the field.

        Default: :meth:`initial`, whose shape it must have.
        """
        return self.initial(theta)

    def theta(self, z: Tensor) -> Tensor:
        """Return θ, shape (P,), of a state z."""
        return z

    def size(self, z: Tensor) -> float:
        """Return the length of a state that relative tolerances are of, ‖z‖₂."""
        return float(torch.linalg.vector_norm(z, dtype=torch.float64))

    @property
    def time_definition(self) -> str:
        """What time means: "flow" where it can be compared with the gradient flow's."""
        return "flow"

    @abstractmethod
    def velocity(self, point: Point) -> Tensor:
        """Return f(z), of z's shape."""

    def jacobian(self, point: Point) -> SymmetricOperator | None:
        """Return ∂f/∂z as an operator that ``@`` multiplies vectors by, or a matrix; None where there is none."""
        return None

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Return the k largest eigenvalues of −∂f/∂z, which bound the steps of explicit methods.

        The largest first, to a residual of `tol`. Without a symmetric Jacobian there is one, the largest in absolute
        value: an upper bound of the rates.
        """
        return point.field.rates(point, k, tol)

    def refusal(self, point: Point) -> str | None:
        """Return why the flow can't be followed from a point, and what to do then; None where it can.

        A run isn't started there; one that comes there by a step ends, in the state before.
        """
        return None

    def measure(self, point: Point) -> dict[str, Any]:
        """Return the values of :attr:`variables` at a point."""
        return {}

    @property
    def gives(self) -> Needs:
        """What methods may ask of it."""
        if type(self).jacobian is Flow.jacobian:
            return "velocity"
        return "symmetric jacobian" if self.symmetric else "jacobian"

    def settings(self) -> dict[str, Any]:
        """Return the options by name, as resolved."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def check_vector(what: str, value: object, like: Tensor) -> Tensor:
    """Return a tensor without its graph; refuse what hasn't the shape, the dtype and the device of another.

    Raises
    ------
    InvalidTypeError
    """
    if isinstance(value, Tensor):
        same = (value.shape, value.dtype, value.device) == (like.shape, like.dtype, like.device)
        if same:
            return value.detach()
        got = f"shape {tuple(value.shape)} in {value.dtype} on {value.device}"
    else:
        got = type(value).__name__
    raise InvalidTypeError(
        f"Expected {what} as a Tensor of shape {tuple(like.shape)} in {like.dtype} on {like.device}, got {got}."
    )
