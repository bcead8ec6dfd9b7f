"""Mean and spread of the accepted losses, by which ELRA judges the next."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Period:
    """Mean and spread of the accepted losses of a period (Welford 1962).

    Attributes
    ----------
    F, V : float
        Sum, and sum of squared deviations from the mean.
    n : int
        Losses in them.
    t, r : int
        Real calls, and those of them that were revoked.
    """

    F: float = 0.0
    V: float = 0.0
    n: int = 0
    t: int = 0
    r: int = 0

    def count(self, has_gradient: bool) -> None:
        """Count a real call."""
        self.t += 1

    def add(self, f: float) -> None:
        """Enter an accepted loss."""
        self.n += 1
        self.F += f
        if self.n > 1:
            away = self.F - self.n * f
            self.V += away * away / (self.n * (self.n - 1))

    def mean(self) -> float:
        """Return the mean loss; there must be one."""
        return self.F / self.n

    def deviation(self) -> float:
        """Return the standard deviation of the losses; there must be one."""
        return math.sqrt(self.V / self.n)

    def close(self) -> None:
        """Settle the numbers at the period's end."""

    def end_window(self) -> None:
        """Take note that a window of the schedule ended."""


@dataclass
class CompatPeriod(Period):
    """The statistics of the reference numbers, which count otherwise.

    n is t − r + 1, one too many in the first period; the spread is divided by t²; a revocation without gradient is
    two calls; revocations are forgotten at the end of every window, calls only at the end of the period.
    """

    def count(self, has_gradient: bool) -> None:
        """Count a real call, and one without gradient twice."""
        self.t += 1 if has_gradient else 2

    def add(self, f: float) -> None:
        """Enter an accepted loss."""
        self.F += f
        self.n = self.t - self.r + 1
        away = (self.F - self.n * f) / self.t if self.t > 0 else 0.0
        self.V = self.V + away * away if self.t > 0 else 0.0

    def close(self) -> None:
        """Take t − r for the number of losses."""
        self.n = self.t - self.r

    def end_window(self) -> None:
        """Forget the revocations."""
        self.r = 0
