"""From the arguments of integrate() and solver() to checked parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.driver import Ends, StepReport
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError
from gradflow.flows import Flow, make_flow
from gradflow.flows.registry import FlowLike, flow_class
from gradflow.integrators import Integrator, check_needs, make_integrator
from gradflow.integrators.registry import MethodLike, method_class
from gradflow.loss import LossFunction
from gradflow.options import option_names


def initial_theta(loss: LossFunction, params: Tensor | None) -> Tensor:
    """Check θ₀ and take a copy of it, so that the caller may go on with theirs."""
    theta = loss.parameters() if params is None else params
    loss.check_theta(theta)
    return theta.detach().clone()


def make_dynamics(
    flow: FlowLike,
    method: MethodLike,
    flow_options: Mapping[str, Any] | None,
    method_options: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    loss: LossFunction,
    also: Iterable[str] = (),
) -> tuple[Flow, Integrator]:
    """Make the flow and the method that follows it, with the options whose defaults depend on the loss filled in.

    An option by keyword goes to the one of them that has it.
    """
    of_flow, of_method = (
        _mapping(name, given)
        for name, given in (("flow_options", flow_options), ("method_options", method_options))
    )
    names_of_flow = option_names(flow_class(flow)) if isinstance(flow, str) else set()
    owners = ((of_flow, names_of_flow), (of_method, option_names(method_class(method))))
    for name, value in options.items():
        takers = [mine for mine, names in owners if name in names and name not in mine]
        if len(takers) == 2:
            raise UnknownOptionError(
                f"Both the flow {flow!r} and the method {method!r} have an option {name!r}. Say whose it is: "
                f"flow_options={{{name!r}: …}} or method_options={{{name!r}: …}}."
            )
        if not takers and (name in of_flow or name in of_method):
            where = "method_options" if name in of_method else "flow_options"
            raise UnknownOptionError(f"Options given twice, as keywords and in {where}: {name}.")
        (takers[0] if takers else of_method)[name] = value
    made = make_flow(flow, of_flow).resolve(loss)
    integrator = make_integrator(method, of_method, also).choose(loss, made)
    check_needs(integrator, made)
    return made, integrator.resolve(loss)


def _mapping(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise InvalidTypeError(f"Expected {name} as a mapping, got {type(given).__name__}.")
    return dict(given or {})


def make_ends(
    loss: LossFunction,
    t_max: float | None,
    max_steps: int | None,
    max_wall_time: float | None,
    loss_goal: float | None,
    acc_goal: float | None,
    callback: Callable[[StepReport], Any] | None,
) -> Ends:
    """Check when the run is to end."""
    if max_steps is not None:
        check_count("max_steps", max_steps, least=1)
    if max_wall_time is not None:
        check_number("max_wall_time", max_wall_time, above=0)
    if loss_goal is not None:
        check_number("loss_goal", loss_goal)
    if acc_goal is not None:
        check_number("acc_goal", acc_goal, above=0, most=1)
        if not loss.classifies:
            raise InvalidInputError("acc_goal needs a loss whose targets are classes.")
    if callback is not None and not callable(callback):
        raise InvalidTypeError(f"Expected callback as a callable, got {type(callback).__name__}.")
    if (
        t_max is None
        and max_steps is None
        and max_wall_time is None
        and loss_goal is None
        and acc_goal is None
    ):
        raise InvalidInputError(
            "The run has no end: give t_max, or max_steps, max_wall_time, loss_goal or acc_goal."
        )
    return Ends(t_max, max_steps, max_wall_time, loss_goal, acc_goal, callback)
