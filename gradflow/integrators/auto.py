"""The method that the benchmarks recommend for a loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from gradflow.flows import Flow
from gradflow.flows.base import Needs
from gradflow.integrators.base import Integrator
from gradflow.integrators.exprb import DENSE_BELOW, Exprb43
from gradflow.integrators.rkc import RKC
from gradflow.loss import LossFunction


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
        if asked_for or (wins and flow.gives == "symmetric jacobian"):
            return Exprb43(**options)
        return RKC(**{name: options[name] for name in shared})
