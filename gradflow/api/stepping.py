"""solver(): step a method by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gradflow.api.arguments import initial_theta, make_dynamics
from gradflow.driver import NumericalFailure, Stepper, StepReport
from gradflow.errors import IntegrationError
from gradflow.flows import Field
from gradflow.flows.registry import FlowLike
from gradflow.integrators import Integrator
from gradflow.integrators.registry import MethodLike
from gradflow.loss import Loss, as_loss


class Solver:
    """A method stepped by hand, made by :func:`solver`.

    Attributes
    ----------
    integrator : Integrator
        With its options resolved.
    """

    def __init__(
        self,
        integrator: Integrator,
        field: Field,
        theta: Tensor,
        *,
        gradient: bool,
        eigenvectors: bool,
        strict: bool,
    ) -> None:
        self.integrator = integrator
        self._stepper = Stepper(integrator, field, theta)
        self._gradient = gradient
        self._eigenvectors = eigenvectors
        self._stepper.error_if_unstable = strict

    @property
    def params(self) -> Tensor:
        """A copy of the present θ, shape (P,)."""
        return self._stepper.point.theta.clone()

    @property
    def loss(self) -> float:
        """The loss at the present θ."""
        return self._stepper.point.loss

    @property
    def t(self) -> float:
        """The present time."""
        return self._stepper.t

    def step(self) -> StepReport:
        """Take one accepted step.

        Returns
        -------
        StepReport

        Raises
        ------
        IntegrationError
            If there is no good state to step to; the present one stays.
        """
        stepper = self._stepper
        try:
            return stepper.advance(with_gradient=self._gradient, with_eigenvectors=self._eigenvectors)
        except NumericalFailure as failure:
            raise IntegrationError(
                failure.message,
                status=failure.status.code,
                t=stepper.t,
                step=stepper.n_steps,
                loss=stepper.point.loss,
            ) from failure


def solver(
    method: MethodLike,
    loss: Loss,
    params: Tensor | None = None,
    *,
    flow: FlowLike = "gradient",
    report_gradient: bool = False,
    report_eigenvectors: bool = False,
    error_if_unstable: bool = False,
    flow_options: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Solver:
    """Make a method that is stepped by hand.

    Parameters
    ----------
    method : str, Integrator, or class of optimisers
    loss : LossFunction or callable
    params : Tensor, shape (P,), optional
        θ₀, never changed. Default: the net's present weights.
    flow : str, Flow or callable, default "gradient"
        What is followed, as in :func:`gradflow.integrate`.
    report_gradient, report_eigenvectors : bool, default False
        Put the gradient before the step, and the eigenvectors that it used, into the reports.
    error_if_unstable : bool, default False
        Raise when a step raises the loss, which stays at the state before it: a flow can't raise it, and
        gradient descent does where λ₁ is above 2/η.
    flow_options, method_options : mapping, optional
        Options of flow and method, where both have one of that name.
    **options
        Options of flow and method.

    Returns
    -------
    Solver
        ``solver.step()`` steps and returns a :class:`StepReport`; ``solver.params`` is the present θ.

    Examples
    --------
    >>> import torch, gradflow
    >>> by_hand = gradflow.solver("gd", lambda x: 0.5 * (x**2).sum(), torch.ones(2), lr=0.5)
    >>> by_hand.step().loss, by_hand.params
    (1.0, tensor([0.5000, 0.5000]))
    """
    loss = as_loss(loss)
    theta = initial_theta(loss, params)
    made, integrator = make_dynamics(flow, method, flow_options, method_options, options, loss)
    field = Field(loss, made, keep_graph=integrator.keep_graph)
    return Solver(
        integrator,
        field,
        theta,
        gradient=report_gradient,
        eigenvectors=report_eigenvectors,
        strict=error_if_unstable,
    )
