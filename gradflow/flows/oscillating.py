"""What edge flow and rod flow share: a centre, the direction of an oscillation about it, and its amplitude."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gradflow.checks import check_number
from gradflow.flows.base import Flow
from gradflow.flows.edge_measures import EDGE_VARIABLES, measure_pair
from gradflow.spectrum import Eigenpairs, Operator
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point
    from gradflow.loss import Linearization

#: Default of the smallest amplitude, in machine epsilons of θ's dtype.
FLOOR_IN_EPSILONS = 0.01
#: log ρ as it is used: a step that is far too long overshoots, and is rejected for what it finds there.
LEAST, LARGEST = -600.0, 80.0
#: Errors of v and of log ρ count as errors of c that are this part of ‖θ₀‖.
WEIGHT = 0.003
#: Residual, in terms of λ₁, to which λ_min is measured on the way.
COARSE = 0.1


class State(NamedTuple):
    """What z consists of: z = (c, κv, κr, κ) with r = log ρ and a constant κ, the weight of errors of v and r."""

    c: Tensor
    v: Tensor
    r: float
    κ: float


class Pair(NamedTuple):
    """The gradients at the two ends of an oscillation, by their mean and their difference.

    Attributes
    ----------
    v : Tensor, shape (P,)
        Unit vector along the oscillation.
    ρ : float
        Its amplitude.
    mean : Tensor, shape (P,)
        ½ [∇L(c + ρv) + ∇L(c − ρv)].
    secant : Tensor, shape (P,)
        [∇L(c + ρv) − ∇L(c − ρv)]/(2ρ), which is H(c) v up to O(ρ²).
    """

    v: Tensor
    ρ: float
    mean: Tensor
    secant: Tensor


@dataclass(frozen=True)
class OscillatingFlow(Flow):
    """A flow of the centre c of an oscillation w = c ± ρv of gradient descent, with its direction and amplitude.

    θ is c. The state is z = (c, κv, κ log ρ, κ) with κ = 0.003 ‖θ₀‖: an error of 3 % in v or ρ then counts as one
    of 1e-4 ‖θ₀‖ in c.

    Parameters
    ----------
    lr : float
        Learning rate η of the gradient descent that it describes.
    rho_floor : float, optional
        Amplitude to which a decaying ρ tends, instead of 0; 0 for none. Default: a hundredth of the machine epsilon
        of θ's dtype.
    rho_start : float, optional
        ρ at the start. Default: the floor.
    """

    lr: float
    rho_floor: float | None = None
    rho_start: float | None = None

    variables: ClassVar[Mapping[str, Variable]] = {
        **EDGE_VARIABLES,
        "rho": Variable(long_name="amplitude of the optimiser's oscillation"),
        "rho_floor": Variable(long_name="amplitude to which a decaying oscillation tends"),
    }

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        if self.rho_floor is not None:
            check_number("rho_floor", self.rho_floor, least=0)
        if self.rho_start is not None:
            check_number("rho_start", self.rho_start, above=0)

    # ------------------------------------------------------------------ the state

    def floor(self, dtype: torch.dtype) -> float:
        """Return the amplitude to which a decaying ρ tends, for θ in a dtype."""
        return _default_floor(dtype) if self.rho_floor is None else self.rho_floor

    def initial(self, theta: Tensor) -> Tensor:
        """Return z without its direction, which :meth:`begin` adds."""
        return self.join(theta, torch.zeros_like(theta))

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        """Return z with v the top eigenvector of the Hessian at θ."""
        H = field.linearize(theta)
        look_below(field, H)
        return self.join(theta, field.spectrum.top(1, H).vectors[:, 0])

    def join(self, theta: Tensor, v: Tensor, rho: float | None = None) -> Tensor:
        """Return z at the start: of θ, a unit vector, and an amplitude, by default `rho_start` or the floor."""
        if rho is None:
            rho = self.rho_start or self.floor(theta.dtype) or _default_floor(theta.dtype)
        κ = WEIGHT * (float(torch.linalg.vector_norm(theta)) or 1.0)
        return torch.cat([theta, κ * v, theta.new_tensor([κ * math.log(rho), κ])])

    @staticmethod
    def split(z: Tensor) -> State:
        """Return what z consists of."""
        P, κ = len(z) // 2 - 1, float(z[-1])
        return State(z[:P], z[P : 2 * P] / κ, max(LEAST, min(float(z[-2]) / κ, LARGEST)), κ)

    def theta(self, z: Tensor) -> Tensor:
        """Return c."""
        return z[: len(z) // 2 - 1]

    def size(self, z: Tensor) -> float:
        """Return ‖c‖; at least that at the start, of which the weight of the rest is a part."""
        return max(super().size(self.theta(z)), float(z[-1]) / WEIGHT)

    def moving(self, point: Point, c: Tensor, v: Tensor, r: float) -> Tensor:
        """Return dz/dt of the rates of change of c, of the direction (before its length is kept at 1), and of log ρ."""
        z = self.split(point.z)
        unit = z.v / torch.linalg.vector_norm(z.v)
        return torch.cat([c, z.κ * (v - float(unit @ v) * z.v), c.new_tensor([z.κ * r, 0.0])])

    # ------------------------------------------------------------------ the oscillation

    def pair(self, point: Point) -> Pair:
        """Return the gradients at c ± ρv; computed once at a point."""
        return point.work("pair", lambda: self._pair(point))

    def _pair(self, point: Point) -> Pair:
        c, v, r, _ = self.split(point.z)
        v, ρ = v / torch.linalg.vector_norm(v), math.exp(r)
        if is_linear(c, ρ):
            H = point.linearization
            return Pair(v, ρ, H.gradient, H @ v)
        field = point.field
        g, g_ = field.evaluate(c + ρ * v).gradient, field.evaluate(c - ρ * v).gradient
        return Pair(v, ρ, (g + g_) / 2, (g - g_) / (2 * ρ))

    def spread(self, point: Point, λ1: float | None = None) -> float:
        """Return a bound of λ₁ − λ_min of the Hessian, by λ₁ or what v says of it, and a coarse λ_min.

        λ₁ is within ‖Hv − Sv‖ of S = vᵀHv while v follows the top eigenvector. Near the edge, S goes up and down: what
        it reaches there, about 2.3/η, is taken at once, so that nobody has to ask again and again.
        """
        v, _, _, Hv = self.pair(point)
        S = float(v @ Hv)
        top = S + float(torch.linalg.vector_norm(Hv - S * v)) if λ1 is None else λ1
        if self.lr * top > 1.8:
            top = max(top, 2.3 / self.lr)
        H = point.linearization
        shifted = Operator(lambda V: H @ V - top * V, point.theta)  # so that the residual is in terms of λ₁
        λ_min = top + float(point.field.spectrum.bottom(1, shifted, tol=COARSE).values[0])
        return top - min(λ_min, 0.0)

    # ------------------------------------------------------------------ the record

    def measure(self, point: Point) -> dict[str, Any]:
        """Return what a flow at the edge predicts, and ρ."""
        c, v, r, _ = self.split(point.z)
        v, ρ = v / torch.linalg.vector_norm(v), math.exp(r)
        return measure_pair(point, v, ρ, self.lr) | {"rho": ρ, "rho_floor": self.floor(c.dtype)}


def is_linear(c: Tensor, ρ: float) -> bool:
    """Whether terms of order ρ² are below rounding, so that ∇L(c ± ρv) is ∇L(c) ± ρ H(c) v."""
    return ρ < math.sqrt(torch.finfo(c.dtype).eps) * (1 + float(c.abs().max()))


def look_below(field: Field, H: Linearization) -> None:
    """Find the bottom eigenvector at the start, from which coarse measurements of λ_min go on."""
    field.spectrum.bottom(1, H, tol=0.2)


def as_rate(rate: float, like: Tensor) -> Eigenpairs:
    """Return a bound of the rates as eigenpairs, of which it is the only value."""
    value = torch.tensor([rate], dtype=torch.float64, device="cpu")
    return Eigenpairs(
        values=value,
        vectors=like.new_empty(len(like), 0),
        residuals=torch.zeros_like(value),
        n_hvp=0,
        converged=torch.ones_like(value, dtype=torch.bool),
        scale=abs(rate),
    )


def _default_floor(dtype: torch.dtype) -> float:
    return FLOOR_IN_EPSILONS * torch.finfo(dtype).eps
