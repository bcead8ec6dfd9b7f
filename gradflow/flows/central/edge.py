"""What holds at one point of a central flow: the critical directions, and the covariance of the oscillation in them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gradflow.flows.central.sdcp import Solution, smat, solve, svec

#: Eigenvalues of X below this part of the largest are none.
_RANK = 1e-9


@dataclass(frozen=True)
class Constraint:
    """The slack R = Uᵀ(2P − H)U of some directions U, and how the flow moves it: Ṙ = α + β[X].

    Symmetric k × k matrices are vectors of length m = k(k + 1)/2, by
    :func:`gradflow.flows.central.sdcp.svec`.

    Attributes
    ----------
    basis : Tensor, shape (P, k)
        U, with UᵀPU = I.
    images : Tensor, shape (P, k)
        HU.
    slack : ndarray, shape (m,)
        R.
    gradients : Tensor, shape (n, m)
        ∂R/∂z, for the state z of length n.
    drifts : Tensor, shape (n, m)
        What each entry of X adds to dz/dt.
    free : Tensor, shape (n,)
        dz/dt without an oscillation.
    """

    basis: Tensor
    images: Tensor
    slack: np.ndarray
    gradients: Tensor
    drifts: Tensor
    free: Tensor

    @cached_property
    def alpha(self) -> np.ndarray:
        """Ṙ without an oscillation, shape (m,)."""
        return to_numpy(self.gradients.double().T @ self.free.double())

    @cached_property
    def beta(self) -> np.ndarray:
        """What X adds to Ṙ, shape (m, m)."""
        return to_numpy(self.gradients.double().T @ self.drifts.double())

    def velocity(self, x: np.ndarray) -> Tensor:
        """Return dz/dt with the covariance x."""
        return self.free + self.along(x)

    def along(self, x: np.ndarray) -> Tensor:
        """Return Σ xᵢ driftᵢ, shape (n,)."""
        return self.drifts @ torch.from_numpy(x).to(self.drifts)

    def unconstrained(self) -> np.ndarray:
        """Return the x that keeps the slack as it is, −β⁻¹α, whether it is a covariance or not."""
        return -np.linalg.lstsq(self.beta, self.alpha, rcond=None)[0]

    def mean(self, other: Constraint) -> Constraint:
        """Return this constraint with gradients and drifts halfway to another's, on the same directions."""
        return dataclasses.replace(
            self, gradients=(self.gradients + other.gradients) / 2, drifts=(self.drifts + other.drifts) / 2
        )

    def reduced(self, V: np.ndarray) -> Constraint:
        """Return the constraint on the directions U V, V of shape (k, r) with orthonormal columns."""
        r = V.shape[1]
        W = np.stack([svec(V @ smat(e) @ V.T) for e in np.eye(r * (r + 1) // 2)], axis=1)
        to, turn = torch.from_numpy(W).to(self.drifts), torch.from_numpy(V).to(self.basis)
        return Constraint(
            self.basis @ turn,
            self.images @ turn,
            W.T @ self.slack,
            self.gradients @ to,
            self.drifts @ to,
            self.free,
        )


@dataclass(frozen=True)
class Edge:
    """A point of a central flow.

    Attributes
    ----------
    values : ndarray
        The largest eigenvalues of P⁻¹H, in descending order; 2 is the edge of stability.
    vectors : Tensor, shape (P, len(values))
        Their eigenvectors, P-orthonormal.
    critical : Constraint or None
        That of the directions at the edge; None if there are none.
    solution : Solution or None
        X.
    velocity : Tensor, shape (n,)
        dz/dt.
    """

    values: np.ndarray
    vectors: Tensor
    critical: Constraint | None
    solution: Solution | None
    velocity: Tensor

    @cached_property
    def active(self) -> tuple[Constraint, np.ndarray] | None:
        """The constraint on the directions that oscillate, the eigenvectors of X, and its eigenvalues; or None."""
        if self.critical is None or self.solution is None:
            return None
        σ2, V = np.linalg.eigh(smat(self.solution.x))
        keep = np.flatnonzero(σ2 > _RANK * max(σ2.max(initial=0.0), 0.0))[::-1]
        if not len(keep):
            return None
        return self.critical.reduced(V[:, keep]), σ2[keep]

    @property
    def n_active(self) -> int:
        """Number of directions that oscillate."""
        return 0 if self.active is None else len(self.active[1])


def instantaneous(values: np.ndarray, vectors: Tensor, critical: Constraint | None, free: Tensor) -> Edge:
    """Return the point with the X that keeps the eigenvalues from crossing the edge: 0 ⪯ X ⟂ α + β[X] ⪰ 0."""
    if critical is None:
        return Edge(values, vectors, None, None, free)
    solution = solve(critical.alpha, critical.beta)
    return Edge(values, vectors, critical, solution, critical.velocity(solution.x))


def catching_up(
    values: np.ndarray, vectors: Tensor, critical: Constraint | None, free: Tensor, dt: float
) -> Edge:
    """Return the point with the X with which an Euler step of dt ends within the edge: 0 ⪯ X ⟂ R + dt(α + β[X]) ⪰ 0."""
    if critical is None:
        return Edge(values, vectors, None, None, free)
    solution = solve(critical.slack / dt + critical.alpha, critical.beta)
    return Edge(values, vectors, critical, solution, critical.velocity(solution.x))


def aligned(
    candidates: Tensor, PU: Tensor, values: np.ndarray, r: int, near: float
) -> tuple[Tensor, np.ndarray]:
    """Choose r directions among eigenvectors as near as can be to former ones.

    These are eigenvectors of the r largest eigenvalues, turned within their span. Where the last of them is hardly
    larger than the next, those of its cluster are combined so that the span is nearest to the former one.

    Parameters
    ----------
    candidates : Tensor, shape (P, c)
        P-orthonormal eigenvectors, in descending order of eigenvalues.
    PU : Tensor, shape (P, r)
        P times the former directions.
    values : ndarray, shape (c,)
    r : int
    near : float
        Eigenvalues so near are one cluster.

    Returns
    -------
    Tensor, shape (P, r)
    ndarray, shape (r, r)
        The Rayleigh quotient UᵀHU.
    """
    overlap = to_numpy(candidates.T @ PU)
    above = int(np.sum(values > values[r - 1] + near))
    within = int(np.sum(values >= values[r - 1] - near))
    chosen = np.eye(len(values))[:, :r]
    if within > r:
        left, _, _ = np.linalg.svd(overlap[above:within])
        chosen = np.zeros((len(values), r))
        chosen[:above, :above] = np.eye(above)
        chosen[above:within, above:] = left[:, : r - above]
    left, _, right = np.linalg.svd(chosen.T @ overlap)
    turn = chosen @ (left @ right)
    basis = candidates @ torch.from_numpy(turn).to(candidates)
    return basis, turn.T @ (values[:, None] * turn)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a float64 array."""
    return tensor.detach().to("cpu", torch.float64).numpy()
