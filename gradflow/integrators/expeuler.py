"""Exponential Euler on the stiff subspace."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError
from gradflow.flows import Point
from gradflow.flows.base import Needs
from gradflow.integrators.base import StepResult
from gradflow.integrators.controlled import FlowMethod
from gradflow.integrators.phi.functions import phi
from gradflow.integrators.step_size import BulkEigenvalueCap
from gradflow.integrators.step_size.bulk import pairs_of_step
from gradflow.loss import LossFunction

#: Steps that eigenpairs serve for at most.
_SERVES = 5


@dataclass(frozen=True)
class ExponentialEuler(FlowMethod):
    """Exponential Euler on the top eigenvectors of the Hessian, Euler on the rest.

    Lowell & Kastner (2024). With (λᵢ, vᵢ), i ≤ k = `stiff_dim`, the top eigenpairs of H at θ and g = ∇L(θ),

        θ ← θ − Σᵢ rᵢ (vᵢ·g) vᵢ − h (g − Σᵢ (vᵢ·g) vᵢ),      rᵢ = (1 − e^{−λᵢh})/λᵢ,

    which on the stiff subspace is the exact flow of the local quadratic. The step is limited by the first
    eigenvalue outside it, h = min(max_step, 1/|λ_{k+1}|), and no longer by λ₁. One gradient a step and the
    products for k + 1 eigenpairs. θ within a step is the same formula at a fraction of h.

    Parameters
    ----------
    stiff_dim : int, optional
        Dimension k of the stiff subspace. Default: the number of network outputs, minus one for
        cross-entropy; must be given for a callable loss. At P or above, nothing is left for Euler.
    max_step : float, default 1.0
        Largest step in time.
    warmup_iters : int, default 0
        Number of first steps with a smaller `max_step`.
    warmup_factor : float, default 1.0
        What `max_step` is multiplied by in these.
    cap_growth : bool, default True
        Keep rᵢ ≤ h also where λᵢ < 0, where the exact flow of the quadratic grows exponentially.
    eigs_rtol : float, default 1e-2
        Largest residual ‖Hv − λv‖/max|λ| of the eigenpairs. They are computed to |λ_{k+1}|/(10 max|λ|) where that is
        less, but on that account not below 1e-3.
    """

    stiff_dim: int | None = None
    max_step: float = 1.0
    warmup_iters: int = 0
    warmup_factor: float = 1.0
    cap_growth: bool = True
    eigs_rtol: float = 1e-2

    name: ClassVar[str] = "expeuler"
    order: ClassVar[int] = 1
    needs: ClassVar[Needs | None] = "symmetric jacobian"
    own_options: ClassVar[tuple[str, ...]] = ("max_step", "warmup_iters", "warmup_factor")
    keep_graph: ClassVar[bool] = True
    interpolates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stiff_dim is not None:
            check_count("stiff_dim", self.stiff_dim, least=1)
        check_number("max_step", self.max_step, above=0)
        check_count("warmup_iters", self.warmup_iters)
        check_number("warmup_factor", self.warmup_factor, above=0)
        check_number("eigs_rtol", self.eigs_rtol, above=0)

    def resolve(self, loss: LossFunction) -> Self:
        """Take the dimension of the stiff subspace from the loss."""
        if self.stiff_dim is not None:
            return self
        if loss.stiff_dim is None:
            raise InvalidInputError(
                "expeuler needs stiff_dim for a loss given as a callable: the number of large Hessian "
                "eigenvalues, which for a network is its number of outputs."
            )
        return dataclasses.replace(self, stiff_dim=loss.stiff_dim)

    @property
    def own_step_rule(self) -> BulkEigenvalueCap:
        """Steps of 1/|λ_{k+1}|."""
        assert self.stiff_dim is not None
        return BulkEigenvalueCap(
            self.stiff_dim, self.max_step, self.warmup_iters, self.warmup_factor, self.eigs_rtol, _SERVES
        )

    def step(self, point: Point, h: float, state: Any) -> StepResult:
        """Take one step (Lowell & Kastner 2024, eq. of the exponential Euler solver)."""
        assert self.stiff_dim is not None
        z, f, P = point.z, point.velocity, len(point.z)
        k = min(self.stiff_dim, P)
        sized_with = pairs_of_step(point)
        pairs = point.rates(k, tol=self.eigs_rtol) if sized_with is None else sized_with.first(k)
        λ, V = pairs.values, pairs.vectors
        c = V.T @ f
        w = f - V @ c

        def after(τ: float) -> Tensor:
            r = τ * torch.from_numpy(phi(1, -λ.numpy() * τ))
            if self.cap_growth:
                r = torch.clamp(r, max=τ)
            return z + V @ (r.to(c) * c) + τ * w

        return StepResult(after(h), interpolant=lambda s: after(s * h))
