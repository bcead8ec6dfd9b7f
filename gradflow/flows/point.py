"""A point of a flow, with what is known there."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.flows.base import check_vector
from gradflow.loss import Evaluation, Linearization
from gradflow.spectrum import Eigenpairs, Operator, SymmetricOperator

if TYPE_CHECKING:
    from gradflow.flows.field import Field

T = TypeVar("T")


class Point:
    """A state z of a flow, at which each quantity is computed when it is first asked for, once.

    Attributes
    ----------
    field : Field
        What evaluates, and counts.
    z : Tensor
        The state, flat; never written. For most flows it is θ.
    """

    def __init__(self, field: Field, z: Tensor, *, keep_graph: bool, accuracy: bool = False) -> None:
        self.field = field
        self.z = z
        self._keep_graph = keep_graph
        self._with_accuracy = accuracy
        self._known: Evaluation | None = None
        self._version: int | None = None  # of the gradient, as torch counts what is written in place
        self._pairs: tuple[float, Eigenpairs] | None = None
        self._rates: tuple[int, float, Eigenpairs] | None = None
        self._work: dict[Hashable, Any] = {}

    @property
    def flow(self) -> Field:
        """The field, by its former name."""
        return self.field

    # ------------------------------------------------------------------ the loss

    @cached_property
    def theta(self) -> Tensor:
        """θ, shape (P,)."""
        return self.field.flow.theta(self.z)

    @property
    def known_value(self) -> Evaluation | None:
        """Loss, gradient and accuracy if they have been computed."""
        return self._known

    @property
    def known_linearization(self) -> Linearization | None:
        """The linearization if it has been computed."""
        return self.__dict__.get("linearization")

    @property
    def known_velocity(self) -> Tensor | None:
        """The velocity if it has been computed."""
        return self.__dict__.get("velocity")

    @property
    def evaluation(self) -> Evaluation:
        """Loss, gradient and accuracy at θ."""
        if self._known is None:
            if self._keep_graph or self.known_linearization is not None:
                at = self.linearization
                self._known = Evaluation(at.value, at.gradient, at.accuracy)
            else:
                self._known = self.field.evaluate(self.theta, accuracy=self._with_accuracy)
        if self._version is None:
            self._version = self._known.gradient._version
        return self._known

    @cached_property
    def linearization(self) -> Linearization:
        """Value, gradient and Hessian–vector products at θ; costs a gradient."""
        return self.field.linearize(self.theta, accuracy=self._with_accuracy)

    @property
    def value(self) -> Tensor:
        """L(θ), shape ()."""
        return self.evaluation.value

    @cached_property
    def loss(self) -> float:
        """L(θ)."""
        return float(self.value)

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,)."""
        return self.evaluation.gradient

    @cached_property
    def accuracy(self) -> float:
        """Fraction of the samples that are classified right; NaN where the targets aren't classes."""
        known = self.evaluation.accuracy
        return math.nan if known is None else float(known)

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply vectors, shape (P,) or (P, k), by the Hessian of the loss."""
        return self.linearization.hvp(vectors)

    def top(self, k: int, *, tol: float = 1e-3) -> Eigenpairs:
        """Compute the top k eigenpairs of the Hessian at θ by the run's spectrum service, once.

        Pairs that missed the tolerance stay as they are, flagged: a step uses those that it was sized with.
        """
        if self._pairs is not None and self._pairs[0] <= tol and len(self._pairs[1]) >= k:
            return self._pairs[1].first(k)
        pairs = self.field.spectrum.top(k, self.linearization, tol=tol)
        self._pairs = (tol, pairs)
        return pairs

    # ------------------------------------------------------------------ the flow

    @cached_property
    def velocity(self) -> Tensor:
        """dz/dt, of z's shape."""
        flow, before = self.field.flow, self.z._version
        velocity = check_vector(f"the velocity of flow {flow.name!r}", flow.velocity(self), self.z)
        if self.z._version != before or (
            self._version is not None and self.evaluation.gradient._version != self._version
        ):
            raise InvalidInputError(
                f"The flow {flow.name!r} wrote into what the point gave it (mul_, +=, point.theta[0] = …), "
                "which the run goes on using. Make new tensors: v = -point.gradient - 0.1 * point.theta."
            )
        return velocity

    @cached_property
    def jacobian(self) -> SymmetricOperator | None:
        """∂f/∂z as an operator; None where the flow gives none."""
        flow = self.field.flow
        J = flow.jacobian(self)
        if J is None and flow.gives != "velocity":
            raise InvalidInputError(
                f"{type(flow).__name__}.jacobian returned None. Return an operator, such as point.operator(…), or "
                "don't define it."
            )
        return J

    def rates(self, k: int, *, tol: float) -> Eigenpairs:
        """Compute the k largest rates of the flow, the eigenvalues of −∂f/∂z, once."""
        if self._rates is not None and self._rates[0] >= k and self._rates[1] <= tol:
            return self._rates[2].first(k)
        pairs = self.field.flow.rates(self, k, tol)
        self._rates = k, tol, pairs
        return pairs

    def operator(self, multiply: Callable[[Tensor], Tensor]) -> Operator:
        """Make an operator on states of a function that multiplies vectors, of shape (P,) or (P, k)."""
        return Operator(multiply, self.z)

    @cached_property
    def is_finite(self) -> bool:
        """Whether velocity and loss are; in this order, as a velocity that takes products evaluates the loss too."""
        return all_finite(self.velocity) and math.isfinite(self.loss)

    # ------------------------------------------------------------------ what methods keep here

    def work(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what a method has computed at this point under a key; compute it the first time.

        All attempts at a step from here share it, and it goes with the point.
        """
        if key not in self._work:
            self._work[key] = make()
        found: T = self._work[key]
        return found

    def redo(self, key: Hashable, value: Any) -> None:
        """Put a value in the place of what :meth:`work` keeps."""
        self._work[key] = value


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN. A finite sum says so in one pass; another one may have overflowed."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
