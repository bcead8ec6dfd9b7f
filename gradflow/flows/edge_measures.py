"""What flows at the edge of stability predict of gradient descent, and what says how far to trust them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.point import Point

#: What every flow at the edge records.
EDGE_VARIABLES: Mapping[str, Variable] = {
    "predicted_train_loss": Variable(
        long_name="predicted training loss of the optimiser, averaged over its oscillation"
    ),
    "predicted_gradient_norm": Variable(
        long_name="predicted gradient norm of the optimiser, root mean square over its oscillation"
    ),
    "sigma_trace": Variable(long_name="trace of the covariance of the optimiser's oscillation"),
    "edge_residual": Variable(long_name="learning rate times the largest Hessian eigenvalue, minus 2"),
    "quartic_ratio": Variable(
        long_name="relative shift of the edge by the fourth derivative, which the third-order theory leaves out"
    ),
}

#: Length of a difference for a fourth derivative, as a power of the machine epsilon: truncation s² and rounding eps/s³
#: are of one size.
_FOURTH = 1 / 5


def edge_residual(point: Point, lr: float) -> float:
    """Return ηλ₁ − 2 at a point, to the eigensolver's default tolerance."""
    return lr * float(point.top(1).values[0]) - 2


def quartic_ratio(point: Point, u: Tensor, variance: float, lr: float) -> float:
    """Return ησ²|∇⁴L[u, u, u, u]|/12, the relative distance of the centre of an oscillation from the edge.

    An oscillation of period two and amplitude σ along u needs uᵀHu + (σ²/6) ∇⁴L[u⁴] = 2/η. Third-order theories put
    its centre at uᵀHu = 2/η. By uᵀ[∇L(θ + su) − ∇L(θ − su)]/(2s) = uᵀHu + (s²/6) ∇⁴L[u⁴] + O(s⁴), with s = σ or, for
    a small σ, the s at which rounding and truncation are of one size.

    Parameters
    ----------
    point : Point
    u : Tensor, shape (P,)
        Unit vector.
    variance : float
        σ², of the oscillation along u.
    lr : float
        η.
    """
    if variance == 0:
        return 0.0
    θ = point.theta
    s = max(math.sqrt(variance), torch.finfo(θ.dtype).eps ** _FOURTH * (1 + float(θ.abs().max())))
    evaluate = point.field.evaluate
    difference = evaluate(θ + s * u).gradient - evaluate(θ - s * u).gradient
    excess = float(u @ difference) / (2 * s) - float(u @ point.hvp(u))
    return lr * variance / s**2 * abs(excess) / 2


def measure_pair(point: Point, v: Tensor, rho: float, lr: float) -> dict[str, Any]:
    """Return :data:`EDGE_VARIABLES` of an oscillation between c + ρv and c − ρv.

    Parameters
    ----------
    point : Point
        Whose θ is the centre c.
    v : Tensor, shape (P,)
        Unit vector along the oscillation.
    rho : float
        Amplitude ρ.
    lr : float
        Learning rate η.
    """
    c = point.theta
    ends = [point.field.evaluate(c + rho * v), point.field.evaluate(c - rho * v)]
    norms = [float(torch.linalg.vector_norm(end.gradient, dtype=torch.float64)) for end in ends]
    return {
        "predicted_train_loss": sum(float(end.value) for end in ends) / 2,
        "predicted_gradient_norm": math.sqrt(sum(norm**2 for norm in norms) / 2),
        "sigma_trace": rho**2,
        "edge_residual": edge_residual(point, lr),
        "quartic_ratio": quartic_ratio(point, v, rho**2, lr),
    }
