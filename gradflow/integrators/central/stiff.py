"""The φ-functions of a central flow's stiff part, −P⁻¹H on w and 0 on s."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gradflow.flows import CentralFlow, Point
from gradflow.integrators.exprb import DENSE_BELOW
from gradflow.integrators.phi.spaces import DenseSpace, KrylovSpace, PhiSpace, Term
from gradflow.spectrum import Operator

#: Most vectors of the Krylov space.
_MAX_BASIS = 200


class StiffPart:
    """J = −P⁻¹H on w and 0 on s, with P and H of one point; by the symmetric −P^(−½)HP^(−½).

    Parameters
    ----------
    flow : CentralFlow
    point : Point
    """

    def __init__(self, flow: CentralFlow, point: Point) -> None:
        rule, s = flow.optimizer, flow.state(point.z)
        self._root = rule.preconditioner(s).sqrt()
        self._P = len(point.theta)
        root = self._root if self._root.dim() == 0 else self._root[:, None]
        lin, duration = point.linearization, rule.duration(s)

        def multiply(v: Tensor) -> Tensor:
            scale = root if v.dim() == 2 else self._root
            return (lin @ (v / scale)) / scale / duration

        self._operator = Operator(multiply, point.theta)
        self.space: PhiSpace = (
            DenseSpace(self._operator) if self._P <= DENSE_BELOW else KrylovSpace(self._operator, _MAX_BASIS)
        )

    def length(self, z: Tensor) -> float:
        """Return ‖P^½ w‖ of a state or a velocity."""
        return float(torch.linalg.vector_norm(self._root * z[: self._P]))

    def coordinates(self, velocity: Tensor) -> np.ndarray:
        """Take the w-part of a velocity into the space."""
        return self.space.coordinates(self._root * velocity[: self._P])

    def resolve(self, terms: list[Term], tol: float) -> float:
        """Grow the space until the terms' error, in terms of :meth:`length`, is below `tol`; return it."""
        return self.space.resolve(terms, tol)

    def evaluate(self, term: Term, velocity: Tensor) -> Tensor:
        """Return h φₖ(hJ) F for a velocity F and the term of its w-part; φₖ(0) = 1/k! on s."""
        w = self.space.vector(self.space.evaluate(term)) / self._root
        return torch.cat([w, velocity[self._P :] * (term.h / math.factorial(term.k))])

    def times(self, z: Tensor) -> Tensor:
        """Return J z."""
        w = self._operator @ (self._root * z[: self._P])
        return torch.cat([-w / self._root, torch.zeros_like(z[self._P :])])
