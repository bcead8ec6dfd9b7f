"""A stabilised explicit method: Runge–Kutta–Chebyshev."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from gradflow.checks import check_count, check_number
from gradflow.flows import Point
from gradflow.integrators.base import StepResult
from gradflow.integrators.controlled import ErrorControlled
from gradflow.integrators.hermite import hermite
from gradflow.integrators.step_size.base import check_finite, norm, safe_divide
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.integrators.step_size.sharpness import values_of
from gradflow.plain import restorable
from gradflow.spectrum import Eigenpairs
from gradflow.status import NumericalFailure

#: λ₁ is measured to 5 %, and may grow by another 5 % until it is measured again, or by what its growth so far says.
_SHARPNESS_TOL, _GROWTH = 0.05, 0.05
#: What of the growth of λ₁ is allowed for, over that between its last two measurements.
_FASTER = 2.0
_EVERY_AT_MOST = 20
#: Stages after which λ₁ is measured at the latest, over the products that it took.
_STAGES = 20
#: Over the tolerance: the error of a step that was too long for λ₁ at its end.
_TOO_LARGE = 1.01
#: A falling λ₁ counts this much less than a rising one.
_FALL = 6.0


@restorable
@dataclass(frozen=True)
class _Sharpness:
    """What is known of λ₁.

    Attributes
    ----------
    pairs : Eigenpairs
        λ₁ as last measured.
    age : int
        The steps since.
    every : int
        Steps after which it is measured again.
    stages : int
        Stages after which it is measured again, if that is sooner; what is left of them.
    growth : float
        The growth of λ₁ until then that steps are stable for.
    """

    pairs: Eigenpairs
    age: int = 0
    every: int = 1
    stages: int = 0
    growth: float = 0.0

    @property
    def bound(self) -> float:
        """The most that λ₁ may have been."""
        return (1 + _SHARPNESS_TOL) * max(float(self.pairs.values[0]), 0.0)


@dataclass(frozen=True)
class RKC(ErrorControlled):
    """The Runge–Kutta–Chebyshev method of order 2, whose stability interval grows with its stages squared.

    Sommeijer, Shampine & Verwer, J. Comput. Appl. Math. 88 (1997) 315–326. A step of size h takes the
    s ~ √(hλ₁) stages, of a gradient each, that make it stable; products with the Hessian are taken for λ₁
    alone: whenever it may have changed by 5 %, at the latest after 20 steps, after twenty times as many stages as
    it takes products, and after a rejection. It is measured at a step's end, and a step that wasn't stable there is
    taken again: s stages amplify a mode beyond the stability interval by exp(O(s)), from too little to be seen in
    the error estimate. θ within a step is the cubic Hermite interpolant. Options beside those of
    :class:`ErrorControlled`:

    Parameters
    ----------
    damping : float, default 5.0
        ε in w₀ = 1 + ε/s². The published 2/13 has stability interval 0.653 (s² − 1) but leaves up to 0.95 of a
        stiff mode after a step, which the error estimate then sees for long; 5 leaves 0.38, on
        0.44 (s² − 1).
    max_stages : int, default 200
        Most stages in a step; a step that needs more is shortened.
    """

    damping: float = 5.0
    max_stages: int = 200

    name: ClassVar[str] = "rkc"
    order: ClassVar[int] = 2
    error_order: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("damping", self.damping, above=0)
        check_count("max_stages", self.max_stages, least=2)

    @property
    def stability_interval(self) -> float:
        """Of a step with the most stages."""
        return chebyshev(self.max_stages, self.damping).interval

    def _sharpness(self, point: Point, state: _Sharpness | None) -> _Sharpness:
        """Return λ₁ as all attempts at a point use it."""
        return point.work(self, lambda: self._measure(point) if state is None else state)

    @staticmethod
    def _measure(point: Point) -> _Sharpness:
        pairs = check_finite(point.rates(1, tol=_SHARPNESS_TOL))
        growth = _GROWTH * abs(float(pairs.values[0]))
        return _Sharpness(values_of(pairs), stages=_STAGES * max(1, pairs.n_hvp), growth=growth)

    def _look(self, point: Point, state: _Sharpness, s: int) -> _Sharpness:
        """Return what is known of λ₁ after a step of s stages.

        It is measured if it is time to, less often while it hardly changes.
        """
        state = dataclasses.replace(state, age=state.age + 1, stages=state.stages - s)
        if state.age < state.every and state.stages > 0:
            return state
        now = self._measure(point)
        before, after = float(state.pairs.values[0]), float(now.pairs.values[0])
        # A λ₁ that is too large costs stages, one that is too small the step.
        change = (after - before if after > before else (before - after) / _FALL) / state.age
        every = safe_divide(_GROWTH * abs(after), change)
        every = int(min(max(1.0, every), _EVERY_AT_MOST, 3 * state.every))
        growth = _FASTER * every * (after - before) / state.age
        return dataclasses.replace(now, every=every, growth=max(now.growth, growth))

    def first_size(self, point: Point, state: _Sharpness | None) -> float:
        """Return 1/λ₁."""
        return safe_divide(1.0, self._sharpness(point, state).pairs.scale)

    def after_rejection(self, point: Point, state: _Sharpness | None) -> _Sharpness | None:
        """Measure λ₁ here; if that has been done, allow for twice the growth."""
        sharpness = self._sharpness(point, state)
        if sharpness.age:
            point.redo(self, self._measure(point))
        else:
            point.redo(self, dataclasses.replace(sharpness, growth=2 * sharpness.growth))
        return state

    def step(self, point: Point, h: float, state: _Sharpness | None) -> StepResult:
        """Take a step of at most h (eqs. 2.2–2.6 and 2.9 of the paper)."""
        sharpness = self._sharpness(point, state)
        λ = sharpness.bound + sharpness.growth
        h = min(h, safe_divide(self.stability_interval, λ))
        s = stages_for(h * λ, self.damping, self.max_stages)
        c = chebyshev(s, self.damping)
        f, z, F0 = point.field, point.z, point.velocity
        # In terms of Yⱼ − z, whose rounding errors are relative to the step rather than to z.
        before, d = torch.zeros_like(z), c.first * h * F0
        for μ, ν, μ_, γ_ in c.coefficients:
            before, d = d, μ * d + ν * before + h * (μ_ * f(z + d) + γ_ * F0)
        end = f.at(z + d)
        F1 = end.velocity
        error = norm(0.4 * h * (F0 + F1) - 0.8 * d)
        try:
            later = self._look(end, sharpness, s) if math.isfinite(error) else sharpness
        except NumericalFailure:  # λ₁ isn't a number there: the step was too long
            error, later = math.inf, sharpness
        if h * later.bound > c.interval:  # a mode grew, perhaps from too little to be seen in the estimate
            error = max(error, _TOO_LARGE * tolerance(self.tolerances, point, end.z))
        return StepResult(
            end.z,
            hermite(z, d, h, F0, F1),
            error=error,
            state=later,
            h=h,
            end=end,
            pairs=sharpness.pairs,
        )


@dataclass(frozen=True)
class Chebyshev:
    """The coefficients of a step with s stages.

    Attributes
    ----------
    interval : float
        Length of the real stability interval.
    first : float
        μ̃₁ = b₁ w₁.
    coefficients : tuple of (μ, ν, μ̃, γ̃)
        For j = 2, …, s.
    """

    interval: float
    first: float
    coefficients: tuple[tuple[float, float, float, float], ...]


@cache
def chebyshev(s: int, damping: float) -> Chebyshev:
    """Compute the coefficients for s stages and damping ε, with w₀ = 1 + ε/s².

    T, T′ and T″ are the Chebyshev polynomials and their derivatives at w₀. The stability polynomial
    a_s + b_s T_s(w₀ + w₁ z) is damped while its argument is at least −1, so the interval is (w₀ + 1)/w₁.
    """
    w0 = 1 + damping / s**2
    T, dT, ddT = np.zeros((3, s + 1))
    T[:2], dT[1] = (1.0, w0), 1.0
    for j in range(2, s + 1):
        T[j] = 2 * w0 * T[j - 1] - T[j - 2]
        dT[j] = 2 * T[j - 1] + 2 * w0 * dT[j - 1] - dT[j - 2]
        ddT[j] = 4 * dT[j - 1] + 2 * w0 * ddT[j - 1] - ddT[j - 2]
    w1 = dT[s] / ddT[s]
    b = np.empty(s + 1)
    b[2:] = ddT[2:] / dT[2:] ** 2
    b[:2] = b[2]
    a = 1 - b * T
    coefficients = []
    for j in range(2, s + 1):
        μ = 2 * b[j] * w0 / b[j - 1]
        μ_ = 2 * b[j] * w1 / b[j - 1]
        coefficients.append((float(μ), float(-b[j] / b[j - 2]), float(μ_), float(-a[j - 1] * μ_)))
    return Chebyshev(float((w0 + 1) / w1), float(b[1] * w1), tuple(coefficients))


def stages_for(z: float, damping: float, most: int) -> int:
    """Return the fewest stages, at least 2, whose stability interval is z or longer."""
    low, high = 2, most
    while low < high:
        middle = (low + high) // 2
        if chebyshev(middle, damping).interval >= z:
            high = middle
        else:
            low = middle + 1
    return low
