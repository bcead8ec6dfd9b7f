"""A flow given as a function of the point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from gradflow.flows.base import Flow, check_vector

if TYPE_CHECKING:
    from gradflow.flows.point import Point


@dataclass(frozen=True)
class FunctionFlow(Flow):
    """dθ/dt as a function of the point, for explicit methods.

    Parameters
    ----------
    function : callable
        ``function(point) -> Tensor``, shape (P,), in θ's dtype: ``lambda point: -point.gradient - 0.1 * point.theta``.
    """

    function: Callable[[Point], Tensor]

    name: ClassVar[str] = "function"

    def velocity(self, point: Point) -> Tensor:
        """Call the function."""
        return check_vector("flow(point) to return dθ/dt", self.function(point), point.theta)

    def settings(self) -> dict[str, Any]:
        """Name the function."""
        f = self.function
        return {"function": getattr(f, "__qualname__", type(f).__qualname__)}
