"""Mean and spread of the accepted losses, by which ELRA judges the next."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Period:
    """Mean and spread of the accepted losses of a period (Welford 1962).

    Attributes
    ----------
    loss_sum, square_sum : float
        Sum of the losses, and sum of their squared deviations from the mean.
    n_losses : int
    n_calls, n_revoked : int
        Real calls, and those of them that were revoked.
    """

    loss_sum: float = 0.0
    square_sum: float = 0.0
    n_losses: int = 0
    n_calls: int = 0
    n_revoked: int = 0

    def add(self, f: float) -> None:
        """Add an accepted loss."""
        self.n_losses += 1
        self.loss_sum += f
        if self.n_losses > 1:
            away = self.loss_sum - self.n_losses * f
            self.square_sum += away * away / (self.n_losses * (self.n_losses - 1))

    def mean(self) -> float:
        """Return the mean loss; there must be one."""
        return self.loss_sum / self.n_losses

    def deviation(self) -> float:
        """Return the standard deviation of the losses; there must be one."""
        return math.sqrt(self.square_sum / self.n_losses)
