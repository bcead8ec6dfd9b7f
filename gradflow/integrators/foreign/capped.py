"""What adaptive explicit methods of other libraries have in common: they are told the sharpness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradflow.checks import check_number
from gradflow.integrators.base import Integrator
from gradflow.integrators.step_size import SharpnessCap, StepSize, Unlimited


@dataclass(frozen=True)
class Capped(Integrator):
    """An explicit method with an error control of its library, under the cap by λ₁ and the watch over the loss.

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
    def rejects_loss_increase(self) -> bool:
        """Unless it is the bare library."""
        return self.cap

    @property
    def step_rule(self) -> StepSize:
        """At most 0.9 of the stability interval over λ₁; the library's error control takes less."""
        if not self.cap:
            return Unlimited()
        return SharpnessCap(every=self.sharpness_every).resolve(self)
