"""From the arguments of integrate() and solver() to checked parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.driver import Event, Goal, Status, StepReport, StopConditions, check_events
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError
from gradflow.flows import Flow, make_flow
from gradflow.flows.registry import FlowLike, flow_class
from gradflow.integrators import Integrator, check_needs, make_integrator
from gradflow.integrators.registry import MethodLike, method_class
from gradflow.loss import LossFunction
from gradflow.observe import check_quantity
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
    if method == "auto" and (schemes := flow_class(flow).schemes):
        scheme = options.get("scheme", (flow_options or {}).get("scheme", getattr(flow, "scheme", None)))
        method = schemes.get(str(scheme), next(iter(schemes.values())))
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


def make_events(
    loss: LossFunction, events: Sequence[Event], loss_goal: float | None, acc_goal: float | None
) -> tuple[Event, ...]:
    """Check the events that a user gave, and add those that end the run at a goal."""
    found = check_events(events)
    for event in found:
        check_quantity(event.quantity, loss)
    if loss_goal is not None:
        check_number("loss_goal", loss_goal)
        found += (_goal("loss", loss_goal, "falling", Status.REACHED_LOSS_GOAL),)
    if acc_goal is not None:
        check_number("acc_goal", acc_goal, above=0, most=1)
        if not loss.classifies:
            raise InvalidInputError("acc_goal needs a loss whose targets are classes.")
        found += (_goal("accuracy", acc_goal, "rising", Status.REACHED_ACCURACY_GOAL),)
    return found


def _goal(quantity: str, value: float, direction: Literal["rising", "falling"], status: Status) -> Goal:
    return Goal(quantity, value, direction=direction, terminal=True, ending=status)


def make_stop_conditions(
    t_max: float | None,
    max_steps: int | None,
    max_wall_time: float | None,
    events: Iterable[Event],
    callback: Callable[[StepReport], Any] | None,
) -> StopConditions:
    """Check when the run is to end."""
    if max_steps is not None:
        check_count("max_steps", max_steps, least=1)
    if max_wall_time is not None:
        check_number("max_wall_time", max_wall_time, above=0)
    if callback is not None and not callable(callback):
        raise InvalidTypeError(f"Expected callback as a callable, got {type(callback).__name__}.")
    limits = (t_max, max_steps, max_wall_time)
    if all(limit is None for limit in limits) and not any(event.terminal for event in events):
        raise InvalidInputError(
            "The run has no end: give t_max, or max_steps, max_wall_time, loss_goal, acc_goal or an event that is "
            "terminal."
        )
    return StopConditions(t_max, max_steps, max_wall_time, callback)
