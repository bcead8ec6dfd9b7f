"""The method that the benchmarks recommend for a loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradflow.flows import Flow
from gradflow.flows.base import Needs
from gradflow.integrators.base import Integrator
from gradflow.integrators.controlled import ErrorControlled
from gradflow.integrators.dop853 import DormandPrince853
from gradflow.integrators.exprb import DENSE_BELOW, Exprb43
from gradflow.integrators.pairs import Tsitouras5
from gradflow.integrators.rkc import RKC
from gradflow.integrators.switching import Switching
from gradflow.loss import LossFunction


#: Without a cap, a looser tolerance saves the explicit method little: what limits its steps then is stability.
_EXPLICIT_RTOL = 1e-4
#: The first steps are short, whatever the method, where the tolerance is tighter.
_LOOSE = 1e-3
#: Below it the method of order 8 costs less than that of order 5.
_TIGHT = 1e-7


@dataclass(frozen=True)
class Auto(Exprb43):
    """The flow to a tolerance, by the method that costs least.

    That is `exprb43`, whose cost hardly grows with λ₁, and `rkc` in two cases: for P ≤ 400, where its gradients
    cost less than the dense Hessian that `exprb43` takes there, and where the graphs of all chunks don't fit
    in the loss's memory budget, so that every Hessian–vector product computes its own. Giving an option that
    `exprb43` alone has, chooses that; so does a callable loss. A flow without a symmetric Jacobian goes to `rkc`.
    Options are those of :class:`ExponentialRosenbrock`; the record names the method that was chosen, with its options.
    """

    name: ClassVar[str] = "auto"
    needs: ClassVar[Needs | None] = "velocity"

    def choose(self, loss: LossFunction, flow: Flow) -> Integrator:
        """Choose, and hand the options on."""
        P = loss.n_parameters
        keeps_graphs = loss.keeps_graphs(loss.dtype or torch.float64)
        wins = keeps_graphs and (P is None or P > DENSE_BELOW)
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shared = {field.name for field in dataclasses.fields(RKC)} & set(options)
        asked_for = any(options[name] != getattr(type(self), name) for name in set(options) - shared)
        import os

        if os.environ.get("STIFF") == "krylov":
            wins = True
            options["dense"] = False
        stiff: ErrorControlled = RKC(**{name: options[name] for name in shared})
        if asked_for or (wins and flow.gives == "symmetric jacobian"):
            stiff = Exprb43(**options)
        if asked_for or self.step_size is not None:
            return stiff
        explicit = (Tsitouras5 if self.rtol >= _TIGHT else DormandPrince853)(
            rtol=min(self.rtol, _EXPLICIT_RTOL),
            atol=min(self.atol, 0.01 * _EXPLICIT_RTOL),
            max_step=self.max_step,
            loss_rtol=self.loss_rtol,
            cap=False,
        )
        return Switching(stiff, explicit, self.rtol < _LOOSE)
