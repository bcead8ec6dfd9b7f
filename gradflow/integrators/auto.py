"""The method that the benchmarks recommend for a flow, which may change along the way."""

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
from gradflow.integrators.exprb import DENSE_BELOW, Exprb43, Exprb54
from gradflow.integrators.pairs import Tsitouras5
from gradflow.integrators.rkc import RKC
from gradflow.integrators.step_size.error_control import least_rtol
from gradflow.integrators.switching import Switching
from gradflow.loss import LossFunction

#: Below it, methods of higher order cost less, and the first steps are short, whatever the method.
_LOOSE = 1e-3
#: Below it, the Hessian of a small network is worth what it costs.
_FINE = 1e-5
#: Below it, an explicit method of order 8 costs less than one of order 5.
_TIGHT = 1e-7
#: Without a cap, a looser tolerance saves the explicit method little: what limits its steps is stability.
_EXPLICIT_RTOL = 1e-4
#: At the stability limit its errors are of the tolerance in every step: it gets this part of it.
_EXPLICIT_PART = 0.25
#: The error of θ by `rkc` grows as rtol^(2/3): its rtol for an error of about rtol is this times rtol^(3/2).
_RKC_RTOL = 15.0


@dataclass(frozen=True)
class Auto(Exprb43):
    """The flow to a tolerance, by the methods that cost least along the way.

    A stiff method, and an explicit one under error control (`tsit5`, for rtol < 1e-7 `dop853`) that takes the steps
    where it costs less (:class:`gradflow.integrators.switching.Switching`). The stiff method is `exprb43`, for
    rtol < 1e-3 `exprb54`, whose costs hardly grow with λ₁. It is `rkc` where the graphs of all chunks don't fit in the
    loss's memory budget, so that every Hessian–vector product computes its own; where products are differences of
    gradients; and for P ≤ 400 and rtol ≥ 1e-5, where its gradients take less time than the dense Hessian. There it gets
    the tolerance at which its error of θ is about that of the others. A flow without a symmetric Jacobian goes to `rkc`
    alone, at the tolerance given.

    An option that the exponential methods alone have chooses the one of them that would be taken; `step_size` the stiff
    method, with that controller. The attribute ``method_choices`` of the record says which method took the steps from
    when on, and what it and the other one were to cost. Options are those of :class:`ExponentialRosenbrock`.
    """

    name: ClassVar[str] = "auto"
    needs: ClassVar[Needs | None] = "velocity"

    def choose(self, loss: LossFunction, flow: Flow) -> Integrator:
        """Choose, and hand the options on."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shared = {field.name for field in dataclasses.fields(RKC)} & set(options)
        asked_for = any(options[name] != getattr(type(self), name) for name in set(options) - shared)
        stiff: ErrorControlled = (Exprb54 if self.rtol < _LOOSE else Exprb43)(**options)
        of_rkc = {name: options[name] for name in shared}
        if not asked_for and flow.gives != "symmetric jacobian":
            return RKC(**of_rkc)
        if not asked_for and not self._is_worth_products(loss):
            stiff = RKC(**of_rkc | self._tolerances_of_rkc(loss))
        if asked_for or self.step_size is not None:
            return stiff
        explicit = Tsitouras5 if self.rtol >= _TIGHT else DormandPrince853
        return Switching(
            stiff,
            explicit(
                rtol=min(_EXPLICIT_PART * self.rtol, _EXPLICIT_RTOL),
                atol=min(_EXPLICIT_PART * self.atol, 0.01 * _EXPLICIT_RTOL),
                max_step=self.max_step,
                loss_rtol=self.loss_rtol,
                cap=False,
            ),
            explicit_first=self.rtol < _LOOSE,
            given={name: value for name, value in self.settings().items() if name in shared},
        )

    def _is_worth_products(self, loss: LossFunction) -> bool:
        """Whether the exponential methods' products cost less than the stages of `rkc`."""
        if not (loss.has_exact_products and loss.keeps_graphs(loss.dtype or torch.float64)):
            return False
        P = loss.n_parameters
        return P is None or P > DENSE_BELOW or self.rtol < _FINE

    def _tolerances_of_rkc(self, loss: LossFunction) -> dict[str, float]:
        least = least_rtol(loss.dtype or torch.float64)
        rtol = min(self.rtol, max(_RKC_RTOL * self.rtol**1.5, least))
        return {"rtol": rtol, "atol": self.atol * rtol / self.rtol}
