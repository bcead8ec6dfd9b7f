"""What a user calls: integrate() runs a method and returns its record, solver() steps one by hand."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.driver import (
    Cadence,
    Ends,
    EverySteps,
    EveryTime,
    NumericalFailure,
    Outcome,
    Schedule,
    Stepper,
    StepReport,
    at_times,
    cadence,
    run,
    steps,
)
from gradflow.errors import (
    IntegrationError,
    IntegrationWarning,
    InvalidInputError,
    InvalidTypeError,
    UnknownOptionError,
)
from gradflow.integrators import Flow, Integrator, make_integrator
from gradflow.integrators.base import check_count, check_number
from gradflow.loss import LossFunction
from gradflow.observe import Observer, Observers, Parameters, Projections, RandomProjection, Scalars, Spectrum
from gradflow.record import FileRecord, Layout, MemoryRecord, check_attributes, check_output, provenance

#: θ is recorded along the way by default up to this many parameters.
_SMALL = 1000
#: Records of a flow by default.
_N_RECORDS = 200

Loss = LossFunction | Callable[[Tensor], Tensor]


def integrate(
    loss: Loss,
    params: Tensor | None = None,
    *,
    method: str | Integrator,
    t_max: float | None = None,
    save_every: float | steps | None = None,
    save_at: Sequence[float] | None = None,
    n_eigs: int = 0,
    eigs_every: float | steps | None = None,
    eigs_tol: float = 1e-3,
    n_projections: int = 0,
    projections_every: float | steps | None = None,
    projection_seed: int = 0,
    params_every: float | steps | None = None,
    test: LossFunction | None = None,
    loss_goal: float | None = None,
    acc_goal: float | None = None,
    max_steps: int | None = None,
    max_wall_time: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    sync_every: float = 5.0,
    checkpoint_every: float = 60.0,
    progress: bool | None = None,
    callback: Callable[[StepReport], Any] | None = None,
    on_failure: str = "return",
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
    method : str or Integrator
        Name of a method (see the table in the README), or an integrator.
    t_max : float, optional
        Time to integrate to. Flows land on it; discrete methods stop at the first step at or after it.
    save_every : float or gradflow.steps, optional
        Cadence of the records: a number is time, ``gradflow.steps(n)`` is steps. Default: every step for
        discrete methods, 200 over the run for flows.
    save_at : sequence of float, optional
        Times of records, increasing; on top of `save_every` when both are given.
    n_eigs : int, default 0
        Number of top Hessian eigenvalues to record.
    eigs_every : float or gradflow.steps, optional
        Cadence of the eigenvalues. Default: every record.
    eigs_tol : float, default 1e-3
        Residual ‖Hv − λv‖/max|λ| to which they are computed.
    n_projections : int, default 0
        Number of random projections of θ to record.
    projections_every : float or gradflow.steps, optional
        Cadence of the projections. Default: every record.
    projection_seed : int, default 0
        Seed of the projection matrix; runs can be compared when it is equal.
    params_every : float or gradflow.steps, optional
        Cadence of θ itself. Default: every record for P ≤ 1,000, else never.
    test : LossFunction, optional
        A second loss, on test data, whose value and accuracy are recorded.
    loss_goal : float, optional
        Stop when the training loss is at or below it.
    acc_goal : float, optional
        Stop when the training accuracy at a record is at or above it.
    max_steps : int, optional
        Stop after so many accepted steps.
    max_wall_time : float, optional
        Stop after so many seconds.
    out : path, optional
        netCDF file to write. Default: the record is kept in memory alone.
    overwrite : bool, default False
        Replace `out` if it exists, when the run ends.
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
    method_options : mapping, optional
        Options of the method, where a name collides with one above.
    **options
        Options of the method.

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

    Examples
    --------
    >>> import torch, gradflow
    >>> bowl = lambda x: 0.5 * (torch.tensor([1.0, 10.0]) * x**2).sum()
    >>> ds = gradflow.integrate(bowl, torch.ones(2), method="rk4", t_max=1.0, save_every=0.5)
    >>> ds.time.values.tolist()
    [0.0, 0.5, 1.0]
    """
    loss = _as_loss(loss)
    theta = _initial(loss, params)
    integrator = _integrator(method, method_options, options, loss)
    _check_measurements(theta, n_eigs, eigs_tol, n_projections, projection_seed, test)
    cadences = _cadences(
        integrator,
        t_max=t_max,
        max_steps=max_steps,
        save_every=save_every,
        save_at=save_at,
        eigs_every=eigs_every,
        projections_every=projections_every,
        params_every=params_every,
        with_eigs=n_eigs > 0,
        with_projections=n_projections > 0,
        with_params=params_every is not None or theta.numel() <= _SMALL,
    )
    ends = _ends(loss, t_max, max_steps, max_wall_time, loss_goal, acc_goal, callback)
    check_number("sync_every", sync_every, least=0, finite=False)
    check_number("checkpoint_every", checkpoint_every, above=0, finite=False)
    if on_failure not in ("return", "raise"):
        raise InvalidInputError(f'Expected on_failure as "return" or "raise", got {on_failure!r}.')
    if out is not None:
        check_output(Path(out).absolute(), overwrite=overwrite)

    config = {
        "method": integrator.name,
        "options": integrator.options(),
        "loss": loss.describe(),
        "t_max": t_max,
        "max_steps": max_steps,
        "max_wall_time": max_wall_time,
        "loss_goal": loss_goal,
        "acc_goal": acc_goal,
        "cadences": cadences,
        "n_eigs": n_eigs,
        "eigs_tol": eigs_tol,
        "n_projections": n_projections,
        "projection_seed": projection_seed,
        "n_threads": torch.get_num_threads(),
    }
    projection = RandomProjection(n_projections, theta.numel(), projection_seed) if n_projections else None
    attrs = check_attributes(provenance(config) | _attributes(integrator, theta, projection))

    stepper = Stepper(integrator, Flow(loss, keep_graph=integrator.keep_graph), theta)
    observers = _observers(loss, test, cadences, n_eigs, eigs_tol, projection)
    record = _record(
        out, theta, cadences, n_eigs, n_projections, attrs, overwrite, sync_every, checkpoint_every
    )
    try:
        outcome = run(stepper, Schedule(cadences), _Recorder(observers, record), ends, progress=progress)
    except BaseException:
        record.abandon()
        raise
    dataset = record.finish(
        {"params": _numpy(stepper.point.theta), "params_initial": _numpy(theta)},
        check_attributes(_ending(outcome, stepper, observers)),
    )
    _report_failure(outcome, stepper, dataset, out, on_failure)
    return dataset


class Solver:
    """A method stepped by hand, made by :func:`solver`.

    Attributes
    ----------
    integrator : Integrator
        With its options resolved.
    """

    def __init__(
        self, integrator: Integrator, loss: LossFunction, theta: Tensor, *, gradient: bool, eigenvectors: bool
    ) -> None:
        self.integrator = integrator
        self._stepper = Stepper(integrator, Flow(loss, keep_graph=integrator.keep_graph), theta)
        self._gradient = gradient
        self._eigenvectors = eigenvectors

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
                f"{failure.status.advice} What happened: {failure.detail}.",
                status=failure.status.code,
                t=stepper.t,
                step=stepper.n_steps,
                loss=stepper.point.loss,
            ) from failure


def solver(
    method: str | Integrator,
    loss: Loss,
    params: Tensor | None = None,
    *,
    report_gradient: bool = False,
    report_eigenvectors: bool = False,
    method_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Solver:
    """Make a method that is stepped by hand.

    Parameters
    ----------
    method : str or Integrator
    loss : LossFunction or callable
    params : Tensor, shape (P,), optional
        θ₀, never changed. Default: the net's present weights.
    report_gradient, report_eigenvectors : bool, default False
        Put the gradient before the step, and the eigenvectors that it used, into the reports.
    method_options : mapping, optional
    **options
        Options of the method.

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
    loss = _as_loss(loss)
    theta = _initial(loss, params)
    integrator = _integrator(method, method_options, options, loss)
    return Solver(integrator, loss, theta, gradient=report_gradient, eigenvectors=report_eigenvectors)


# ---------------------------------------------------------------------- from arguments to parts


def _as_loss(loss: object) -> LossFunction:
    if isinstance(loss, LossFunction):
        return loss
    if isinstance(loss, torch.nn.Module) or not callable(loss):
        raise InvalidTypeError(
            f"Expected loss as a gradflow.LossFunction or a callable θ -> scalar, got {type(loss).__name__}. "
            "LossFunction(dataset, criterion, net) makes one of a network."
        )
    return LossFunction.from_callable(loss)


def _initial(loss: LossFunction, params: Tensor | None) -> Tensor:
    """Check θ₀ and take a copy of it, so that the caller may go on with theirs."""
    theta = loss.parameters() if params is None else params
    loss.check_theta(theta)
    return theta.detach().clone()


def _integrator(
    method: str | Integrator,
    method_options: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    loss: LossFunction,
) -> Integrator:
    if method_options is not None and not isinstance(method_options, Mapping):
        raise InvalidTypeError(f"Expected method_options as a mapping, got {type(method_options).__name__}.")
    twice = sorted(set(options) & set(method_options or {}))
    if twice:
        raise UnknownOptionError(
            f"Options given twice, as keywords and in method_options: {', '.join(twice)}."
        )
    also = inspect.signature(integrate).parameters
    return make_integrator(method, {**options, **(method_options or {})}, also).resolve(loss)


def _cadences(
    integrator: Integrator,
    *,
    t_max: float | None,
    max_steps: int | None,
    save_every: float | steps | None,
    save_at: Sequence[float] | None,
    eigs_every: float | steps | None,
    projections_every: float | steps | None,
    params_every: float | steps | None,
    with_eigs: bool,
    with_projections: bool,
    with_params: bool,
) -> dict[str, list[Cadence]]:
    """Give when each group of quantities is due."""
    if t_max is not None:
        check_number("t_max", t_max, above=0)
    saves: list[Cadence] = []
    if save_at is not None:
        saves.append(at_times("save_at", save_at, t_max))
    if save_every is not None:
        saves.append(cadence("save_every", save_every))
    if not saves:
        if integrator.discrete:
            saves.append(EverySteps(1))
        elif t_max is not None:
            saves.append(EveryTime(t_max / _N_RECORDS))
        else:
            saves.append(EverySteps(max(1, (max_steps or 1) // _N_RECORDS)))
    groups = {"scalars": saves}
    for group, name, every, wanted in (
        ("eigenvalues", "eigs_every", eigs_every, with_eigs),
        ("projections", "projections_every", projections_every, with_projections),
        ("params", "params_every", params_every, with_params),
    ):
        if wanted:
            groups[group] = saves if every is None else [cadence(name, every)]
        elif every is not None:
            raise InvalidInputError(
                f"{name} has nothing to measure: give n_{name.removesuffix('_every')} ≥ 1."
            )
    return groups


def _check_measurements(
    theta: Tensor,
    n_eigs: int,
    eigs_tol: float,
    n_projections: int,
    projection_seed: int,
    test: LossFunction | None,
) -> None:
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


def _ends(
    loss: LossFunction,
    t_max: float | None,
    max_steps: int | None,
    max_wall_time: float | None,
    loss_goal: float | None,
    acc_goal: float | None,
    callback: Callable[[StepReport], Any] | None,
) -> Ends:
    if max_steps is not None:
        check_count("max_steps", max_steps, least=1)
    if max_wall_time is not None:
        check_number("max_wall_time", max_wall_time, above=0)
    if loss_goal is not None:
        check_number("loss_goal", loss_goal)
    if acc_goal is not None:
        check_number("acc_goal", acc_goal, above=0)
        if acc_goal > 1:
            raise InvalidInputError(f"Expected acc_goal as a fraction, at most 1, got {acc_goal}.")
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


def _observers(
    loss: LossFunction,
    test: LossFunction | None,
    groups: Iterable[str],
    n_eigs: int,
    eigs_tol: float,
    projection: RandomProjection | None,
) -> Observers:
    flow = Flow(loss)
    observers: list[Observer] = [Scalars(loss, test)]
    if n_eigs:
        observers.append(Spectrum(flow, n_eigs, eigs_tol))
    if projection is not None:
        observers.append(Projections(projection))
    if "params" in groups:
        observers.append(Parameters())
    return Observers(flow, observers)


def _record(
    out: str | os.PathLike[str] | None,
    theta: Tensor,
    groups: Iterable[str],
    n_eigs: int,
    n_projections: int,
    attrs: Mapping[str, Any],
    overwrite: bool,
    sync_every: float,
    checkpoint_every: float,
) -> MemoryRecord | FileRecord:
    optional = {
        "eigenvalue": "eigenvalues",
        "eigenvalue_residual": "eigenvalues",
        "projection": "projections",
        "theta": "params",
    }
    layout = Layout(
        sizes={"eig": n_eigs, "proj": n_projections, "param": theta.numel()},
        optional=frozenset(v for v, g in optional.items() if g in set(groups)) | {"params", "params_initial"},
        theta_dtype=str(theta.dtype).removeprefix("torch."),
    )
    if out is None:
        return MemoryRecord(layout, attrs)
    return FileRecord(
        out,
        layout,
        attrs,
        {"params_initial": _numpy(theta)},
        overwrite=overwrite,
        sync_every=sync_every,
        checkpoint_every=checkpoint_every,
    )


class _Recorder:
    """Observers and a record, as the driver wants them."""

    def __init__(self, observers: Observers, record: MemoryRecord | FileRecord) -> None:
        self.measure = observers.measure
        self.append = record.append
        self.amend = record.amend
        self.sync = record.sync
        self.flush = record.flush


# ---------------------------------------------------------------------- what the file says


def _attributes(integrator: Integrator, theta: Tensor, projection: RandomProjection | None) -> dict[str, Any]:
    lr = getattr(integrator, "lr", None)
    return {
        "method": integrator.name,
        "time_definition": "flow",
        "device": str(theta.device),
        "device_name": torch.cuda.get_device_name(theta.device) if theta.is_cuda else "cpu",
        "dtype": str(theta.dtype).removeprefix("torch."),
        "n_parameters": theta.numel(),
        "stability_threshold": 2.0 / lr if integrator.discrete and lr is not None else None,
        "projection_kind": projection.kind if projection else None,
        "projection_seed": projection.seed if projection else None,
    }


def _ending(outcome: Outcome, stepper: Stepper, observers: Observers) -> dict[str, Any]:
    return {
        "status": outcome.status.code,
        "message": outcome.message,
        "success": outcome.status.success,
        "n_steps": stepper.n_steps,
        "n_rejected_steps": stepper.n_rejected,
        "n_loss_increases": stepper.n_loss_increases,
        "n_gradients_observing": observers.flow.cost.n_gradients,
        "n_hvps_observing": observers.flow.spectrum.n_hvps,
    }


def _report_failure(
    outcome: Outcome, stepper: Stepper, dataset: xr.Dataset, out: object, on_failure: str
) -> None:
    if outcome.status.success:
        return
    where = f"The run ended at t = {stepper.t:.6g}, step {stepper.n_steps}, loss {stepper.point.loss:.6g}"
    kept = f"; its record is in {out}" if out is not None else ""
    message = f"{where}{kept}. {outcome.message}"
    if on_failure == "raise":
        raise IntegrationError(
            message,
            status=outcome.status.code,
            t=stepper.t,
            step=stepper.n_steps,
            loss=stepper.point.loss,
            dataset=dataset,
            path=None if out is None else str(out),
        )
    warnings.warn(message, IntegrationWarning, stacklevel=3)


def _numpy(theta: Tensor) -> np.ndarray:
    return theta.detach().cpu().numpy()


__all__ = ["Solver", "integrate", "solver", "steps"]
