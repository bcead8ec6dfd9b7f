"""Rod flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gradflow.errors import InvalidTypeError
from gradflow.flows.oscillating import OscillatingFlow, as_rate, is_linear, look_below
from gradflow.spectrum import Eigenpairs

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point


@dataclass(frozen=True)
class RodFlow(OscillatingFlow):
    """The flow of gradient descent as a rod: of the middle of two iterates, and of half their difference.

    Regis & Chewi (2026, arXiv:2602.01480). With c = (wₖ + wₖ₊₁)/2, δ = (wₖ₊₁ − wₖ)/2 and g± = ∇L(c ± δ), gradient
    descent changes c by −(η/2)(g₊ + g₋) in a step, and δδᵀ by M − 2 δδᵀ with M = (η²/4)(g₊g₊ᵀ + g₋g₋ᵀ). As a flow,
    with H± = ∇²L(c ± δ) in a term of backward error analysis for the centre, and Σ ≈ δδᵀ,

        dc/dt = −½ (g₊ + g₋) − (η/8)(H₊ + H₋)(g₊ + g₋),      dΣ/dt = (M − 2Σ)/η.

    Σ is kept at rank one, δ = ρv, which follows the projection of the second equation. With ḡ and h the mean of g±,
    and their difference over 2ρ, M = (η²/2)(ḡḡᵀ + ρ²hhᵀ). On L = ½Sw² − ¼Qw⁴ it settles where gradient descent does,
    at ρ² = S/Q − 2/(ηQ).

    **It loses the onset of the edge** where the drift's step −(η/2)ḡ is longer than the oscillation: δ then follows
    the drift, and nothing keeps λ₁ from growing. On a toy on which λ₁ of gradient descent, with 2/η = 6.67, rises to
    7.6 and comes back, λ₁ goes to 13.3. With ``without_drift=True`` the drift's part ḡḡᵀ is left out of M, the mode
    starts from the top eigenvector and has a floor, as in :class:`gradflow.flows.EdgeFlow`, and the onset is there.

    A velocity costs two gradients and two products with the Hessian, without the backward error two gradients.

    Parameters
    ----------
    lr : float
        Learning rate η of the gradient descent that it describes.
    rho_floor : float, optional
        Amplitude to which a decaying ρ tends without the drift, instead of 0; 0 for none. Default: a hundredth of the
        machine epsilon of θ's dtype.
    rho_start : float, optional
        ρ at the start. Default: half the length of the first step; without the drift, the floor.
    backward_error : bool, default True
        With the term of backward error analysis.
    without_drift : bool, default False
        Leave the drift out of the oscillation.
    """

    backward_error: bool = True
    without_drift: bool = False

    name: ClassVar[str] = "rod"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("backward_error", "without_drift"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidTypeError(f"Expected {name} as True or False, got {getattr(self, name)!r}.")

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        """Return z with half of the first step as δ; without the drift, with v the top eigenvector of the Hessian."""
        if self.without_drift:
            return super().begin(field, theta)
        H = field.linearize(theta)
        length = float(torch.linalg.vector_norm(H.gradient))
        if length == 0:
            return super().begin(field, theta)
        look_below(field, H)
        return self.join(theta, -H.gradient / length, self.rho_start or self.lr / 2 * length)

    def velocity(self, point: Point) -> Tensor:
        """Return the velocities of c, v and log ρ."""
        η = self.lr
        v, ρ, ḡ, h = self.pair(point)
        S = float(v @ h)
        of_c = -ḡ
        if self.backward_error:
            of_c = of_c - η / 4 * self._curved(point)
        of_v, of_r = η / 2 * S * h, η / 4 * S * S - 1 / η
        if not self.without_drift:
            drift = float(v @ ḡ) / ρ
            of_v, of_r = of_v + η / 2 * drift / ρ * ḡ, of_r + η / 4 * drift * drift
        elif of_r < 0:
            of_r *= 1 - self.floor(v.dtype) / ρ
        return self.moving(point, of_c, of_v, of_r)

    def _curved(self, point: Point) -> Tensor:
        """Return (H₊ + H₋) ḡ."""
        v, ρ, ḡ, _ = self.pair(point)
        if is_linear(point.theta, ρ):
            return 2 * (point.linearization @ ḡ)
        c, at = point.theta, point.field.linearize
        return at(c + ρ * v) @ ḡ + at(c - ρ * v) @ ḡ

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Bound the rates of c, of v and of ρ."""
        η = self.lr
        λ1 = None if self.without_drift else float(point.top(1, tol=tol).values[0])  # v may follow the drift
        μ = self.spread(point, λ1)
        v, ρ, ḡ, h = self.pair(point)
        of_c = μ * (1 + η / 2 * μ) if self.backward_error else μ
        of_v = η / 2 * abs(float(v @ h)) * μ
        if not self.without_drift:
            of_v += η / 2 * float(ḡ @ ḡ) / ρ / ρ
        return as_rate(max(of_c, of_v, 1 / η), point.z)
