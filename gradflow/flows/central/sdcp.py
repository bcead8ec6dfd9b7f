"""The semidefinite complementarity problem of the central flow, 0 ⪯ X ⟂ A + β[X] ⪰ 0, for small matrices.

Symmetric k × k matrices are vectors of m = k(k+1)/2 numbers here: the upper triangle row by row, with √2 on the
off-diagonal entries, so that inner products stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

#: Largest scaled residual of a solution.
TOLERANCE = 1e-10
#: Eigenvalues of β below this, relative to the largest, count as zero.
RANK = 1e-13
#: Steps of Newton's method in all.
MAX_ITERATIONS = 400
#: Augmented Lagrangians in all.
MAX_MULTIPLIERS = 40

PROXIMITY = 1e-11  # weight of the distance to the last iterate, which chooses where X isn't unique


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes
    ----------
    x : ndarray, shape (m,)
        X; without a solution the last iterate.
    status : {"solved", "unsolvable", "inaccurate"}
        "unsolvable": some X ⪰ 0 has β[X] = 0 and ⟨A, X⟩ < 0. "inaccurate": the residual is above
        :data:`TOLERANCE`.
    residual : float
        The largest of −λ_min(X), −λ_min(A + β[X]) and |⟨X, A + β[X]⟩|, relative to the norms of X and of
        A and β[X].
    condition : float
        Condition number of β among the matrices on the kernel of A + β[X], where X can differ. Where it is infinite,
        or nearly so, X isn't unique.
    n_iterations : int
        Steps of Newton's method.
    """

    x: np.ndarray
    status: Literal["solved", "unsolvable", "inaccurate"]
    residual: float
    condition: float
    n_iterations: int


# ---------------------------------------------------------------------- coordinates


@cache
def _triangle(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows i ≤ columns j of the entries, and the weights that make them orthonormal coordinates."""
    k = size(m)
    i, j = np.triu_indices(k)
    return i, j, np.where(i == j, 1.0, np.sqrt(2.0))


def size(m: int) -> int:
    """Return k of m = k(k+1)/2.

    Raises
    ------
    ValueError
        If there is none.
    """
    k = int((np.sqrt(8 * m + 1) - 1) / 2 + 0.5)
    if k * (k + 1) // 2 != m:
        raise ValueError(f"Expected k(k+1)/2 entries of a symmetric matrix (1, 3, 6, 10, …), got {m}.")
    return k


def svec(M: np.ndarray) -> np.ndarray:
    """Return symmetric matrices, shape (…, k, k), as vectors, shape (…, m); the upper triangle is read."""
    k = M.shape[-1]
    i, j, weight = _triangle(k * (k + 1) // 2)
    return weight * M[..., i, j]


def smat(v: np.ndarray) -> np.ndarray:
    """Return vectors, shape (…, m), as symmetric matrices, shape (…, k, k)."""
    i, j, weight = _triangle(v.shape[-1])
    k = size(v.shape[-1])
    M = np.empty((*v.shape[:-1], k, k))
    M[..., i, j] = M[..., j, i] = v / weight
    return M


def _congruence(W: np.ndarray) -> np.ndarray:
    """Return the matrix, shape (m, m), of M ↦ W M Wᵀ."""
    k = len(W)
    i, j, weight = _triangle(k * (k + 1) // 2)
    half = weight / np.sqrt(2.0)
    products = W[np.ix_(i, i)] * W[np.ix_(j, j)] + W[np.ix_(i, j)] * W[np.ix_(j, i)]
    return half[:, None] * products * half


# ---------------------------------------------------------------------- the problem


def solve(alpha: np.ndarray, beta: np.ndarray, start: np.ndarray | None = None) -> Solution:
    """Solve 0 ⪯ X ⟂ A + β[X] ⪰ 0, which minimises ½⟨X, β[X]⟩ + ⟨A, X⟩ over X ⪰ 0.

    X = 0 where A ⪰ 0; else X = −β⁻¹[A] where that is positive semidefinite, the usual case; else Newton's method on
    augmented Lagrangians. Results scale with A and with 1/β. The solution is checked.

    Parameters
    ----------
    alpha : ndarray, shape (m,)
        A.
    beta : ndarray, shape (m, m)
        β, symmetric positive semidefinite but for rounding.
    start : ndarray, shape (m,), optional
        A guess of X: the solution of the problem before. Where X isn't unique the solution is near to it. Default: 0.

    Raises
    ------
    ValueError
        For shapes that don't belong together, and numbers that aren't finite.
    """
    alpha, beta = np.asarray(alpha, dtype=np.float64), np.asarray(beta, dtype=np.float64)
    m = len(alpha)
    size(m)
    if beta.shape != (m, m) or (start is not None and np.shape(start) != (m,)):
        raise ValueError(
            f"Expected beta of shape {(m, m)} and start of shape {(m,)} for alpha of shape {(m,)}, got "
            f"{beta.shape} and {None if start is None else np.shape(start)}."
        )
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ValueError("Expected finite numbers in alpha and beta, got inf or nan: the flow has diverged.")
    a, b = np.abs(alpha).max(), np.abs(beta).max()
    a, b = a or 1.0, b or 1.0
    problem = _Problem(alpha / a, beta / b)
    x, solvable, n = problem.solve(None if start is None else np.asarray(start, dtype=np.float64) * (b / a))
    residual = problem.residual(x)
    status: Literal["solved", "unsolvable", "inaccurate"] = "solved" if residual <= TOLERANCE else "inaccurate"
    return Solution(x * (a / b), status if solvable else "unsolvable", residual, problem.condition(x), n)


class _Problem:
    """The problem with A and β of size one."""

    def __init__(self, alpha: np.ndarray, beta: np.ndarray) -> None:
        self.alpha = alpha
        values, self.vectors = np.linalg.eigh((beta + beta.T) / 2)
        self.values = np.where(values > RANK * np.abs(values).max(), values, 0.0)
        self.beta = (self.vectors * self.values) @ self.vectors.T

    def solve(self, start: np.ndarray | None) -> tuple[np.ndarray, bool, int]:
        """Return X, whether there is a solution, and the number of Newton's steps."""
        zero = np.zeros_like(self.alpha)
        if self.residual(zero) <= 1e-14:
            return zero, True, 0
        x = self._unconstrained()
        if self.residual(x) <= 1e-14:
            return x, True, 0
        return self._augmented_lagrangians(zero if start is None else start)

    def _unconstrained(self) -> np.ndarray:
        """Return X of least norm with A + β[X] = 0, as near as β's kernel lets it."""
        inverse = np.divide(1.0, self.values, out=np.zeros_like(self.values), where=self.values > 0)
        return -self.vectors @ (inverse * (self.vectors.T @ self.alpha))

    def _augmented_lagrangians(self, x: np.ndarray) -> tuple[np.ndarray, bool, int]:
        """Minimise q(X) + ‖Π₊(S − σX)‖²/2σ over all X, S ← Π₊(S − σX), σ growing, until both are solutions."""
        n, sigma = 0, 1.0
        slack = _positive_part(self.alpha + self.beta @ x)
        best, least = x, np.inf
        for _ in range(MAX_MULTIPLIERS):
            x, n = self._newton(x, slack, sigma, n)
            w = slack - sigma * x
            slack = _positive_part(w)
            x = (slack - w) / sigma
            residual = self.residual(x)
            if residual < least:
                best, least = x, residual
            if residual <= 1e-12:
                break
            if self._proves_unsolvable(x):
                return x, False, n
            sigma = min(10 * sigma, 1e3)
        return best, True, n

    def _newton(self, x: np.ndarray, slack: np.ndarray, sigma: float, n: int) -> tuple[np.ndarray, int]:
        """Minimise q(X) + ‖Π₊(S − σX)‖²/2σ + ½ε‖X − X₀‖², which is convex, by Newton's method."""
        here = self._lagrangian(x, x, slack, sigma)
        x0 = x
        while n < MAX_ITERATIONS and not here.is_minimal(slack):
            n += 1
            step = -np.linalg.solve(self._hessian(here, sigma), here.gradient)
            slope, fraction = here.gradient @ step, 1.0
            while fraction > 1e-9:
                there = self._lagrangian(x + fraction * step, x0, slack, sigma)
                falls = there.value <= here.value + 1e-4 * fraction * slope
                if falls or there.gradient @ step <= 0.0:  # the latter is safe from rounding
                    break
                fraction /= 2
            else:
                break
            x, here = x + fraction * step, there
        return x, n

    def _lagrangian(self, x: np.ndarray, x0: np.ndarray, slack: np.ndarray, sigma: float) -> _Lagrangian:
        mu, W = np.linalg.eigh(smat(slack - sigma * x))
        positive = np.maximum(mu, 0.0)
        force, move, slack = self.beta @ x, x - x0, svec((W * positive) @ W.T)
        value = x @ (0.5 * force + self.alpha) + positive @ positive / (2 * sigma) + 0.5 * PROXIMITY * move @ move
        gradient = force + self.alpha - slack + PROXIMITY * move
        rounding = 1e-14 * float(np.linalg.norm(self.alpha) + np.linalg.norm(force) + np.linalg.norm(slack))
        rounding += 1e-15 * sigma * float(np.linalg.norm(x))
        return _Lagrangian(value, gradient, rounding, slack, mu, W)

    def _hessian(self, at: _Lagrangian, sigma: float) -> np.ndarray:
        """Return β + σΠ₊′ + ε, with Löwner's divided differences of the positive part."""
        i, j, _ = _triangle(len(self.alpha))
        positive, gap = np.maximum(at.mu, 0.0), np.abs(at.mu[i]) + np.abs(at.mu[j])
        same = at.mu[i] * at.mu[j] > 0
        mixed = np.divide(positive[i] + positive[j], gap, out=np.ones_like(gap), where=gap > 0)
        slopes = np.where(same, np.where(at.mu[i] > 0, 1.0, 0.0), mixed)
        K = _congruence(at.vectors)
        hessian = self.beta + sigma * (K * slopes) @ K.T
        hessian[np.diag_indices_from(hessian)] += PROXIMITY
        return hessian

    def _proves_unsolvable(self, x: np.ndarray) -> bool:
        """Whether X ⪰ 0 is a direction in which q falls for ever."""
        return bool(self.alpha @ x < 0 and np.linalg.norm(self.beta @ x) <= -1e-8 * (self.alpha @ x))

    # ------------------------------------------------------------------ what was found

    def residual(self, x: np.ndarray) -> float:
        """Return the scaled residual of X: see :class:`Solution`."""
        force = self.beta @ x
        slack, size_of_x = self.alpha + force, float(np.linalg.norm(x))
        size_of_slack = float(np.linalg.norm(self.alpha) + np.linalg.norm(force)) or 1.0
        negative = -np.linalg.eigvalsh(smat(slack))[0] / size_of_slack
        if size_of_x == 0.0:
            return max(0.0, float(negative))
        outside = -np.linalg.eigvalsh(smat(x))[0] / size_of_x
        overlap = abs(x @ slack) / (size_of_x * size_of_slack)
        return max(0.0, float(negative), float(outside), float(overlap))

    def condition(self, x: np.ndarray) -> float:
        """Return the condition number of β on the kernel of A + β[X]."""
        slack = smat(self.alpha + self.beta @ x)
        values, W = np.linalg.eigh(slack)
        face = values <= 1e-8 * (np.linalg.norm(self.alpha) + np.linalg.norm(self.beta @ x))
        i, j, _ = _triangle(len(self.alpha))
        K = _congruence(W)[:, face[i] & face[j]]
        if K.shape[1] == 0:
            return 1.0
        values = np.linalg.eigvalsh(K.T @ self.beta @ K)
        return float(values[-1] / values[0]) if values[0] > RANK * values[-1] else float("inf")


@dataclass(frozen=True)
class _Lagrangian:
    """The augmented Lagrangian at a point: Π₊(S − σX) is `slack`, S − σX has eigenvalues `mu`."""

    value: float
    gradient: np.ndarray
    rounding: float
    slack: np.ndarray
    mu: np.ndarray
    vectors: np.ndarray

    def is_minimal(self, before: np.ndarray) -> bool:
        """Whether the gradient is small beside what the multiplier changes by."""
        return bool(np.linalg.norm(self.gradient) <= self.rounding + 1e-3 * np.linalg.norm(self.slack - before))


def _positive_part(v: np.ndarray) -> np.ndarray:
    """Return the nearest positive semidefinite matrix."""
    mu, W = np.linalg.eigh(smat(v))
    return svec((W * np.maximum(mu, 0.0)) @ W.T)
