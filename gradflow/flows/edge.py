"""Edge flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.flows.oscillating import OscillatingFlow, as_rate
from gradflow.spectrum import Eigenpairs

if TYPE_CHECKING:
    from gradflow.flows.point import Point

#: Of log(ηS − 1) a step: it is singular at ηS = 1, where the mode stops to oscillate.
_FASTEST_DECAY = -2.0


@dataclass(frozen=True)
class EdgeFlow(OscillatingFlow):
    """The flow of gradient descent at the edge of stability, through the cycles of its oscillation.

    After Marion (2026, arXiv:2606.18080), of whose paper the abstract was at hand: the equations are derived from it.
    With η the learning rate, the centre c, a unit vector v along the oscillation w = c ± ρv, and its amplitude ρ,

        dc/dt = −½ [∇L(c + ρv) + ∇L(c − ρv)],      dv/dt = (I − vvᵀ) Hv,      dρ/dt = ρ log|1 − ηS| / η,

    where S = vᵀHv, and Hv is the secant [∇L(c + ρv) − ∇L(c − ρv)]/(2ρ): the curvature that an oscillation of that
    amplitude sees, so that on L = ½Sw² − ¼Qw⁴ it settles at the amplitude of gradient descent, ρ² = (S − 2/η)/Q.
    While ρ² is below rounding, Hv is the product with the Hessian at c.

    **ρ has a floor.** How far λ₁ overshoots 2/η at first is set by what disturbs the unstable mode. In gradient descent
    without noise that is rounding, so the overshoot depends on the dtype, and on the floor here: for each decade by
    about 0.4 % on a toy with a slow drift. Where the mode decays, dρ/dt is the rate times ρ − rho_floor: rounding goes
    on feeding the mode. With one v, one mode oscillates at a time; it is the top one.

    Below ηS = 1 a mode doesn't oscillate. log|1 − ηS| is singular there: from where it is −2 a step, that is kept.

    A velocity costs two gradients, or a gradient and a product with the Hessian while ρ² is below rounding.

    Parameters
    ----------
    lr : float
        Learning rate η of the gradient descent that it describes.
    rho_floor : float, optional
        Amplitude to which a decaying ρ tends, instead of 0; 0 for none. Default: a hundredth of the machine epsilon
        of θ's dtype.
    rho_start : float, optional
        ρ at the start. Default: the floor.
    rate : {"log", "linear"}
        Growth of log ρ per step: log|1 − ηS|, exact for gradient descent on a quadratic; or ηS − 2, to first order.
    """

    rate: str = "log"

    name: ClassVar[str] = "edge"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate not in ("log", "linear"):
            raise InvalidInputError(f'Expected rate as "log" or "linear", got {self.rate!r}.')

    def velocity(self, point: Point) -> Tensor:
        """Return the velocities of c, v and log ρ."""
        v, ρ, mean, Hv = self.pair(point)
        q = self.growth(float(v @ Hv))
        if q < 0:
            q *= 1 - self.floor(v.dtype) / ρ
        return self.moving(point, -mean, Hv, q / self.lr)

    def growth(self, S: float) -> float:
        """Return the growth of log ρ per step, without the floor."""
        ηS = self.lr * S
        if self.rate == "linear":
            return ηS - 2
        return math.log(max(ηS - 1, math.exp(_FASTEST_DECAY)))

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Bound the rates of c and v, which are those of the Hessian, and of ρ where it tends to its floor."""
        v, ρ, _, Hv = self.pair(point)
        floor = self.floor(v.dtype)
        above = ρ > floor * (1 + 1e-5)  # at the floor, ρ rests
        q = min(self.growth(float(v @ Hv)), 0.0) * above
        return as_rate(max(self.spread(point), -q * floor / ρ / self.lr), point.z)
