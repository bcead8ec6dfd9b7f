"""Flow time in float64, whatever the dtype of θ."""

from __future__ import annotations

import math


class Clock:
    """A time that is summed without losing the small steps (Neumaier 1974)."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._lost = 0.0

    @property
    def t(self) -> float:
        """Time now."""
        return self._sum + self._lost

    def add(self, h: float) -> None:
        """Advance by h."""
        total = self._sum + h
        larger, smaller = (self._sum, h) if abs(self._sum) >= abs(h) else (h, self._sum)
        self._lost += (larger - total) + smaller
        self._sum = total

    def set(self, t: float) -> None:
        """Be at t exactly."""
        self._sum, self._lost = t, 0.0

    def state(self) -> tuple[float, float]:
        """Return the sum and what it has lost."""
        return self._sum, self._lost

    def restore(self, state: tuple[float, float]) -> None:
        """Be where another clock was."""
        self._sum, self._lost = state


def fit_step(h: float, t: float, target: float) -> tuple[float, bool]:
    """Fit a step of at most h before a time that must be hit.

    Returns
    -------
    h : float
        The rest of the way if h reaches (to 1e-9 of h); half of it if two steps do, so that no sliver is
        left; else h.
    lands : bool
        Whether the step ends at the target.
    """
    rest = target - t
    if rest <= h * (1 + 1e-9):
        return rest, True
    return (rest / 2, False) if rest < 2 * h else (h, False)


def underflows(h: float, t: float) -> bool:
    """Whether a step is lost in the rounding of t."""
    return not h > 4 * math.ulp(t)
