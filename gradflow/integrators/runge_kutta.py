"""Explicit Runge–Kutta methods: a method is a tableau."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.checks import check_number
from gradflow.errors import InvalidTypeError
from gradflow.flows import Point
from gradflow.integrators.base import StepResult
from gradflow.integrators.controlled import ErrorControlled, FlowMethod
from gradflow.integrators.hermite import HERMITE_ORDER, hermite
from gradflow.integrators.step_size import ErrorControl, SharpnessCap, StepSize
from gradflow.integrators.step_size.base import norm
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.integrators.tableau import Tableau
from gradflow.spectrum import Eigenpairs


@dataclass(frozen=True)
class ExplicitRungeKutta(FlowMethod):
    """An explicit Runge–Kutta method, given by its tableau.

    To write one: a frozen dataclass that derives from :class:`FixedTableau` or :class:`EmbeddedPair`, with `name`,
    `order`, `tableau`, and for a pair `error_order`. It interpolates within its steps if its tableau says how, or if
    its order is 3 or less, as that of the cubic Hermite interpolant is.
    """

    tableau: ClassVar[Tableau]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "tableau" in vars(cls) and "interpolates" not in vars(cls):
            cls.interpolates = cls.tableau.dense is not None or cls.order <= HERMITE_ORDER

    @property
    def stability_interval(self) -> float:
        """Of the tableau."""
        return self.tableau.real_stability

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take one step (Hairer, Nørsett & Wanner 1993, II.1)."""
        f, z, table = point.field, point.z, self.tableau
        K = [point.velocity]
        for a in table.A[1:]:
            K.append(f(z + h * combine(a, K)))
        end = f.at(z + self.increment(h, K))
        error = None
        if table.error is not None:
            error = self.error(h, _stages(K, end, len(table.error)))
        interpolant = self._interpolant(point, end, h, K) if self.interpolates else None
        return StepResult(end.z, interpolant, error=error, end=end, pairs=self.seen(end, h, K))

    def increment(self, h: float, K: Sequence[Tensor]) -> Tensor:
        """Return h Σ bᵢ kᵢ."""
        return h * combine(self.tableau.b, K)

    @property
    def watches_rate(self) -> bool:
        """Whether steps estimate the flow's largest rate from their stages."""
        return False

    def seen(self, end: Point, h: float, K: Sequence[Tensor]) -> Eigenpairs | None:
        """Estimate the flow's largest rate from the last stage and the step's end, if they are at the same time.

        ‖f(u) − f(v)‖/‖u − v‖, which is nearly |λ₁| where stability limits h (Hairer & Wanner 1996, IV.2); flagged as
        not converged.
        """
        weights = self.tableau.apart
        if weights is None or not self.watches_rate:
            return None
        apart = norm(h * combine(weights, K))
        rate = norm(end.velocity - K[-1]) / apart if apart > 0 else math.nan
        value = torch.tensor([rate], dtype=torch.float64, device="cpu")
        no = torch.zeros(1, dtype=torch.bool, device="cpu")
        return Eigenpairs(value, end.z[:, None][:, :0], value * math.nan, 0, no, rate)

    def error(self, h: float, K: Sequence[Tensor]) -> float:
        """Return the norm of the error estimate, h Σ (bᵢ − b̂ᵢ) kᵢ."""
        assert self.tableau.error is not None
        return norm(h * combine(self.tableau.error, K))

    def _interpolant(
        self, point: Point, end: Point, h: float, K: Sequence[Tensor]
    ) -> Callable[[float], Tensor]:
        z, dense = point.z, self.tableau.dense
        if dense is None:
            return lambda s: hermite(z, end.z - z, h, point.velocity, end.velocity)(s)

        def interpolant(s: float) -> Tensor:
            powers = [s ** (n + 1) for n in range(len(dense[0]))]
            weights = [math.fsum(c * power for c, power in zip(row, powers, strict=True)) for row in dense]
            return z + h * combine(weights, _stages(K, end, len(weights)))

        return interpolant


@dataclass(frozen=True)
class FixedTableau(ExplicitRungeKutta):
    """A method without an error estimate, with h = min(alpha/λ₁, max_step).

    Parameters
    ----------
    alpha : float, default 1.0
        Step size times λ₁; at most the method's real stability interval.
    max_step : float, default inf
        Largest step in time.
    sharpness_every : float, optional
        Time after which λ₁ is measured again at the latest. Default: whenever t has grown by ten steps.
    """

    alpha: float = 1.0
    max_step: float = math.inf
    sharpness_every: float | None = None

    own_options: ClassVar[tuple[str, ...]] = ("alpha", "max_step", "sharpness_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("alpha", self.alpha, above=0)
        check_number("max_step", self.max_step, above=0, finite=False)
        if self.sharpness_every is not None:
            check_number("sharpness_every", self.sharpness_every, above=0)
        _ = self.step_rule  # which checks alpha against the stability interval

    @property
    def own_step_rule(self) -> StepSize:
        """Steps of alpha/λ₁."""
        return SharpnessCap(self.alpha, self.max_step, self.sharpness_every)


@dataclass(frozen=True)
class EmbeddedPair(ExplicitRungeKutta, ErrorControlled):
    """An embedded pair under error control, and under the cap by λ₁.

    The error control alone sees an instability only once it has grown. So by default a step is at most 0.9 of the
    method's real stability interval over λ₁, and a step that raises the loss is rejected where the flow can't raise
    it. `rtol` and `atol` are of 2-norms, for all of gradflow's own methods alike; torchdiffeq's methods, by names such
    as ``torchdiffeq:dopri5``, mean the root mean square over parameters instead. Options beside those of
    :class:`gradflow.integrators.controlled.ErrorControlled`:

    Parameters
    ----------
    cap : bool, default True
        Keep h·λ₁ within the stability interval, and watch the loss.
    sharpness_every : float, optional
        Time after which λ₁ is measured again at the latest. Default: whenever t has grown by ten steps.
    """

    cap: bool = True
    sharpness_every: float | None = None

    own_options: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_step", "cap", "sharpness_every")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "tableau" in vars(cls) and (cls.tableau.error is None or cls.error_order is None):
            raise InvalidTypeError(
                f"Expected {cls.__name__}, an embedded pair, to have an error_order, and its tableau an error. Derive "
                "a method without an error estimate from FixedTableau."
            )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sharpness_every is not None:
            check_number("sharpness_every", self.sharpness_every, above=0)

    @property
    def rejects_loss_increase(self) -> bool:
        """Unless the cap is off."""
        return self.cap

    @property
    def watches_rate(self) -> bool:
        """If nothing measures it."""
        return not self.cap

    @property
    def own_step_rule(self) -> ErrorControl:
        """The error control, under the cap."""
        cap = SharpnessCap(every=self.sharpness_every) if self.cap else None
        return ErrorControl(self.rtol, self.atol, self.max_step, cap)

    def first_size(self, point: Point, state: Any) -> float:
        """Guess the first step's size (Hairer, Nørsett & Wanner 1993, II.4): a short Euler step shows the curvature."""
        z, F = point.z, point.velocity
        scale = tolerance(self.tolerances, point)
        speed = norm(F)
        if not (scale > 0 and speed > 0):
            return 1e-6
        d0, d1 = norm(z) / scale, speed / scale
        h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
        d2 = norm(point.field(z + h0 * F) - F) / scale / h0
        if not math.isfinite(d2):
            return h0
        largest = max(d1, d2)
        h1 = max(1e-6, h0 * 1e-3) if largest <= 1e-15 else (0.01 / largest) ** (1 / (self.order + 1))
        return min(100 * h0, h1)


def _stages(K: Sequence[Tensor], end: Point, n: int) -> Sequence[Tensor]:
    """Return the stages, with the velocity at the step's end behind them if there are to be n of them."""
    return [*K, end.velocity] if n > len(K) else K


def combine(weights: Sequence[float], K: Sequence[Tensor]) -> Tensor:
    """Return Σ wᵢ kᵢ."""
    total = None
    for weight, k in zip(weights, K, strict=True):
        if weight:
            total = weight * k if total is None else torch.add(total, k, alpha=weight)
    return torch.zeros_like(K[0]) if total is None else total
