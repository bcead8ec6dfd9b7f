"""The method that the benchmarks recommend for a loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gradflow.integrators.exprb import DENSE_BELOW, Exprb43
from gradflow.integrators.rkc import RKC
from gradflow.loss import LossFunction


@dataclass(frozen=True)
class Auto(Exprb43):
    """The flow to a tolerance, by the method that costs least.

    That is `exprb43`, whose cost hardly grows with λ₁, and `rkc` in two cases: for P ≤ 400, where its gradients
    cost less than the dense Hessian that `exprb43` takes there, and where the graphs of all chunks don't fit
    in the loss's memory budget, so that every Hessian–vector product computes its own. Giving an option that
    `exprb43` alone has, chooses that; so does a callable loss. The record names the method that was chosen,
    with its options.

    Parameters
    ----------
    rtol : float, default 1e-4
        Tolerance of a step relative to ‖θ‖₂.
    atol : float, default 1e-6
        Absolute tolerance of a step, in units of ‖θ‖₂.
    max_step : float, default inf
        Largest step in time.
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    krylov_tol : float, default 0.1
        Error of a φ-function's action over the tolerance of the step; as the following, for `exprb43` alone.
    max_basis : int, optional
        Vectors in the Krylov space, of P numbers each; a step that needs more is shortened. Default: what
        fits in a quarter of the loss's memory budget, at most 200.
    dense : bool, optional
        Use the eigendecomposition of the dense Hessian, at P products a step, in the place of Krylov
        spaces. Default: for P ≤ 400.
    """

    name: ClassVar[str] = "auto"

    def resolve(self, loss: LossFunction) -> Any:
        """Choose, and hand the options on."""
        P = loss.n_parameters
        keeps_graphs = loss.source.keeps_graphs(torch.empty(0, dtype=loss.dtype or torch.float64))
        wins = keeps_graphs and (P is None or P > DENSE_BELOW)
        own = ("krylov_tol", "max_basis", "dense")
        asked_for = any(getattr(self, name) != getattr(type(self), name) for name in own)
        method: type[Exprb43] | type[RKC] = Exprb43 if wins or asked_for else RKC
        taken = [field.name for field in dataclasses.fields(method) if hasattr(self, field.name)]
        return method(**{name: getattr(self, name) for name in taken}).resolve(loss)
