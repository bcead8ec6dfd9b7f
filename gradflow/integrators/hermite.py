"""The cubic Hermite interpolant of a step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

#: Its error is that of a step of this order.
HERMITE_ORDER = 3


def hermite(z: Tensor, d: Tensor, h: float, f0: Tensor, f1: Tensor) -> Callable[[float], Tensor]:
    """Return the cubic that has the values z and z + d, and the slopes f0 and f1, at the ends of a step of size h.

    Its error is O(h⁴).
    """

    def interpolant(s: float) -> Tensor:
        a, b, e = (1 + 2 * s) * (1 - s) ** 2, s * (1 - s) ** 2, s * s * (s - 1)
        return z + (1 - a) * d + h * (b * f0 + e * f1)

    return interpolant
