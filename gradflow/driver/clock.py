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


def fit_step(h: float, cap: float, t: float, target: float) -> tuple[float, bool]:
    """Fit a step before a time that must be hit.

    Parameters
    ----------
    h : float
        The size that is wanted.
    cap : float
        The largest size that is allowed; the step is at most as long as the smaller of both.
    t, target : float
        Now, and the time that must not be stepped over.

    Returns
    -------
    h : float
        The rest of the way if h reaches (to 1e-9 of h); half of it if two steps of size `cap` do, so that no sliver
        is left; else h.
    lands : bool
        Whether the step ends at the target.
    """
    rest = target - t
    reaches = rest <= cap * (1 + 1e-9)
    room = rest if reaches else rest / 2 if rest < 2 * cap else cap
    size = min(h, room)
    if room - size <= 1e-9 * size:
        return room, reaches
    return size, False


def underflows(h: float, t: float) -> bool:
    """Whether a step is lost in the rounding of t."""
    return not h > 4 * math.ulp(t)
