"""The coefficients of explicit Runge–Kutta methods."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import count, zip_longest

import numpy as np
from scipy.optimize import brentq

from gradflow.errors import InvalidInputError


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau of an explicit method for autonomous equations.

    Parameters
    ----------
    A : tuple of tuple of float
        Row i has the i coefficients of stage i + 1: (), (a₂₁,), (a₃₁, a₃₂), and so on.
    b : tuple of float
        Weights of the stages.
    error : tuple of float, optional
        b − b̂: weights of the error estimate. It may have one entry more, for the velocity at the step's end.
    dense : tuple of tuple of float, optional
        Row i has the coefficients of s, s², … in stage i's weight at the fraction s of the step; it may have one row
        more, as `error`. Default: a method that interpolates uses the cubic Hermite polynomial.

    Raises
    ------
    InvalidInputError
        If lengths don't fit, or Σb ≠ 1, or Σ error ≠ 0, or `dense` doesn't end at b.
    """

    A: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        s = len(self.b)
        if [len(row) for row in self.A] != list(range(s)):
            raise InvalidInputError(f"Expected {s} rows of A with 0 to {s - 1} entries, got {self.A}.")
        if abs(sum(self.b) - 1) > 1e-12:
            raise InvalidInputError(f"Expected weights b with the sum 1, got {sum(self.b)!r}.")
        for name, rows in (("error", self.error), ("dense", self.dense)):
            if rows is not None and len(rows) not in {s, s + 1}:
                raise InvalidInputError(f"Expected {s} or {s + 1} entries in {name}, got {len(rows)}.")
        if self.error is not None and abs(sum(self.error)) > 1e-12:
            raise InvalidInputError(f"Expected an error estimate with the sum 0, got {sum(self.error)!r}.")
        if self.dense is not None:
            ends = [sum(row) for row in self.dense]
            if any(abs(end - b) > 1e-12 for end, b in zip_longest(ends, self.b, fillvalue=0.0)):
                raise InvalidInputError(f"Expected rows of dense with the sums b = {self.b}, got {ends}.")

    @cached_property
    def apart(self) -> tuple[float, ...] | None:
        """Weights of what lies between the last stage and the step's end, if that stage is at the step's end."""
        last = (*self.A[-1], 0.0)
        if abs(sum(last) - 1) > 1e-12:
            return None
        return tuple(b - a for a, b in zip(last, self.b, strict=True))

    @cached_property
    def real_stability(self) -> float:
        """Length of the real stability interval."""
        A = np.zeros((len(self.b), len(self.b)))
        for i, row in enumerate(self.A):
            A[i, :i] = row
        return real_stability(A, np.array(self.b))


def real_stability(A: np.ndarray, b: np.ndarray) -> float:
    """Return the length of the real stability interval of a Runge–Kutta method.

    The largest x such that |R(−s)| ≤ 1 for all 0 ≤ s ≤ x, with R(z) = 1 + z bᵀ(I − zA)⁻¹1; looked for in steps of 0.01.
    """
    identity, ones = np.eye(len(b)), np.ones(len(b))

    def excess(x: float) -> float:
        R = 1 - x * b @ np.linalg.solve(identity + x * A, ones)
        return float(abs(R) - 1 - 1e-12)

    after = next(x for x in (0.01 * n for n in count(1)) if excess(x) > 0)  # no polynomial stays bounded
    return float(brentq(excess, after - 0.01, after, xtol=1e-12))
