"""integrate(): run a method and return its record."""

from __future__ import annotations

import inspect
import os
import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.api.arguments import initial_theta, make_dynamics, make_events, make_stop_conditions
from gradflow.api.assembly import (
    Recorder,
    end_attributes,
    make_record,
    run_attributes,
    static_variables,
    to_numpy,
)
from gradflow.api.measurements import (
    Every,
    as_grid,
    make_error_estimate,
    make_schedule,
    midpoint_observers,
    save_cadences,
    standard_observers,
)
from gradflow.api.resume import check_first_loss, data_attributes, identity_of, open_ended, where_to_record
from gradflow.checks import check_number
from gradflow.driver import Event, Outcome, Status, Stepper, StepReport, run
from gradflow.errors import IntegrationError, IntegrationWarning, InvalidInputError, KinkWarning
from gradflow.flows import Field
from gradflow.flows.registry import FlowLike
from gradflow.integrators import Integrator
from gradflow.integrators.registry import MethodLike
from gradflow.loss import Loss, LossFunction, as_loss
from gradflow.observe import Observed, Observers, name_observers, read_observers
from gradflow.plain import from_plain
from gradflow.record import Record, check_attributes, provenance


def integrate(
    loss: Loss,
    params: Tensor | None = None,
    *,
    flow: FlowLike = "gradient",
    method: MethodLike = "auto",
    t_max: float | None = None,
    save_every: Every | None = None,
    save_at: Sequence[float] | None = None,
    n_eigs: int = 0,
    eigs_every: Every | None = None,
    eigs_tol: float = 1e-3,
    density_at: Sequence[float] | None = None,
    density_every: Every | None = None,
    abridged_size: int | None = None,
    n_projections: int = 0,
    projections_every: Every | None = None,
    projection_seed: int = 0,
    params_every: Every | None = None,
    midpoint: bool = False,
    error_estimate: bool = False,
    test: LossFunction | None = None,
    test_every: Every | None = None,
    observe: Observed | None = None,
    events: Sequence[Event] = (),
    loss_goal: float | None = None,
    acc_goal: float | None = None,
    max_steps: int | None = None,
    max_wall_time: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: str | os.PathLike[str] | None = None,
    sync_every: float = 5.0,
    checkpoint_every: float = 60.0,
    progress: bool | None = None,
    callback: Callable[[StepReport], Any] | None = None,
    on_failure: Literal["return", "raise"] = "return",
    flow_options: Mapping[str, Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Run a method from θ₀ and record it.

    Parameters
    ----------
    loss : LossFunction or callable
        What to descend; a callable takes flat θ, shape (P,), and returns a scalar.
    params : Tensor, shape (P,), optional
        θ₀. Default: the net's present weights; must be given for a callable. Never changed.
    flow : str, Flow or callable, default "gradient"
        What is followed: the name of a flow (``gradflow.flows.FLOWS``), a :class:`gradflow.Flow`, or a function of the
        point that gives dθ/dt, shape (P,): ``lambda point: -point.gradient - 0.1 * point.theta``. Optimisers follow
        none.
    method : str, Integrator, or class of optimisers, default "auto"
        Name of a method (see the table in the README), an integrator, or a class with the interface of
        ``torch.optim.Optimizer``, whose options are keywords.
    t_max : float, optional
        Time to integrate to. Flows land on it; discrete methods stop at the first step at or after it.
    save_every : float, gradflow.steps or sequence of float, optional
        Cadence of the records: a number is time, ``gradflow.steps(n)`` is steps, a sequence is times
        (``np.geomspace(0.1, 100, 31)``, say). Default: every step for discrete methods, 200 over the run for
        flows. Every record has the training loss, the training accuracy and the gradient norm.
    save_at : sequence of float, optional
        Times of records, increasing; on top of `save_every` when both are given.
    n_eigs : int, default 0
        Top eigenvalues to record.
    eigs_every : float, gradflow.steps or sequence of float, optional
        Cadence of the eigenvalues. Default: every record.
    eigs_tol : float, default 1e-3
        Residual ‖Hv − λv‖/max|λ| to which they are computed.
    density_at : sequence of float, optional
        Eigenvalues x, increasing, at which to record the spectral density of the Hessian. With it comes its standard
        error. Each record takes stochastic Lanczos quadrature with 10 random vectors of 80 products each.
    density_every : float, gradflow.steps or sequence of float, optional
        Cadence of the density. Default: every record.
    abridged_size : int, optional
        Measure eigenvalues and density on the first so many training samples. A method that measures λ₁ for its
        steps goes on using all.
    n_projections : int, default 0
        Random projections to record.
    projections_every : float, gradflow.steps or sequence of float, optional
        Cadence of the projections. Default: every record.
    projection_seed : int, default 0
        Seed of the projection matrix; runs can be compared when it is equal.
    params_every : float, gradflow.steps or sequence of float, optional
        Cadence of θ itself. Default: every record for P ≤ 1,000, else never.
    midpoint : bool, default False
        Record an optimiser at midpoints, too. That is, loss, gradient norm, eigenvalues, projections and
        θ at (w_{t−1} + 2 w_t + w_{t+1})/4, each where it is recorded at w_t, and how far w_t is from
        there: what the centre of a flow at the edge of stability is compared with. The first and the last record have
        no midpoint.
    error_estimate : bool, default False
        Estimate the error of θ by a second run. That is one by the same method at ten times the tolerance, which costs
        about as much as this one or less. Every record has ``theta_error_estimate``, ‖θ − θ*‖₂, and
        ``theta_error_tolerance``, what the tolerance promises: the sum of atol + rtol·‖θ‖₂ over the steps so far, which
        bounds the error where the flow doesn't make it larger. An estimate beyond it is warned of at the end. The run
        stays the same bit for bit, and the second one counts as observing. Not for optimisers, and methods of other
        libraries.
    test : LossFunction, optional
        A second loss, on test data, whose value and accuracy are recorded.
    test_every : float, gradflow.steps or sequence of float, optional
        Cadence of the test loss and accuracy. Default: every record.
    observe : sequence of Observer, or mapping of str to callable, optional
        What else to record: instances of :class:`gradflow.Observer`, or functions of the point by the name of the
        number or array that they return, as in ``{"weight_norm": lambda point: point.theta.norm()}``.
    events : sequence of gradflow.Event, default ()
        Where quantities cross values: located, recorded, and the end of the run where they are terminal.
    loss_goal : float, optional
        Stop at this training loss. A flow stops within 1e-6 of a step.
    acc_goal : float, optional
        Stop at this training accuracy.
    max_steps : int, optional
        Stop after so many accepted steps.
    max_wall_time : float, optional
        Stop after so many seconds.
    out : path, optional
        netCDF file to write. Default: the record is kept in memory alone.
    overwrite : bool, default False
        Replace `out` if it exists, when the run ends.
    resume : path or "auto", optional
        Go on with the run that was to become this file, from its last checkpoint; `out` may be left out. All other
        arguments must be those of that run (`max_wall_time` apart). ``"auto"`` goes on with the run that was to become
        `out`, starts it if there is nothing to go on from, and opens `out` if it has ended: the same call may be made
        again until the run is done. Another run's file is refused.
    sync_every : float, default 5.0
        Seconds after which records are on disk.
    checkpoint_every : float, default 60.0
        Seconds between checkpoints of the run's state, beside the records.
    progress : bool, optional
        Show a progress line on standard error. Default: when it is a terminal.
    callback : callable, optional
        Gets the report of every step; a true value stops the run.
    on_failure : {"return", "raise"}, default "return"
        What a numerical ending becomes: a warning and the record so far, or an IntegrationError with it.
    flow_options, method_options : mapping, optional
        Options of flow and method, where a name collides with one above or with one of the other.
    **options
        Options of flow and method.

    Returns
    -------
    xarray.Dataset
        The record; its variables are described in docs/file-format.md. ``status`` and ``message`` in its
        attributes say how the run ended.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        For the caller's mistakes, before anything is computed or written.
    IntegrationError
        For a numerical ending, with ``on_failure="raise"``.
    RecordingError
        If records can't be written; all of them are in its ``dataset``.
    OutputExistsError
        If `out` is there, or another process writes to it.
    ResumeError
        If there is nothing to resume, or it is another run, or holds what isn't known here.
    KeyboardInterrupt
        After SIGINT, when the step is done and the record closed; with the records as its ``dataset``.

    Examples
    --------
    >>> import torch, gradflow
    >>> bowl = lambda x: 0.5 * (torch.tensor([1.0, 10.0]) * x**2).sum()
    >>> ds = gradflow.integrate(bowl, torch.ones(2), method="rk4", t_max=1.0, save_every=0.5)
    >>> ds.time.values.tolist()
    [0.0, 0.5, 1.0]
    """
    loss = as_loss(loss)
    theta = initial_theta(loss, params)
    made, integrator = make_dynamics(
        flow, method, flow_options, method_options, options, loss, inspect.signature(integrate).parameters
    )
    _warn_of_kinks(loss, integrator)
    grid = as_grid(density_at)
    saves = save_cadences(integrator, t_max, max_steps, save_every, save_at)
    fields, ours = standard_observers(
        Field(loss, made), theta, integrator, saves, t_max, n_eigs, eigs_every, eigs_tol, grid, density_every,
        abridged_size, n_projections, projections_every, projection_seed, params_every, test, test_every,
    )  # fmt: skip
    theirs = read_observers(observe)
    midpoints, more, at_midpoint = midpoint_observers(ours, theirs, fields[0], integrator, wanted=midpoint)
    ours += at_midpoint
    estimate = make_error_estimate(fields[0], integrator, theta) if error_estimate else None
    if estimate is not None:
        ours.append(estimate)
        more.append(estimate.field)
    watched = make_events(loss, events, loss_goal, acc_goal)
    happening = {f"event_{name}": text for name, text in integrator.events.items()}
    happening |= {event.variable: event.describe() for event in watched if event.variable}
    named = name_observers(ours, theirs, happening)
    schedule = make_schedule(named, saves, t_max)
    observers = Observers([*fields, *more], named, theta.numel(), happening, midpoints)
    stop = make_stop_conditions(t_max, max_steps, max_wall_time, watched, callback)
    check_number("sync_every", sync_every, least=0, finite=False)
    check_number("checkpoint_every", checkpoint_every, above=0, finite=False)
    if on_failure not in ("return", "raise"):
        raise InvalidInputError(f'Expected on_failure as "return" or "raise", got {on_failure!r}.')
    out, there = where_to_record(out, resume, overwrite=overwrite)

    config = dict(
        flow=made.name, flow_options=made.settings(), method=integrator.name, options=integrator.settings(),
        loss=loss.describe(), t_max=t_max, max_steps=max_steps, max_wall_time=max_wall_time,
        loss_goal=loss_goal, acc_goal=acc_goal, cadences=schedule.cadences, n_eigs=n_eigs, eigs_tol=eigs_tol,
        density_at=None if grid is None else grid.tolist(), abridged_size=abridged_size,
        n_projections=n_projections, projection_seed=projection_seed, n_threads=torch.get_num_threads(),
    )  # fmt: skip
    if midpoint:
        config["midpoint"] = True
    if error_estimate:
        config["error_estimate"] = True
    if theirs:
        config["observe"] = {
            name: o.settings() for name, o in named.items() if any(o is each for each in theirs)
        }
    if any(event.variable for event in watched):
        config["events"] = [event.settings() for event in watched if event.variable]
    identity = identity_of(config, loss, test, theta)
    own = run_attributes(made, integrator, theta, n_projections, projection_seed) | data_attributes(identity)
    own |= {"error_estimate_by": None if estimate is None else estimate.second.describe()}
    attrs = check_attributes(provenance(config) | own)
    if there == "ended" and out is not None:
        dataset = open_ended(out, identity, loss, theta.device)
        end = dataset.isel(time=-1)
        _report_failure(dataset, float(end.time), int(end.step), float(end.train_loss), out, on_failure)
        _report_error(dataset)
        return dataset

    stepper = Stepper(integrator, Field(loss, made, keep_graph=integrator.keep_graph), theta)
    record = make_record(
        out, observers, theta, attrs, identity, overwrite=overwrite, resume=there == "unfinished",
        anew=resume == "auto", sync_every=sync_every, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    try:
        start = _take_up(record, observers, stepper)
        outcome = run(
            stepper, schedule, Recorder(observers, record), stop, watched, progress=progress, start=start
        )
        ends = end_attributes(outcome, stepper, observers, estimate)
        dataset = _ended(outcome, stepper, record, static_variables(observers, theta), ends)
    except BaseException as error:
        record.abandon(error)
        raise
    _pass_on(outcome, dataset)
    _report_failure(dataset, stepper.t, stepper.n_steps, stepper.point.loss, out, on_failure)
    _report_error(dataset)
    return dataset


def _warn_of_kinks(loss: LossFunction, integrator: Integrator) -> None:
    if loss.kinks and not integrator.discrete:
        warnings.warn(
            f"The net has kinks ({', '.join(loss.kinks)}). The flow isn't smooth there: errors don't fall with the "
            "tolerance as the method's order says, and the Hessian doesn't see the kinks. Where that matters, use "
            "tanh, softplus or ELU, and average pooling.",
            KinkWarning,
            stacklevel=3,
        )


def _take_up(record: Record, observers: Observers, stepper: Stepper) -> Mapping[str, Any] | None:
    """Return the state of the run that a record goes on with, if it does; its observers go on from theirs."""
    if record.checkpoint is None:
        return None
    check_first_loss(record.first_loss(), stepper.point.loss, stepper.point.theta.dtype)
    start, seen = (from_plain(record.checkpoint[part]) for part in ("run", "observers"))
    observers.load_state_dict(seen)
    record.rewind()
    return start


def _ended(
    outcome: Outcome,
    stepper: Stepper,
    record: Record,
    static: Mapping[str, np.ndarray],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Finish the record of a run that ended; leave that of one that was interrupted to be gone on with."""
    if outcome.status is Status.INTERRUPTED:
        return record.suspend(outcome.status.code, f"{outcome.message} It was at t = {stepper.t:.6g}.")
    return record.finish({"params": to_numpy(stepper.point.theta), **static}, check_attributes(attrs))


def _pass_on(outcome: Outcome, dataset: xr.Dataset) -> None:
    """Deliver the signal that was held back; what was recorded comes with a KeyboardInterrupt."""
    if outcome.signal is None:
        return
    try:
        signal.raise_signal(outcome.signal)
    except KeyboardInterrupt as interrupt:
        interrupt.dataset = dataset  # type: ignore[attr-defined]
        raise


def _report_failure(
    dataset: xr.Dataset, t: float, step: int, loss: float, out: object, on_failure: str
) -> None:
    """Warn of a numerical ending, or raise it; `t`, `step` and `loss` are those of the last good state."""
    if dataset.attrs["success"]:
        return
    kept = f"; its record is in {out}" if out is not None else ""
    message = f"The run ended at t = {t:.6g}, step {step}, loss {loss:.6g}{kept}. {dataset.attrs['message']}"
    if on_failure == "raise":
        raise IntegrationError(
            message,
            status=str(dataset.attrs["status"]),
            t=t,
            step=step,
            loss=loss,
            dataset=dataset,
            path=None if out is None else str(out),
        )
    warnings.warn(message, IntegrationWarning, stacklevel=3)


def _report_error(dataset: xr.Dataset) -> None:
    """Warn of an error beyond what the tolerance promises."""
    if "error_estimate_message" in dataset.attrs:
        warnings.warn(dataset.attrs["error_estimate_message"], IntegrationWarning, stacklevel=3)
