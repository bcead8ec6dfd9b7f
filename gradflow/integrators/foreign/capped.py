"""What adaptive explicit methods of other libraries have in common: they are told the sharpness."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradflow.checks import check_number
from gradflow.integrators.base import Integrator
from gradflow.integrators.step_size.rules import NoLimit, SharpnessCap, StepRule

#: Part of the stability interval that a capped step may use.
SAFETY = 0.9


@dataclass(frozen=True)
class Capped(Integrator):
    """An error-controlled explicit method under the cap by λ₁ and the watch over the loss.

    Parameters
    ----------
    rtol : float, default 1e-4
        Relative tolerance, in the library's meaning: the root mean square over parameters of
        error/(atol + rtol·max(|θₙ|, |θₙ₊₁|)) is at most 1.
    atol : float, default 1e-6
        Absolute tolerance, likewise.
    cap : bool, default True
        Keep h·λ₁ within the stability interval, and watch the loss; False is the bare library.
    sharpness_every : float, optional
        Time after which λ₁ is measured again at the latest. Default: whenever t has grown by ten steps.
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    """

    rtol: float = 1e-4
    atol: float = 1e-6
    cap: bool = True
    sharpness_every: float | None = None
    loss_rtol: float = 0.0

    limits_itself: ClassVar[bool] = True
    error_norm: ClassVar[str | None] = "rms"

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, least=0)
        check_number("loss_rtol", self.loss_rtol, least=0)
        if self.sharpness_every is not None:
            check_number("sharpness_every", self.sharpness_every, above=0)

    @property
    @abstractmethod
    def stability_interval(self) -> float:
        """Length of the method's real stability interval."""

    @property
    def watches_loss(self) -> bool:
        """Unless it is the bare library."""
        return self.cap

    @property
    def step_rule(self) -> StepRule:
        """At most 0.9 of the stability interval over λ₁."""
        if not self.cap:
            return NoLimit()
        return SharpnessCap(SAFETY * self.stability_interval, math.inf, self.sharpness_every)


def stability_of_tableau(A: np.ndarray, b: np.ndarray) -> float:
    """Return the length of the real stability interval of a Runge–Kutta method.

    The largest x such that |R(−s)| ≤ 1 for all 0 ≤ s ≤ x, with R(z) = 1 + z bᵀ(I − zA)⁻¹1, to 0.01.
    """
    identity, ones = np.eye(len(b)), np.ones(len(b))

    def amplifies(x: float) -> bool:
        R = 1 - x * b @ np.linalg.solve(identity + x * A, ones)
        return bool(abs(R) > 1 + 1e-9)

    return next(x for x in (0.01 * n for n in range(1, 2000)) if amplifies(x)) - 0.01
