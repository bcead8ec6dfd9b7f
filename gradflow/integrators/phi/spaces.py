"""Functions of the Hessian at one θ, times vectors: in a Krylov space that they share, or dense."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gradflow.integrators.phi.basis import Basis
from gradflow.integrators.phi.functions import phi
from gradflow.spectrum import Eigenpairs, SymmetricOperator
from gradflow.status import NumericalFailure, Status

#: Residual below which a Ritz pair is called converged.
_RITZ_TOL = 1e-2
#: Vectors beyond its capacity that a space can take in without multiplying them.
_GUESTS = 100
#: h·λ ≥ −50.
_MAX_GROWTH = 50.0
_NOT_FINITE = "the Hessian is not finite where loss and gradient are"


@dataclass(frozen=True)
class Term:
    """h φₖ(−hH) b.

    Attributes
    ----------
    k : int
    h : float
    b : ndarray
        A vector by its coordinates.
    """

    k: int
    h: float
    b: np.ndarray


class PhiSpace(Protocol):
    """A space in which h φₖ(−hH) b is computed; vectors are known by their coordinates in it."""

    def coordinates(self, vector: Tensor) -> np.ndarray:
        """Take a vector, shape (P,), into the space."""

    def resolve(self, terms: Sequence[Term], tol: float, *, room: float = 1.0) -> float:
        """Grow until no term's error exceeds `tol`, or that part of the room is used; return the largest error.

        It is infinite where −h times the smallest eigenvalue exceeds 50, so that no φ overflows.
        """

    def evaluate(self, term: Term) -> np.ndarray:
        """Return the coordinates of a term."""

    def resolved(self, z: np.ndarray) -> np.ndarray:
        """Return the part of z whose image under H is known."""

    def times_H(self, z: np.ndarray) -> np.ndarray:
        """Return the coordinates of H z, for a z that is resolved."""

    def vector(self, z: np.ndarray) -> Tensor:
        """Return the vector, shape (P,), of coordinates."""

    def eigenvalues(self, n: int = 0) -> np.ndarray:
        """Return the eigenvalues of H as far as n products, or those so far, tell; smallest first."""

    def top(self, k: int) -> Eigenpairs:
        """Return at most k top eigenpairs of H as far as they are known here."""


class KrylovSpace:
    """An orthonormal basis Q that grows by images H q, each of which is kept: H Q_A = Q T.

    Of the vectors in Q, those of the index set A have been multiplied by H; the others, B, are candidates. A
    vector enters as a candidate (what of it is not in Q yet), and multiplying a candidate makes the part of
    its image that is new a candidate. From one vector that is the Lanczos process with full
    reorthogonalisation; further vectors share what was built for the first.

    On A the Galerkin approximation φₖ(−h T_AA) b_A stands for φₖ(−hH) b, on B the limit φₖ(0) b_B. The error
    of h φₖ(−hH) b is then, up to the action of a contraction,

        h² T_BA φₖ₊₁(−h T_AA) b_A + (h/k!) b_B,

    the integral over the step of what leaves the space through each candidate (after Saad, SIAM J. Numer.
    Anal. 29 (1992) 209–228, and Hochbruck, Lubich & Selhofer, SIAM J. Sci. Comput. 19 (1998) 1552–1574). The
    candidate through which most leaves is multiplied next.

    Parameters
    ----------
    operator : SymmetricOperator
        H, shape (P, P).
    capacity : int
        Number of vectors that may be multiplied.

    Examples
    --------
    >>> H = torch.diag(torch.tensor([100.0, 1.0, 0.0], dtype=torch.float64))
    >>> space = KrylovSpace(H, capacity=3)
    >>> b = space.coordinates(torch.ones(3, dtype=torch.float64))
    >>> space.resolve([Term(1, 2.0, b)], tol=1e-9) < 1e-9
    True
    >>> space.vector(space.evaluate(Term(1, 2.0, b)))  # (1 − e^{−2λ})/λ
    tensor([0.0100, 0.8647, 2.0000], dtype=torch.float64)
    """

    def __init__(self, operator: SymmetricOperator, capacity: int) -> None:
        P = operator.shape[0]
        self._operator = operator
        self._capacity = min(capacity, P)
        like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        self._Q = Basis(P, self._capacity + 1, like)
        self._T = np.zeros((self._capacity + _GUESTS,) * 2)
        self._A: list[int] = []
        self._B: list[int] = []
        self._ritz: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def n_hvp(self) -> int:
        """Number of vectors that have been multiplied."""
        return len(self._A)

    def multiply(self, i: int) -> None:
        """Multiply candidate i by H."""
        self._B.remove(i)
        self._A.append(i)
        self._T[:, i] = self._take(self._operator @ self._Q.rows[i], self._first_part(i))
        if not np.isfinite(self._T[:, i]).all():
            raise NumericalFailure(Status.STEP_UNDERFLOW, _NOT_FINITE)
        self._ritz = None

    def coordinates(self, vector: Tensor) -> np.ndarray:
        """Take a vector, shape (P,), into the space: what is new of it, if more than rounding, as a candidate."""
        return self._take(vector, 0)

    def _take(self, vector: Tensor, known_from: int) -> np.ndarray:
        n = len(self._Q)
        parts = self._Q.take(vector, known_from)
        if len(self._Q) > n:
            self._B.append(n)
        z = np.zeros(len(self._T))
        z[: len(parts)] = parts
        return z

    def _first_part(self, i: int) -> int:
        """Return the first vector of the basis in which the image of qᵢ has a part, as H is symmetric."""
        reached = np.flatnonzero(self._T[i])  # those whose images have a part in qᵢ
        return min([*reached.tolist(), *self._B, i])

    def resolve(self, terms: Sequence[Term], tol: float, *, room: float = 1.0) -> float:
        """Grow until no term's error exceeds `tol`, or that part of the room is used; return the largest error."""
        while True:
            if _overflows(self._eigh()[0], terms):
                return math.inf
            leaks = [self._leak(term) for term in terms]
            errors = [float(np.linalg.norm(leak)) for leak in leaks]
            worst = int(np.argmax(errors))
            if not errors[worst] > tol or not self._B:
                return errors[worst]
            i = self._B[int(np.argmax(leaks[worst]))]
            for _ in range(1 + len(self._A) // 16):  # a check costs O(|A|³): once every few products
                if len(self._A) >= room * self._capacity:
                    if _overflows(self._eigh()[0], terms):
                        return math.inf
                    return max(float(np.linalg.norm(self._leak(term))) for term in terms)
                n = len(self._Q)
                self.multiply(i)
                if len(self._Q) == n:
                    break
                i = n

    def evaluate(self, term: Term) -> np.ndarray:
        """Return the coordinates of a term."""
        return term.h * self._phi(term.k, term)

    def resolved(self, z: np.ndarray) -> np.ndarray:
        """Return the part of z in A."""
        part = np.zeros_like(z)
        part[self._A] = z[self._A]
        return part

    def times_H(self, z: np.ndarray) -> np.ndarray:
        """Return the coordinates of H z, for z in A."""
        return self._T[:, self._A] @ z[self._A]

    def vector(self, z: np.ndarray) -> Tensor:
        """Return the vector, shape (P,), of coordinates."""
        return self._Q.combine(z[: len(self._Q)])

    def eigenvalues(self, n: int = 0) -> np.ndarray:
        """Return the Ritz values of at least n products, smallest first."""
        while len(self._A) < min(n, self._capacity) and self._B:
            self.multiply(self._B[-1])
        return self._eigh()[0]

    def top(self, k: int) -> Eigenpairs:
        """Return the k largest Ritz pairs, with their residuals."""
        θ, Y = (each[..., ::-1][..., :k] for each in self._eigh())
        scale = float(np.abs(self._eigh()[0]).max(initial=0.0))
        residuals = np.linalg.norm(self._T[np.ix_(self._B, self._A)] @ Y, axis=0)
        residuals = torch.from_numpy(residuals / scale if scale > 0 else residuals)
        z = np.zeros((len(θ), len(self._Q)))
        z[:, self._A] = Y.T
        vectors = self._Q.combine(z).T
        return Eigenpairs(torch.from_numpy(θ.copy()), vectors, residuals, 0, residuals <= _RITZ_TOL, scale)

    def _eigh(self) -> tuple[np.ndarray, np.ndarray]:
        if self._ritz is None:
            T = self._T[np.ix_(self._A, self._A)]
            self._ritz = np.linalg.eigh(0.5 * (T + T.T))
        return self._ritz

    def _phi(self, k: int, term: Term) -> np.ndarray:
        θ, Y = self._eigh()
        z = term.b / math.factorial(k)
        z[self._A] = Y @ (phi(k, -term.h * θ) * (Y.T @ term.b[self._A]))
        return z

    def _leak(self, term: Term) -> np.ndarray:
        """Return the error of a term by candidate."""
        later = self._phi(term.k + 1, term)[self._A]
        leaves = term.h**2 * np.abs(self._T[np.ix_(self._B, self._A)] @ later)
        return leaves + term.h / math.factorial(term.k) * np.abs(term.b[self._B])


class DenseSpace:
    """ℝᴾ by the eigenvectors of a dense H: every function is exact, at P products.

    Parameters
    ----------
    operator : SymmetricOperator
        H, shape (P, P).
    """

    def __init__(self, operator: SymmetricOperator) -> None:
        P = operator.shape[0]
        self._like = torch.empty(0, dtype=operator.dtype, device=operator.device)
        H = _to_numpy(operator @ torch.eye(P).to(self._like))
        if not np.isfinite(H).all():
            raise NumericalFailure(Status.STEP_UNDERFLOW, _NOT_FINITE)
        λ, V = torch.linalg.eigh(torch.from_numpy(0.5 * (H + H.T)))
        self._λ, self._V = λ.numpy(), V.numpy()

    def coordinates(self, vector: Tensor) -> np.ndarray:
        """Return Vᵀ v."""
        return self._V.T @ _to_numpy(vector)

    def resolve(self, terms: Sequence[Term], tol: float, *, room: float = 1.0) -> float:
        """Nothing is left to resolve."""
        return math.inf if _overflows(self._λ, terms) else 0.0

    def evaluate(self, term: Term) -> np.ndarray:
        """Return the coordinates of a term."""
        return term.h * phi(term.k, -term.h * self._λ) * term.b

    def resolved(self, z: np.ndarray) -> np.ndarray:
        """Return all of z."""
        return z

    def times_H(self, z: np.ndarray) -> np.ndarray:
        """Return the coordinates of H z."""
        return self._λ * z

    def vector(self, z: np.ndarray) -> Tensor:
        """Return V z."""
        return torch.from_numpy(self._V @ z).to(self._like)

    def eigenvalues(self, n: int = 0) -> np.ndarray:
        """Return the eigenvalues, smallest first."""
        return self._λ

    def top(self, k: int) -> Eigenpairs:
        """Return the k largest eigenpairs."""
        λ = torch.from_numpy(self._λ[::-1][:k].copy())
        k = len(λ)
        zeros = torch.zeros(k, dtype=torch.float64, device="cpu")
        vectors = torch.from_numpy(self._V[:, ::-1][:, :k].copy()).to(self._like)
        return Eigenpairs(λ, vectors, zeros, 0, zeros == 0, float(np.abs(self._λ).max()))


def _overflows(λ: np.ndarray, terms: Sequence[Term]) -> bool:
    """Whether a term follows exponential growth too far."""
    return bool(len(λ) and max(-term.h * λ[0] for term in terms) > _MAX_GROWTH)


def _to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a float64 array."""
    return tensor.to("cpu", torch.float64).numpy()
