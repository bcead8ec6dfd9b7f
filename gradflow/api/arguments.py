"""From the arguments of integrate() and solver() to checked parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.driver import Cadence, Ends, EverySteps, EveryTime, StepReport, at_times, cadence, steps
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError
from gradflow.flows import Flow, make_flow
from gradflow.flows.registry import FlowLike, flow_class
from gradflow.integrators import Integrator, check_needs, make_integrator
from gradflow.integrators.registry import MethodLike, method_class
from gradflow.loss import LossFunction
from gradflow.options import option_names

#: θ is recorded along the way by default up to this many parameters.
SMALL = 1000
#: Records of a flow by default.
N_RECORDS = 200

#: A cadence as a user gives it: a time, steps, or times one by one.
Every = float | steps | Sequence[float]


def initial_theta(loss: LossFunction, params: Tensor | None) -> Tensor:
    """Check θ₀ and take a copy of it, so that the caller may go on with theirs."""
    theta = loss.parameters() if params is None else params
    loss.check_theta(theta)
    return theta.detach().clone()


def as_grid(density_at: Sequence[float] | None) -> Tensor | None:
    """Check the eigenvalues at which the density is recorded."""
    if density_at is None:
        return None
    try:
        grid = torch.as_tensor(density_at, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"Expected density_at as a sequence of numbers, got {type(density_at).__name__}."
        ) from error
    if grid.dim() != 1 or len(grid) < 2 or not bool(torch.isfinite(grid).all() and (grid.diff() > 0).all()):
        raise InvalidInputError("Expected density_at as at least two finite eigenvalues, increasing.")
    return grid


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


def make_cadences(
    integrator: Integrator,
    *,
    t_max: float | None,
    max_steps: int | None,
    save_every: Every | None,
    save_at: Sequence[float] | None,
    eigs_every: Every | None,
    density_every: Every | None,
    projections_every: Every | None,
    params_every: Every | None,
    test_every: Every | None,
    with_eigs: bool,
    with_density: bool,
    with_projections: bool,
    with_params: bool,
    with_test: bool,
) -> dict[str, list[Cadence]]:
    """Return when each group of quantities is due."""
    if t_max is not None:
        check_number("t_max", t_max, above=0)
    saves: list[Cadence] = []
    if save_at is not None:
        saves.append(at_times("save_at", save_at, t_max))
    if save_every is not None:
        saves.append(cadence("save_every", save_every, t_max))
    if not saves:
        if integrator.discrete:
            saves.append(EverySteps(1))
        elif t_max is not None:
            saves.append(EveryTime(t_max / N_RECORDS))
        else:
            saves.append(EverySteps(max(1, (max_steps or 1) // N_RECORDS)))
    groups = {"scalars": saves}
    for group, name, every, wanted in (
        ("eigenvalues", "eigs_every", eigs_every, with_eigs),
        ("density", "density_every", density_every, with_density),
        ("projections", "projections_every", projections_every, with_projections),
        ("params", "params_every", params_every, with_params),
        ("test", "test_every", test_every, with_test),
    ):
        if wanted:
            groups[group] = saves if every is None else [cadence(name, every, t_max)]
        elif every is not None:
            what = {"density": "density_at", "test": "test"}.get(
                group, f"n_{name.removesuffix('_every')} ≥ 1"
            )
            raise InvalidInputError(f"{name} has nothing to measure: give {what}.")
    return groups


def check_measurements(
    theta: Tensor,
    n_eigs: int,
    eigs_tol: float,
    n_projections: int,
    projection_seed: int,
    test: LossFunction | None,
) -> None:
    """Check what is to be measured."""
    check_count("n_eigs", n_eigs)
    if n_eigs > theta.numel():
        raise InvalidInputError(f"Expected n_eigs ≤ P = {theta.numel()}, got {n_eigs}.")
    check_number("eigs_tol", eigs_tol, above=0)
    check_count("n_projections", n_projections)
    check_count("projection_seed", projection_seed)
    if projection_seed >= 2**64:
        raise InvalidInputError(f"Expected projection_seed < 2⁶⁴, got {projection_seed}.")
    if test is not None:
        if not isinstance(test, LossFunction):
            raise InvalidTypeError(f"Expected test as a LossFunction, got {type(test).__name__}.")
        test.check_theta(theta)


def abridged(loss: LossFunction, n: int | None, *, wanted: bool) -> LossFunction:
    """Return the loss that spectra are recorded of: that of the first n samples, if n is given."""
    if n is None:
        return loss
    if not wanted:
        raise InvalidInputError("abridged_size has nothing to measure: give n_eigs ≥ 1 or density_at.")
    check_count("abridged_size", n, least=1)
    loss.check_rows("abridged_size")
    return loss.first(n)


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
