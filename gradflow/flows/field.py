"""The gradient flow dθ/dt = −∇L(θ) as an integrator sees it: evaluations that are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gradflow.loss import Linearization, LossFunction
from gradflow.spectrum import Eigenpairs, SpectrumService


@dataclass
class Cost:
    """What a run has cost so far.

    Attributes
    ----------
    n_gradients : int
        Gradient evaluations over the whole data set.
    n_hvps : int
        Hessian–vector products over the whole data set.
    """

    n_gradients: int = 0
    n_hvps: int = 0

    def copy(self) -> Cost:
        """Return the present counts as a value."""
        return Cost(self.n_gradients, self.n_hvps)


class Flow:
    """The vector field −∇L, the run's spectrum service, and the count of what both have cost.

    Parameters
    ----------
    loss : LossFunction
    keep_graph : bool
        Products are wanted at every point: build the graph along with the gradient.
    """

    def __init__(self, loss: LossFunction, *, keep_graph: bool = False) -> None:
        self.loss = loss
        self.spectrum = SpectrumService(loss)
        self.cost = Cost()
        self._samples = {"n_gradients": 0, "n_hvps": 0}  # of mini-batches, less than all of the data
        self._keep_graph = keep_graph

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate −∇L at θ, shape (P,)."""
        return -self.evaluate(theta)[1]

    def count_samples(self, n: int, *, gradients: bool) -> None:
        """Count an evaluation on n samples; as many as there are count as one on all."""
        what = "n_gradients" if gradients else "n_hvps"
        whole, self._samples[what] = divmod(self._samples[what] + n, self.loss.n_samples or 1)
        setattr(self.cost, what, getattr(self.cost, what) + whole)

    def state_dict(self) -> dict[str, Any]:
        """Return the costs and the spectrum service's state."""
        return {
            "cost": (self.cost.n_gradients, self.cost.n_hvps),
            "samples": dict(self._samples),
            "spectrum": self.spectrum.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.cost = Cost(*state["cost"])
        self._samples = dict(state["samples"])
        self.spectrum.load_state_dict(state["spectrum"])

    def is_of(self, loss: LossFunction) -> bool:
        """Whether this is the flow of a loss, and not of a part of its data."""
        return self.loss is loss

    def linearize_again(self, point: Point) -> Linearization:
        """Linearize at another flow's point; what that knows already is taken over if its loss is the same."""
        known = point.known_linearization if self.is_of(point.flow.loss) else None
        return known or self.at(point.theta).linearization

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate loss, shape (), and gradient, shape (P,), at θ."""
        self.cost.n_gradients += 1
        return self.loss.gradient(theta)

    def at(self, theta: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Point:
        """Return θ as a point, at which each quantity is computed when it is first asked for, once.

        Loss and gradient there may be `known` already.
        """
        point = Point(self, theta, keep_graph=self._keep_graph)
        if known is not None:
            point.__dict__["_value_and_gradient"] = known
        return point


class Point:
    """A θ with what is known there.

    Attributes
    ----------
    flow : Flow
    theta : Tensor, shape (P,)
        Never written.
    """

    def __init__(self, flow: Flow, theta: Tensor, *, keep_graph: bool) -> None:
        self.flow = flow
        self.theta = theta
        self._keep_graph = keep_graph
        self._pairs: tuple[float, Eigenpairs] | None = None

    @cached_property
    def _value_and_gradient(self) -> tuple[Tensor, Tensor]:
        if self._keep_graph:
            return self.linearization.value, self.linearization.gradient
        return self.flow.evaluate(self.theta)

    @cached_property
    def linearization(self) -> Linearization:
        """Value, gradient and Hessian–vector products at θ; costs a gradient."""
        self.flow.cost.n_gradients += 1
        return self.flow.loss.linearize(self.theta)

    @property
    def value(self) -> Tensor:
        """L(θ), shape ()."""
        return self._value_and_gradient[0]

    @cached_property
    def loss(self) -> float:
        """L(θ)."""
        return float(self._value_and_gradient[0])

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,)."""
        return self._value_and_gradient[1]

    @cached_property
    def is_finite(self) -> bool:
        """Whether loss and gradient are."""
        return math.isfinite(self.loss) and all_finite(self.gradient)

    @property
    def known_value(self) -> tuple[Tensor, Tensor] | None:
        """Loss and gradient if they have been computed."""
        return self.__dict__.get("_value_and_gradient")

    @property
    def known_linearization(self) -> Linearization | None:
        """The linearization if it has been computed."""
        return self.__dict__.get("linearization")

    def top(self, k: int, *, tol: float) -> Eigenpairs:
        """Compute the top k eigenpairs of the Hessian at θ by the run's spectrum service, once.

        Pairs that missed the tolerance stay as they are, flagged: a step uses those that it was sized with.
        """
        if self._pairs is not None and self._pairs[0] <= tol and len(self._pairs[1]) >= k:
            return self._pairs[1].first(k)
        pairs = self.flow.spectrum.top(k, self.linearization, tol=tol)
        self.flow.cost.n_hvps += pairs.n_hvp
        self._pairs = (tol, pairs)
        return pairs


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN. A finite sum says so in one pass; another one may have overflowed."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
