"""The φ-functions of exponential integrators."""

from __future__ import annotations

import math

import numpy as np

#: Terms of the series that is used for |z| < 1; the first one left out is below 1e-18.
_N_TERMS = 20


def phi(k: int, z: np.ndarray) -> np.ndarray:
    """φ₀(z) = eᶻ, φₖ(z) = (φₖ₋₁(z) − 1/(k−1)!)/z, with φₖ(0) = 1/k!; accurate to rounding for finite z.

    φ₁ through ``expm1``; beyond, the series Σ zʲ/(j+k)! for |z| < 1, where the recurrence cancels.

    Examples
    --------
    >>> phi(1, np.array([0.0, 1e-12, -50.0])).round(12)
    array([1.  , 1.  , 0.02])
    >>> phi(3, np.array([0.0]))
    array([0.16666667])
    """
    z = np.asarray(z, dtype=np.float64)
    if k == 0:
        return np.exp(z)
    safe = np.where(z == 0, 1.0, z)
    value = np.where(z == 0, 1.0, np.expm1(safe) / safe)
    if k == 1:
        return value
    large = np.where(np.abs(z) < 1, 1.0, z)
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / large
    small = np.clip(z, -1, 1)
    series = np.zeros_like(z)
    for j in range(_N_TERMS - 1, -1, -1):
        series = series * small + 1 / math.factorial(j + k)
    return np.where(np.abs(z) < 1, series, value)
