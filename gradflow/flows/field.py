"""A flow of a loss as integrators see it: a vector field whose evaluations are counted."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gradflow.errors import InvalidTypeError
from gradflow.flows.base import Flow, check_vector
from gradflow.flows.cost import Cost
from gradflow.flows.gradient import GradientFlow
from gradflow.flows.point import Point
from gradflow.loss import Evaluation, Linearization, LossFunction
from gradflow.spectrum import Eigenpairs, SpectrumService, SymmetricOperator, largest_magnitude, negated


class Field:
    """The vector field of a flow of a loss, its spectrum service, and the count of what all of it has cost.

    Every evaluation that a method asks for passes here or through a :class:`Point` of it, and is counted where it is
    made: gradients in :meth:`evaluate` and :meth:`linearize`, products in the linearization itself.

    Parameters
    ----------
    loss : LossFunction
    flow : Flow, optional
        Default: gradient flow.
    keep_graph : bool
        Products are wanted at every point: build the graph along with the gradient. A method may change it on the way.

    Attributes
    ----------
    keep_graph : bool
    spectrum : SpectrumService
        Of the loss's Hessian.
    cost : Cost
    looked : Cost
        What :meth:`looking` has cost.
    """

    def __init__(self, loss: LossFunction, flow: Flow | None = None, *, keep_graph: bool = False) -> None:
        self.loss = loss
        self.flow = GradientFlow() if flow is None else flow
        self.spectrum = SpectrumService(loss)
        self.cost, self.looked = Cost(), Cost()
        self._samples: dict[str, int] = {}  # of mini-batches, less than all of the data
        self.keep_graph = keep_graph
        self._stiffness = SpectrumService()  # of a Jacobian that isn't minus the Hessian
        self._stiffest: Tensor | None = None

    # ------------------------------------------------------------------ evaluations

    def __call__(self, z: Tensor) -> Tensor:
        """Evaluate dz/dt at z."""
        return Point(self, z, keep_graph=False).velocity

    def start(self, theta: Tensor) -> Point:
        """Return the point where the flow starts from θ.

        Raises
        ------
        InvalidTypeError
            If the flow's first state isn't flat, in θ's dtype and on its device, or hasn't a θ of that shape.
        """
        name, z = self.flow.name, self.flow.begin(self, theta)
        if isinstance(z, Tensor) and z.dim() != 1:
            raise InvalidTypeError(
                f"Expected a flat first state of flow {name!r}, got shape {tuple(z.shape)}."
            )
        like = theta.new_empty(len(z)) if isinstance(z, Tensor) else theta
        point = self.at(check_vector(f"the first state of flow {name!r}", z, like))
        check_vector(f"θ of a state of flow {name!r}", point.theta, theta)
        return point

    def at(self, z: Tensor, known: Evaluation | None = None) -> Point:
        """Return z as a point; loss and gradient there may be `known` already."""
        point = Point(self, z, keep_graph=self.keep_graph, accuracy=self.loss.classifies)
        point._known = known
        return point

    def evaluate(self, theta: Tensor, *, accuracy: bool = False) -> Evaluation:
        """Evaluate loss and gradient at θ, and the accuracy from the same forward pass if it is asked for."""
        self.count("n_gradients")
        return self.loss.evaluated(theta, accuracy=accuracy)

    def linearize(self, theta: Tensor, *, accuracy: bool = False) -> Linearization:
        """Evaluate loss and gradient at θ, and keep what products with the Hessian there need."""
        self.count("n_gradients")
        return self.loss.linearize(theta, self._count_hvps, count_third=self._count_third, accuracy=accuracy)

    def linearize_again(self, point: Point) -> Linearization:
        """Linearize at another field's point; what that knows is taken over if its loss is the same, not its count."""
        if self.is_of(point.field.loss) and point.known_linearization is not None:
            return point.known_linearization.counted(self._count_hvps, self._count_third)
        return self.linearize(point.theta)

    def is_of(self, loss: LossFunction) -> bool:
        """Whether this is a field of a loss, and not of a part of its data."""
        return self.loss is loss

    def top_of(self, operator: SymmetricOperator, k: int, *, tol: float) -> Eigenpairs:
        """Compute the top k eigenpairs of an operator other than the Hessian, from the last basis of such a one."""
        return self._stiffness.top(k, operator, tol=tol)

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Compute the k largest rates of a flow at a point: see :meth:`Flow.rates`."""
        J = point.jacobian
        if J is not None and self.flow.symmetric:
            return self.top_of(negated(J), k, tol=tol)
        multiply = Differences(point).__matmul__ if J is None else J.__matmul__
        start = self._stiffest
        if start is None or start.shape != point.z.shape:
            generator = torch.Generator("cpu").manual_seed(0)
            start = torch.randn(len(point.z), generator=generator, dtype=torch.float64, device="cpu")
        rate = largest_magnitude(multiply, start.to(point.z), tol)
        self._stiffest = rate.vectors[:, 0]
        return rate

    # ------------------------------------------------------------------ cost

    def count(self, what: str, n: int = 1) -> None:
        """Count n evaluations of a kind, a field of :class:`Cost`."""
        setattr(self.cost, what, getattr(self.cost, what) + n)

    def _count_hvps(self, n: int) -> None:
        self.count("n_hvps", n)

    def _count_third(self, n: int) -> None:
        self.count("n_third", n)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Look at the flow without a trace: costs go to :attr:`looked`, later eigensolves start as they would."""
        state, before = self.state_dict(), self.cost.copy()
        try:
            yield
        finally:
            spent = {name: n - getattr(before, name) for name, n in vars(self.cost).items()}
            self.load_state_dict(state)
            for name, n in spent.items():
                setattr(self.looked, name, getattr(self.looked, name) + n)

    def along(self, flow: Flow) -> Field:
        """Return the field of another flow of the same loss, which shares the spectrum and is counted here."""
        return _Along(flow, self)

    def part(self, loss: LossFunction, n_samples: int) -> Field:
        """Return the field of the loss over some samples, whose evaluations are counted here, by their share."""
        return _Part(loss, n_samples, self)

    def count_samples(self, what: str, n: int) -> None:
        """Count an evaluation on n samples; it is one evaluation when their sum is the data set's size."""
        whole, self._samples[what] = divmod(self._samples.get(what, 0) + n, self.loss.n_samples or 1)
        self.count(what, whole)

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Return the costs and what later eigensolves start from."""
        return {
            "cost": vars(self.cost).copy(),
            "looked": vars(self.looked).copy(),
            "samples": dict(self._samples),
            "spectrum": self.spectrum.state_dict(),
            "stiffness": self._stiffness.state_dict(),
            "stiffest": self._stiffest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.cost, self.looked = Cost(**state["cost"]), Cost(**state["looked"])
        self._samples = dict(state["samples"])
        self.spectrum.load_state_dict(state["spectrum"])
        self._stiffness.load_state_dict(state["stiffness"])
        self._stiffest = state["stiffest"]


class _Part(Field):
    """The field of a loss over some samples, counted in the field of all."""

    def __init__(self, loss: LossFunction, n_samples: int, whole: Field) -> None:
        super().__init__(loss)
        self._n_samples = n_samples
        self._whole = whole

    def count(self, what: str, n: int = 1) -> None:
        for _ in range(n):
            self._whole.count_samples(what, self._n_samples)


class _Along(Field):
    """The field of another flow of the same loss, counted in the first one's."""

    def __init__(self, flow: Flow, first: Field) -> None:
        super().__init__(first.loss, flow)
        self.spectrum = first.spectrum
        self._first = first

    def count(self, what: str, n: int = 1) -> None:
        self._first.count(what, n)


class Differences:
    """∂f/∂z at a point by differences of the velocity: each product costs one.

    J v ≈ (f(z + δv) − f(z))/δ with δ‖v‖ = √eps (1 + ‖z‖), where rounding and truncation are of one size.

    Parameters
    ----------
    point : Point
    """

    def __init__(self, point: Point) -> None:
        self._point = point
        z = point.z
        self._length = math.sqrt(torch.finfo(z.dtype).eps) * (1 + float(torch.linalg.vector_norm(z)))

    def __matmul__(self, vector: Tensor) -> Tensor:
        norm = float(torch.linalg.vector_norm(vector))
        if norm == 0:
            return torch.zeros_like(vector)
        δ = self._length / norm
        point = self._point
        return (point.field(point.z + δ * vector) - point.velocity) / δ
