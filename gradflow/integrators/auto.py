"""The method that the benchmarks recommend for a loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from gradflow.integrators.exprb import Exprb43
from gradflow.integrators.rkc import RKC
from gradflow.loss import LossFunction


@dataclass(frozen=True)
class Auto(Exprb43):
    """The flow to a tolerance, by the method that costs least.

    That is `exprb43` where Hessian–vector products come from a kept graph, and `rkc`, which needs few of
    them, where the graphs of all chunks don't fit in the loss's memory budget, so that every product
    computes its own (docs/benchmarks.md). The record names the method that was chosen, with its options.

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
        keeps_graphs = loss.source.keeps_graphs(torch.empty(0, dtype=loss.dtype or torch.float64))
        method: type[Exprb43] | type[RKC] = Exprb43 if keeps_graphs else RKC
        taken = [field.name for field in dataclasses.fields(method) if hasattr(self, field.name)]
        return method(**{name: getattr(self, name) for name in taken}).resolve(loss)
