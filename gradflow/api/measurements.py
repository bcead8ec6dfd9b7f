"""From the keywords of integrate() to observers, and when they are due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.driver import (
    Cadence,
    EverySteps,
    EveryTime,
    Schedule,
    at_times,
    cadence,
    cadences,
    steps,
)
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.flows import Field
from gradflow.integrators import Integrator
from gradflow.integrators.second_run import second_run
from gradflow.loss import LossFunction
from gradflow.observe import (
    AtMidpoint,
    Density,
    EffectiveEigenvalues,
    Eigenvalues,
    ErrorEstimate,
    FlowObserver,
    Metrics,
    Midpoints,
    MidpointScalars,
    Observer,
    OscillationAlong,
    Parameters,
    Projections,
    RandomProjection,
    Scalars,
    TestSet,
)

#: θ is recorded along the way by default up to this many parameters.
SMALL = 1000
#: Records of a flow by default.
N_RECORDS = 200

#: A cadence as a user gives it: a time, steps, or times one by one.
Every = float | steps | Sequence[float]


def save_cadences(
    integrator: Integrator,
    t_max: float | None,
    max_steps: int | None,
    save_every: Every | None,
    save_at: Sequence[float] | None,
) -> list[Cadence]:
    """Return when there are records, whatever else is due."""
    if t_max is not None:
        check_number("t_max", t_max, above=0)
    saves: list[Cadence] = []
    if save_at is not None:
        saves.append(at_times("save_at", save_at, t_max))
    if save_every is not None:
        saves.append(cadence("save_every", save_every, t_max))
    if saves:
        return saves
    if integrator.discrete:
        return [EverySteps(1)]
    if t_max is not None:
        return [EveryTime(t_max / N_RECORDS)]
    return [EverySteps(max(1, (max_steps or 1) // N_RECORDS))]


def make_schedule(observers: Mapping[str, Observer], saves: list[Cadence], t_max: float | None) -> Schedule:
    """Return what is due when: observers without a cadence at each record, and records at `saves` too."""
    read = {name: cadences(f"every of {name}", o.every, t_max) for name, o in observers.items()}
    due = {Scalars.name: saves} | {name: each for name, each in read.items() if each}
    return Schedule(due, always=[name for name, each in read.items() if not each])


def standard_observers(
    field: Field,
    theta: Tensor,
    integrator: Integrator,
    saves: list[Cadence],
    t_max: float | None,
    n_eigs: int,
    eigs_every: Every | None,
    eigs_tol: float,
    density_at: Tensor | None,
    density_every: Every | None,
    abridged_size: int | None,
    n_projections: int,
    projections_every: Every | None,
    projection_seed: int,
    params_every: Every | None,
    test: LossFunction | None,
    test_every: Every | None,
) -> tuple[list[Field], list[Observer]]:
    """Make the observers that keywords of :func:`gradflow.integrate` stand for, by default due with the records.

    Returns
    -------
    fields : list of Field
        Those in which they compute: `field`, and that of the first samples if there is `abridged_size`.
    observers : list of Observer
        In the order in which they measure.
    """
    check_measurements(theta, n_eigs, eigs_tol, n_projections, projection_seed, test)

    def every(name: str, value: Every | None, give: str, *, wanted: bool) -> list[Cadence]:
        if value is None:
            return saves
        if not wanted:
            raise InvalidInputError(f"{name} has nothing to measure: give {give}.")
        return [cadence(name, value, t_max)]

    eigs = every("eigs_every", eigs_every, "n_eigs ≥ 1", wanted=n_eigs > 0)
    densities = every("density_every", density_every, "density_at", wanted=density_at is not None)
    projections = every("projections_every", projections_every, "n_projections ≥ 1", wanted=n_projections > 0)
    params = every("params_every", params_every, "", wanted=True)
    tests = every("test_every", test_every, "test", wanted=test is not None)
    part = abridged(field, abridged_size, wanted=n_eigs > 0 or density_at is not None)

    observers: list[Observer] = [
        Scalars(field.loss),
        TestSet(test, every=None if test is None else tests),
    ]
    if field.loss.metrics:
        observers.append(Metrics(field.loss))
    if n_eigs:
        kind = EffectiveEigenvalues if integrator.preconditions else Eigenvalues
        observers.append(kind(part, n_eigs, eigs_tol, every=eigs))
    if density_at is not None:
        observers.append(Density(part, density_at, every=densities))
    if n_projections:
        projection = RandomProjection(n_projections, theta.numel(), projection_seed)
        observers.append(Projections(projection, every=projections))
    if params_every is not None or theta.numel() <= SMALL:
        whole = field.flow.initial(theta).numel() > theta.numel()
        observers.append(Parameters(whole, every=params))
    if field.flow.variables:
        observers.append(FlowObserver(field.flow))
    return ([field] if part is field else [field, part]), observers


def make_error_estimate(field: Field, integrator: Integrator, theta: Tensor) -> ErrorEstimate:
    """Make the observer of the error of θ, which takes a second run along; `field` is that of the first.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If no second run tells the error of this method.
    """
    second = second_run(integrator, theta.dtype)
    own = Field(field.loss, field.flow, keep_graph=second.integrator.keep_graph)
    return ErrorEstimate(second, own, theta)


def midpoint_observers(
    observers: Sequence[Observer],
    theirs: Iterable[Observer],
    field: Field,
    integrator: Integrator,
    *,
    wanted: bool,
) -> tuple[Midpoints | None, list[Field], list[Observer]]:
    """Make the observers that measure at the midpoints what ours measure at the iterates.

    Parameters
    ----------
    observers, theirs : sequence of Observer
        Ours at the iterates, and those of the user.
    field : Field
        That of the run's loss and flow.
    integrator : Integrator
    wanted : bool
        Whether ours are wanted; a user's own observer may be at midpoints all the same.

    Returns
    -------
    midpoints : Midpoints or None
    fields : list of Field
        Those in which they compute, none of them another observer's.
    observers : list of Observer
        The spectrum first, whose gradient the others take over.

    Raises
    ------
    InvalidInputError
        For a flow, and for steps that see some of the data each.
    """
    if not wanted and not any(observer.at_midpoint for observer in theirs):
        return None, [], []
    if not integrator.discrete:
        raise InvalidInputError(
            f"Midpoints are those of an optimiser's iterates; {integrator.name} follows a flow, which doesn't "
            "oscillate from step to step. Leave out midpoint=True, or choose an optimiser, such as gd."
        )
    if integrator.stochastic:
        raise InvalidInputError(
            "Midpoints need steps that see all of the data: with mini-batches the iterates differ by their noise too. "
            "Leave out midpoint=True, or batch_size=…."
        )
    at_midpoints = Field(field.loss, field.flow)
    fields = [at_midpoints]
    found: list[Observer] = []
    for observer in observers if wanted else ():
        if isinstance(observer, Eigenvalues):
            part = at_midpoints
            if not observer.field.is_of(field.loss):
                part = Field(observer.field.loss, field.flow)
                fields.append(part)
            n, tol, every = observer.n, observer.tol, observer.every
            found += [
                AtMidpoint(type(observer)(part, n, tol, every=every)),
                OscillationAlong(part, n, every=every),
            ]
        elif isinstance(observer, Projections | Parameters):
            found.append(AtMidpoint(observer))
    return Midpoints(at_midpoints), fields, [*found, MidpointScalars()] if wanted else []


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


def abridged(field: Field, n: int | None, *, wanted: bool) -> Field:
    """Return the field that spectra are recorded of: that of the first n samples, if n is given."""
    if n is None:
        return field
    if not wanted:
        raise InvalidInputError("abridged_size has nothing to measure: give n_eigs ≥ 1 or density_at.")
    check_count("abridged_size", n, least=1)
    field.loss.check_rows("abridged_size")
    part = field.loss.first(n)
    return field if part is field.loss else Field(part, field.flow)
