"""A flow given as a function of the point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from gradflow.errors import InvalidTypeError
from gradflow.flows.base import Flow

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
        velocity = self.function(point)
        θ = point.theta
        if (
            not isinstance(velocity, Tensor)
            or velocity.shape != θ.shape
            or velocity.dtype != θ.dtype
            or velocity.device != θ.device
        ):
            got = (
                f"shape {tuple(velocity.shape)} in {velocity.dtype} on {velocity.device}"
                if isinstance(velocity, Tensor)
                else type(velocity).__name__
            )
            raise InvalidTypeError(
                f"Expected flow(point) to return dθ/dt as a Tensor of shape {tuple(θ.shape)} in {θ.dtype} on "
                f"{θ.device}, got {got}."
            )
        return velocity.detach()

    def settings(self) -> dict[str, Any]:
        """Name the function."""
        f = self.function
        return {"function": getattr(f, "__qualname__", type(f).__qualname__)}
