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
#: Steps of Newton's method, and multipliers, in all.
MAX_ITERATIONS, MAX_MULTIPLIERS = 1000, 40

_GOAL = 1e-12  # residual at which the iteration ends
_STIFFEST = 1e3  # largest weight σ of the constraint
_CLOSEST = 1e-11  # smallest weight ε of the distance to the last iterate


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
    status: Literal["solved", "unsolvable", "inaccurate"] = (
        "solved" if residual <= TOLERANCE else "inaccurate"
    )
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
        """Minimise the proximal augmented Lagrangian over X, take S ← Π₊(S − σX), and so on until X and S fit.

        Rockafellar, Math. Oper. Res. 1 (1976): it converges for any weights σ > 0, ε > 0, the faster the larger σ and
        the smaller ε. Without a solution X grows for ever, in a direction that proves it.
        """
        weight, epsilon, n = 1.0, 1e-3, 0
        slack = _positive_part(self.alpha + self.beta @ x)
        best, least = x, np.inf
        for _ in range(MAX_MULTIPLIERS):
            sigma = weight / float(np.clip(np.linalg.norm(x), 1.0, 1e2))
            x, n = self._newton(_Multiplier(slack, x, sigma, epsilon), n)
            w = slack - sigma * x
            slack = _positive_part(w)
            x = (slack - w) / sigma  # now ⟨X, S⟩ = 0
            residual = self.residual(x)
            if residual < least:
                best, least = x, residual
            if residual <= _GOAL:
                break
            if epsilon == _CLOSEST and self._falls_for_ever(x):
                return x, False, n
            weight, epsilon = min(10.0 * weight, _STIFFEST), max(0.1 * epsilon, _CLOSEST)
        return best, True, n

    def _newton(self, given: _Multiplier, n: int) -> tuple[np.ndarray, int]:
        """Minimise an augmented Lagrangian, which is convex, by Newton's method with a line search."""
        x = given.last
        here = self._lagrangian(x, given)
        while n < MAX_ITERATIONS and not here.is_minimal:
            n += 1
            step = -np.linalg.solve(self._hessian(here, given), here.gradient)
            slope, fraction = here.gradient @ step, 1.0
            while fraction > 1e-15:
                there = self._lagrangian(x + fraction * step, given)
                falls = there.value <= here.value + 1e-4 * fraction * slope
                if falls or there.gradient @ step <= 0.0:  # which means the same, and rounding can't hide it
                    break
                fraction /= 2
            else:
                break
            x, here = x + fraction * step, there
        return x, n

    def _lagrangian(self, x: np.ndarray, given: _Multiplier) -> _Lagrangian:
        """Evaluate ½⟨X, β[X]⟩ + ⟨A, X⟩ + ‖Π₊(S − σX)‖²/2σ + ½ε‖X − X₀‖²."""
        sigma, epsilon = given.sigma, given.epsilon
        mu, W = np.linalg.eigh(smat(given.slack - sigma * x))
        positive = np.maximum(mu, 0.0)
        slack, force, move = svec((W * positive) @ W.T), self.beta @ x, x - given.last
        value = (
            x @ (0.5 * force + self.alpha) + positive @ positive / (2 * sigma) + 0.5 * epsilon * move @ move
        )
        gradient = force + self.alpha - slack + epsilon * move
        length = np.linalg.norm
        rounding = 1e-14 * (length(self.alpha) + length(force) + length(slack)) + 1e-15 * sigma * length(x)
        is_minimal = bool(length(gradient) <= rounding + 1e-3 * length(slack - given.slack))
        return _Lagrangian(float(value), gradient, mu, W, is_minimal)

    def _hessian(self, at: _Lagrangian, given: _Multiplier) -> np.ndarray:
        """Return β + σΠ₊′ + ε, with Löwner's divided differences (μ₊ − ν₊)/(μ − ν) for Π₊′."""
        i, j, _ = _triangle(len(self.alpha))
        mu, nu = at.mu[i], at.mu[j]
        sizes = np.abs(mu) + np.abs(nu)
        rising = np.maximum(mu, 0.0) + np.maximum(nu, 0.0)
        slopes = np.divide(rising, sizes, out=np.ones_like(sizes), where=sizes > 0)  # 0, 1, or between
        K = _congruence(at.vectors)
        hessian = self.beta + given.sigma * (K * slopes) @ K.T
        hessian[np.diag_indices_from(hessian)] += given.epsilon
        return hessian

    def _falls_for_ever(self, x: np.ndarray) -> bool:
        """Whether nothing stops the objective from falling along X ⪰ 0, to the accuracy of ε."""
        curvature, fall = x @ self.beta @ x, -self.alpha @ x
        return bool(curvature <= 0.1 * _CLOSEST * x @ x and fall >= 10.0 * curvature)

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
class _Multiplier:
    """What an augmented Lagrangian is made with: S, the last X, and the weights σ and ε."""

    slack: np.ndarray
    last: np.ndarray
    sigma: float
    epsilon: float


@dataclass(frozen=True)
class _Lagrangian:
    """An augmented Lagrangian at a point, with the eigenpairs of S − σX there."""

    value: float
    gradient: np.ndarray
    mu: np.ndarray
    vectors: np.ndarray
    is_minimal: bool


def _positive_part(v: np.ndarray) -> np.ndarray:
    """Return the nearest positive semidefinite matrix."""
    mu, W = np.linalg.eigh(smat(v))
    return svec((W * np.maximum(mu, 0.0)) @ W.T)
