"""The distance between two runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable

import numpy as np
import xarray as xr

from gradflow.analysis.predictions import (
    IN_STEPS,
    WIDTH,
    UnevenStepsError,
    in_common_time,
    optimiser_and_flow,
    predictions,
)
from gradflow.analysis.thresholds import SHARPNESS, bounded_by_threshold, crossing_time
from gradflow.checks import check_number
from gradflow.errors import ConventionWarning, InvalidInputError, InvalidTypeError


def compare(a: xr.Dataset, b: xr.Dataset, *, interp: bool = False, smooth: float | None = None) -> xr.Dataset:
    """Measure the distance between two runs as a function of time.

    Distances are between the recorded θ where both runs have it, else between random projections of equal
    kind, seed and shape, which keep distances on average.

    Parameters
    ----------
    a, b : xarray.Dataset
        Two runs. `b` is the reference whose path length the relative distance is in terms of.
    interp : bool, default False
        Compare at all of `a`'s times within `b`, interpolating `b` linearly. Default: at times that both
        have, to 1e-9 of the largest.
    smooth : float, optional
        Standard deviation of the Gaussian by which an optimiser, and for errors what a flow predicts, are averaged, in
        steps of the optimiser; 0 for none. Its records must be evenly spaced in steps. Default: 50 where they are, else
        nothing is averaged.

    Returns
    -------
    xarray.Dataset
        On ``time``: ``distance`` ‖a − b‖₂; ``path_length`` of `b` up to then, as the sum of the distances
        between its records; ``relative_distance``, their ratio; ``train_loss_a``, ``train_loss_b``; and
        ``eigenvalue_a``, ``eigenvalue_b``, the largest of each, and ``effective_eigenvalue_a``,
        ``effective_eigenvalue_b``, the largest of the preconditioned Hessian, if they were recorded. Scalars
        ``crossing_time_a`` and ``crossing_time_b``: when the sharpness that the run's threshold bounds (2/η for
        ``gd``) first rises above it; their ``long_name`` tells whether that is the sharpness or the effective
        sharpness. NaN if it doesn't rise above it, or wasn't recorded.

        A flow with ``warmup_steps`` is compared from there on: its time 0 is the optimiser's after these steps.

        Of an optimiser and a flow, in any order, also what the flow predicts of the optimiser's averages:
        ``train_loss_smoothed``; ``predicted_train_loss`` as the flow recorded it; ``predicted_train_loss_smoothed``, by
        the same Gaussian; and ``loss_error``, the relative distance of the two that are smoothed: cycles that a flow
        resolves, and what the Gaussian does to a fast start, are no errors of it. (A flow whose records are further
        apart than `smooth` is taken as it is.) ``gradient_norm_smoothed`` (the root of the smoothed square),
        ``predicted_gradient_norm``, ``predicted_gradient_norm_smoothed`` and ``gradient_norm_error`` likewise;
        ``sharpness_at_centre``, λ₁ at the midpoints or else smoothed, and ``sharpness_error``, from the flow's λ₁, or
        else that smoothed; ``midpoint_distance``, from the optimiser's midpoints to the flow;
        ``oscillation_variance_smoothed`` and ``sigma_trace``; ``oscillation_along_smoothed`` and
        ``sigma_eigenvalue``, by mode, of which only the sums compare where several modes are critical, as the flow's
        covariance has eigenvectors of its own. A flow that predicts no averages, such as the gradient flow, is taken
        at its own loss and gradient norm. Scalars: the means of errors and distances over the times from the
        optimiser's crossing on, ``mean_loss_error``, ``mean_gradient_norm_error``, ``mean_sharpness_error``,
        ``mean_distance`` and ``mean_midpoint_distance``; NaN where it doesn't cross. Each is there if what it is made
        of was recorded.

    Warns
    -----
    ConventionWarning
        If an optimiser of one dtype is compared with a run of another beyond its threshold: how late its oscillation
        sets in depends on rounding.

    Raises
    ------
    InvalidInputError
        If the runs can't be compared; the message tells why.

    Examples
    --------
    >>> import torch, gradflow
    >>> bowl = lambda x: 0.5 * (x**2).sum()
    >>> flow = gradflow.integrate(bowl, torch.ones(1), method="rk4", t_max=1.0, save_every=0.25)
    >>> gd = gradflow.integrate(bowl, torch.ones(1), method="gd", lr=0.25, t_max=1.0)
    >>> compare(gd, flow).distance.round(3).values.tolist()
    [0.0, 0.029, 0.044, 0.051, 0.051]
    """
    for name, run in (("a", a), ("b", b)):
        if not isinstance(run, xr.Dataset):
            raise InvalidTypeError(
                f"Expected {name} as an xarray.Dataset, got {type(run).__name__}. Open a file with gradflow.open_run."
            )
        if "time" not in run.dims or "time" not in run.coords or "train_loss" not in run:
            raise InvalidInputError(f"Expected {name} as a run of gradflow, with train_loss over time.")
    if smooth is not None:
        check_number("smooth", smooth, least=0)
    a, b = in_common_time(a, b)
    _check_comparable(a, b)
    pairs = {what: (_states(a, what), _states(b, what)) for what in _common_states(a, b)}
    matched = {what: _matching(x.time.values, y.time.values) for what, (x, y) in pairs.items()}
    # θ is exact, projections are not; but θ may have been recorded at hardly any time that both have.
    what = max(pairs, key=lambda w: (len(matched[w][0]) > 1, w == "theta"))
    x, y = pairs[what]
    path = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(y.values, axis=0), axis=1))])
    length = xr.DataArray(path, coords={"time": y.time.values}, dims="time")
    if interp and len(y) > 1:
        tolerance = _tolerance(x.time.values, y.time.values)
        first, last = y.time.values[[0, -1]]
        times = x.time.values[(x.time.values >= first - tolerance) & (x.time.values <= last + tolerance)]
        if not len(times):
            raise InvalidInputError("The runs have no time in common.")
        within = np.clip(times, first, last)
        at_a, at_b, length = x.sel(time=times), y.interp(time=within), length.interp(time=within)
    else:
        i, j = matched[what]
        times, at_a, at_b, length = x.time.values[i], x[i], y[j], length[j]
    if not len(times):
        raise InvalidInputError(
            "The runs have no record at the same time. Give both the same save_every or save_at, or pass interp=True."
        )
    distance = np.linalg.norm(at_a.values - at_b.values, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = distance / length.values
    result = xr.Dataset(
        {
            "distance": ("time", distance, {"units": "1", "long_name": "2-norm of the difference"}),
            "path_length": ("time", length.values, {"units": "1", "long_name": "path length of b"}),
            "relative_distance": (
                "time",
                np.where(distance == 0, 0.0, relative),
                {"units": "1", "long_name": "distance over path length of b"},
            ),
        },
        {"time": ("time", times, {"units": "1", "long_name": "flow time"})},
        {"distance_from": what, "a": label(a), "b": label(b)},
    )
    for suffix, run in (("a", a), ("b", b)):
        result[f"train_loss_{suffix}"] = _at(run.train_loss, times, interp)
        for name in ("eigenvalue", "effective_eigenvalue"):
            if name in run:
                result[f"{name}_{suffix}"] = _at(run[name][:, 0], times, interp)
        bounded = SHARPNESS.get(bounded_by_threshold(run) or "", "sharpness").replace("_", " ")
        said = f"first time at which the {bounded} is above the threshold"
        result[f"crossing_time_{suffix}"] = (), crossing_time(run), {"units": "1", "long_name": said}
    if a.attrs.get("time_definition") == IN_STEPS:
        result.time.attrs |= {"units": "1", "long_name": IN_STEPS}
    _warn_of_dtypes(a, b, result)
    if (roles := optimiser_and_flow(a, b)) is not None:
        result = _with_predictions(result, *roles, what, smooth, interp=interp)
    return result


def _with_predictions(
    result: xr.Dataset,
    optimiser: xr.Dataset,
    flow: xr.Dataset,
    what: str,
    smooth: float | None,
    *,
    interp: bool,
) -> xr.Dataset:
    """Add what a flow predicts of an optimiser's averages, and means after the crossing."""
    times = result.time.values
    if (midpoint := f"midpoint_{what}") in optimiser and np.isfinite(optimiser[midpoint]).any():
        x, y = (
            _at(states, times, interp).values
            for states in (_states(optimiser, midpoint), _states(flow, what))
        )
        about = {
            "units": "1",
            "long_name": "2-norm of the difference of the optimiser's midpoint and the flow",
        }
        result["midpoint_distance"] = "time", np.linalg.norm(x - y, axis=1), about
    try:
        width = WIDTH if smooth is None else float(smooth)
        found = predictions(optimiser, flow, width, lambda series: _at(series, times, interp))
        for variable, series in found.items():
            result[variable] = series.dims, series.values, series.attrs
        result.attrs["smooth"] = width
    except UnevenStepsError as error:
        if smooth is not None:
            raise
        result.attrs["not_smoothed"] = str(error)
    crossing = crossing_time(optimiser)
    for name in ("loss_error", "gradient_norm_error", "sharpness_error", "distance", "midpoint_distance"):
        if name in result:
            after = result[name].where(result.time >= crossing).mean()
            said = f"mean of the {name.replace('_', ' ')} from the crossing on"
            result[f"mean_{name}"] = after.assign_attrs(units="1", long_name=said)
    return result


def _warn_of_dtypes(a: xr.Dataset, b: xr.Dataset, result: xr.Dataset) -> None:
    one, two = (run.attrs.get("dtype") for run in (a, b))
    crossing = np.fmin(float(result.crossing_time_a), float(result.crossing_time_b))
    if one != two and crossing <= result.time.values[-1]:
        warnings.warn(
            f"The runs are in {one} and {two}, and are compared beyond t = {crossing:.4g}, where an optimiser becomes "
            "unstable: its oscillation grows out of rounding, and sets in at another time in another dtype. Averages "
            "that are taken later compare; for the onset give both runs one dtype.",
            ConventionWarning,
            stacklevel=3,
        )


def _check_comparable(a: xr.Dataset, b: xr.Dataset) -> None:
    one, two = (run.attrs.get("time_definition", "flow") for run in (a, b))
    if one != two:
        raise InvalidInputError(
            f"The runs' times mean different things ({one!r} and {two!r}), so they can't be aligned."
        )
    p, q = (run.attrs.get("n_parameters") for run in (a, b))
    if p != q:
        raise InvalidInputError(f"The runs have different numbers of parameters, {p} and {q}.")


def _common_states(a: xr.Dataset, b: xr.Dataset) -> list[str]:
    """Return which of θ and its projection both runs have; projections count if their matrix is the same."""
    has_theta = "theta" in a and "theta" in b
    if has_theta and not _projected_alike(a, b):
        return ["theta"]
    if has_theta:
        return ["theta", "projection"]
    if "projection" not in a or "projection" not in b:
        raise InvalidInputError(
            "The runs have no state in common: record both with params_every=…, or with the same n_projections."
        )
    for name in ("projection_kind", "projection_seed"):
        if a.attrs.get(name) != b.attrs.get(name):
            raise InvalidInputError(
                f"The runs were projected by different matrices: {name} is {a.attrs.get(name)} and "
                f"{b.attrs.get(name)}. Record both with one projection_seed."
            )
    if a.sizes["proj"] != b.sizes["proj"]:
        raise InvalidInputError(
            f"The runs have {a.sizes['proj']} and {b.sizes['proj']} projections. Record both with one n_projections."
        )
    return ["projection"]


def _projected_alike(a: xr.Dataset, b: xr.Dataset) -> bool:
    names = ("projection_kind", "projection_seed")
    return (
        "projection" in a
        and "projection" in b
        and all(a.attrs.get(name) == b.attrs.get(name) for name in names)
        and a.sizes["proj"] == b.sizes["proj"]
    )


def _states(run: xr.Dataset, what: str) -> xr.DataArray:
    """Return the recorded states in float64, one row a time; a time recorded twice counts once."""
    states = run[what].drop_vars([c for c in run[what].coords if c != "time"]).astype(np.float64)
    due = np.flatnonzero(np.isfinite(states.isel({states.dims[1]: 0}).values))
    _, last = np.unique(states.time.values[due][::-1], return_index=True)
    return states[due[::-1][last]].load()


def _matching(s: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of times that are equal to 1e-9 of the largest."""
    tolerance = _tolerance(s, t)
    j = np.clip(np.searchsorted(t, s - tolerance), 0, len(t) - 1)
    i = np.flatnonzero(np.abs(t[j] - s) <= tolerance)
    return i, j[i]


def _tolerance(s: np.ndarray, t: np.ndarray) -> float:
    return float(1e-9 * max(abs(s).max(initial=0.0), abs(t).max(initial=0.0)))


def _at(series: xr.DataArray, times: np.ndarray, interp: bool) -> xr.DataArray:
    coords: list[Hashable] = [c for c in series.coords if c != "time"]
    series = series.drop_vars(coords).dropna("time").drop_duplicates("time", keep="last")
    if interp and len(series) > 1:
        first, last = series.time.values[[0, -1]]
        return series.interp(time=np.clip(times, first, last)).assign_coords(time=times)
    tolerance = 1e-9 * float(np.abs(times).max(initial=0.0))
    return series.reindex(time=times, method="nearest", tolerance=tolerance)


def label(run: xr.Dataset) -> str:
    """Name a run by its method, with the learning rate and momentum of an optimiser, and by a flow's name before it."""
    try:
        options = json.loads(run.attrs["gradflow_config"])["options"]
    except (KeyError, ValueError):
        options = {}
    shown = ", ".join(f"{k}={v}" for k, v in options.items() if k in {"lr", "momentum"})
    method, flow = (
        str(run.attrs.get(name, default)) for name, default in (("method", "run"), ("flow", "gradient"))
    )
    if flow != "gradient" and not method.startswith(flow):  # as central-projected does
        method = f"{flow}, {method}"
    return f"{method}({shown})" if shown else method
