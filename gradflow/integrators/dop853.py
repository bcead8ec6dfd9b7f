"""The method of Dormand and Prince of order 8 with the error estimate and the interpolant of Hairer and Wanner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.integrate import DOP853
from torch import Tensor

from gradflow.flows import Point
from gradflow.integrators.runge_kutta import EmbeddedPair, combine
from gradflow.integrators.step_size.base import norm
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.integrators.tableau import Tableau


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(each) for each in row) for row in matrix)


#: Its coefficients are SciPy's; the estimates have a thirteenth weight, for the velocity at the step's end.
_A, _B = _rows(DOP853.A), tuple(map(float, DOP853.B))
_E3, _E5 = tuple(map(float, DOP853.E3)), tuple(map(float, DOP853.E5))
#: The largest value of s⁴(1 − s)³, by which the interpolant's last term is multiplied.
_LAST = 4**4 * 3**3 / 7**7
#: Three more stages, which the interpolant takes, and its weights.
_A_MORE, _D = _rows(DOP853.A_EXTRA), _rows(DOP853.D)


@dataclass(frozen=True)
class DormandPrince853(EmbeddedPair):
    """The method of order 8 of Dormand and Prince: twelve gradients a step, and an interpolant of order 7.

    Hairer, Nørsett & Wanner (1993), II.5 and II.6, where it is called DOP853. Its error estimate joins one of order 5
    and one of order 3 as e₅ · e₅/√(e₅² + e₃²/100). The interpolant takes three gradients, for the first record within
    a step. Where its last term is above the tolerance, as it may be in steps that stability limits, a record is the end
    of a shorter step from the same start. Options are those of :class:`EmbeddedPair`.
    """

    name: ClassVar[str] = "dop853"
    order: ClassVar[int] = 8
    error_order: ClassVar[int] = 8
    interpolates: ClassVar[bool] = True
    tableau: ClassVar[Tableau] = Tableau(A=tuple(row[:i] for i, row in enumerate(_A)), b=_B, error=_E5)

    def error(self, h: float, K: Sequence[Tensor]) -> float:
        """Return the joint estimate of both."""
        e5, e3 = (norm(h * combine(weights, K)) for weights in (_E5, _E3))
        scale = math.hypot(e5, 0.1 * e3)
        return e5 * (e5 / scale) if scale > 0 else e5

    def _interpolant(
        self, point: Point, end: Point, h: float, K: Sequence[Tensor]
    ) -> Callable[[float], Tensor]:
        z, f, Δ = point.z, point.field, end.z - point.z
        found: list[Tensor] = []

        def polynomial() -> list[Tensor]:
            stages = [*K, end.velocity]
            for a in _A_MORE:
                stages.append(f(z + h * combine(a[: len(stages)], stages)))
            slope = h * K[0]
            low = [Δ, slope - Δ, 2 * Δ - slope - h * end.velocity]
            return low + [h * combine(d, stages) for d in _D]

        def interpolant(s: float) -> Tensor:
            if not found:
                found.extend(polynomial())
            if _LAST * norm(found[-1]) > tolerance(self.tolerances, point, end.z):
                return z.clone() if s == 0 else self.step(point, s * h, None).z
            value = found[-1] * (s if len(found) % 2 else 1 - s)
            for i in range(len(found) - 2, -1, -1):
                value = (value + found[i]) * (1 - s if i % 2 else s)
            return z + value

        return interpolant
