"""What a run has cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cost:
    """Evaluations so far, each over the whole data set.

    Attributes
    ----------
    n_gradients : int
        Gradients of the loss.
    n_hvps : int
        Products of its Hessian with a vector.
    n_third : int
        Products of a vector with the Hessian's derivative along another.
    """

    n_gradients: int = 0
    n_hvps: int = 0
    n_third: int = 0

    def copy(self) -> Cost:
        """Return the present counts as a value."""
        return Cost(self.n_gradients, self.n_hvps, self.n_third)
