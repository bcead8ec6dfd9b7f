"""The problem that every eigensolver is given, and the solution that it returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.spectrum.eigenpairs import Eigenpairs
from gradflow.spectrum.operators import SymmetricOperator


@dataclass(frozen=True)
class EigenProblem:
    """The algebraically largest k eigenpairs of a symmetric operator.

    Attributes
    ----------
    operator : SymmetricOperator
    k : int
        1 ≤ k ≤ P.
    start : Tensor, shape (P, m), or None
        Vectors to start from, such as the `basis` of a solve nearby.
    tol : float
        Residual ‖Hx − λx‖/max|λ| to reach.
    max_hvps : int
        Products after which the solver returns what it has, flagged.
    generator : torch.Generator
        On the CPU, for random vectors.
    memory : int or None
        Bytes that the vectors of a search may take, if there are enough for the least that it needs.
    """

    operator: SymmetricOperator
    k: int
    start: Tensor | None
    tol: float
    max_hvps: int
    generator: torch.Generator
    memory: int | None = None

    @property
    def P(self) -> int:
        """Dimension of the operator."""
        return self.operator.shape[0]

    def random(self, n: int) -> Tensor:
        """Draw n normal vectors, shape (P, n), the same on every device."""
        return random_vectors(self.operator, n, self.generator)

    def empty(self) -> Tensor:
        """Return no vectors, shape (P, 0)."""
        return torch.empty(self.P, 0, device=self.operator.device, dtype=self.operator.dtype)


@dataclass(frozen=True)
class EigenSolution:
    """The pairs asked for, and vectors from which to start the next solve.

    Attributes
    ----------
    pairs : Eigenpairs
    basis : Tensor, shape (P, m)
        Their vectors or better ones, and the next Ritz vector if there is one.
    """

    pairs: Eigenpairs
    basis: Tensor


def random_vectors(operator: SymmetricOperator, n: int, generator: torch.Generator) -> Tensor:
    """Draw n normal vectors for an operator, shape (P, n)."""
    draw = torch.randn(operator.shape[0], n, generator=generator, dtype=torch.float64, device="cpu")
    return draw.to(operator.device, operator.dtype)
