"""An optimiser beyond its edge of stability against a flow that predicts averages of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import xarray as xr
from scipy.ndimage import gaussian_filter1d

from gradflow.errors import InvalidInputError

#: The time of flows that go by the steps of the optimiser that they describe.
IN_STEPS = "optimiser steps"
#: Width of the Gaussian, in steps, where nothing is said.
WIDTH = 50.0


class UnevenStepsError(InvalidInputError):
    """Records aren't evenly spaced in steps, so that a width in steps can't be one in records."""


def is_optimiser(run: xr.Dataset) -> bool:
    """Tell by its record whether a run is an optimiser's: it has midpoints, or a threshold of stability."""
    return "predicted_train_loss" not in run and (
        "midpoint_train_loss" in run or "stability_threshold" in run.attrs
    )


def optimiser_and_flow(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset] | None:
    """Return two runs as optimiser and flow; None if they aren't one of each."""
    if is_optimiser(a) == is_optimiser(b):
        return None
    return (a, b) if is_optimiser(a) else (b, a)


def in_common_time(a: xr.Dataset, b: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Return two runs with one meaning of time, and one zero.

    That is the steps of an optimiser, where the flow counts in them. A flow whose first steps the optimiser takes
    itself (``warmup_steps``) begins at the time that the optimiser has after these.
    """

    def counted(run: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
        if other.attrs.get("time_definition") != IN_STEPS or not is_optimiser(run):
            return run
        time = ("time", run.step.values.astype(np.float64), run.time.attrs)
        return run.assign_coords(time=time).assign_attrs(time_definition=IN_STEPS)

    def begun(run: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
        warmup = _warmup_steps(run)
        if not warmup or _BEGUN in run.attrs or is_optimiser(run) or not is_optimiser(other):
            return run
        start = np.interp(warmup, other.step.values, other.time.values)
        time = ("time", run.time.values + start, run.time.attrs)
        return run.assign_coords(time=time).assign_attrs({_BEGUN: float(start)})

    a, b = counted(a, b), counted(b, a)
    return begun(a, b), begun(b, a)


#: Attribute of a flow whose times are already those since the optimiser's start.
_BEGUN = "begun_at"


def _warmup_steps(run: xr.Dataset) -> int:
    """Return how many steps an optimiser took before a flow's time 0."""
    options = json.loads(run.attrs.get("gradflow_config", "{}")).get("flow_options") or {}
    return int(options.get("warmup_steps") or 0)


def smoothed(series: xr.DataArray, width: float) -> xr.DataArray:
    """Average a quantity of an optimiser over its steps by a Gaussian; the ends go on as they are.

    Parameters
    ----------
    series : DataArray of dims (time,) or (time, …)
        With the coordinate ``step``. Records where it is NaN don't count.
    width : float
        Standard deviation, in steps; 0 for none.

    Returns
    -------
    DataArray
        At the records that are evenly spaced; those between them, of events and of the run's end, are left out.

    Raises
    ------
    UnevenStepsError
        If there is no such spacing.
    """
    series = series.dropna("time")
    if width == 0 or series.sizes["time"] < 2:
        return series
    rows, spacing = _even(str(series.name), series.step.values)
    series = series[rows]
    means = gaussian_filter1d(series.values.astype(np.float64), width / spacing, axis=0, mode="nearest")
    return series.copy(data=means)


def smoothed_alike(series: xr.DataArray, like: xr.DataArray, width: float) -> xr.DataArray:
    """Average a quantity of a flow as :func:`smoothed` averages one of the optimiser.

    So what the Gaussian does to a cycle, to a fast start and at the ends is done to both, and isn't an error of the
    flow.

    Parameters
    ----------
    series : DataArray of dims (time,)
        Of the flow, in the optimiser's time. Between its records it is interpolated linearly.
    like : DataArray of dims (time,)
        Of the optimiser, with the coordinate ``step``.
    width : float
        Standard deviation, in steps of the optimiser; 0 for none.

    Returns
    -------
    DataArray
        At records of the optimiser. Where records of the flow are further apart than the width, there is nothing to
        average: the series itself, at its own records.
    """
    series, like = series.dropna("time"), like.dropna("time")
    if width == 0 or series.sizes["time"] < 2 or like.sizes["time"] < 2:
        return series
    like = like[_even(str(like.name), like.step.values)[0]]
    if np.diff(np.interp(series.time.values, like.time.values, like.step.values)).max() > width:
        return series
    values = np.interp(like.time.values, series.time.values, series.values.astype(np.float64))
    return smoothed(like.copy(data=values), width)


def _even(name: str, steps: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the rows of evenly spaced steps, and their spacing."""
    gaps, counts = np.unique(np.diff(steps), return_counts=True)
    spacing = int(gaps[counts.argmax()])
    if spacing > 0:
        residues, counts = np.unique(steps % spacing, return_counts=True)
        rows = np.flatnonzero(steps % spacing == residues[counts.argmax()])
        if len(rows) > 1 and (np.diff(steps[rows]) == spacing).all():
            return rows, spacing
    raise UnevenStepsError(
        f"Expected {name or 'a quantity'} of the optimiser at evenly spaced steps, so that it can be smoothed over "
        f"steps, got steps {steps[0]}, {', '.join(map(str, steps[1:4]))}, …. Record it with "
        "save_every=gradflow.steps(n), or pass smooth=0."
    )


def predictions(
    optimiser: xr.Dataset,
    flow: xr.Dataset,
    width: float,
    at: Callable[[xr.DataArray], xr.DataArray],
) -> dict[str, xr.DataArray]:
    """Compare what a flow predicts with averages of an optimiser.

    Parameters
    ----------
    optimiser, flow : Dataset
    width : float
        Of the Gaussian, in steps.
    at : callable
        Takes a series to the times of the comparison.

    Returns
    -------
    dict of str to DataArray
        As :func:`gradflow.compare` says.
    """
    series = flow.get("predicted_train_loss", flow.train_loss)
    norms = flow.get("predicted_gradient_norm", flow.gradient_norm)
    loss = at(smoothed(optimiser.train_loss, width))
    norm = at(smoothed(optimiser.gradient_norm**2, width) ** 0.5)
    alike = at(smoothed_alike(series, optimiser.train_loss, width))
    norm_alike = at(smoothed_alike(norms**2, optimiser.gradient_norm, width) ** 0.5)
    found = {
        "train_loss_smoothed": _said(loss, "training loss of the optimiser, smoothed"),
        "predicted_train_loss": _said(at(series), "training loss that the flow predicts"),
        "predicted_train_loss_smoothed": _said(alike, "training loss that the flow predicts, smoothed alike"),
        "loss_error": _error(alike, loss, "predicted from the optimiser's training loss, both smoothed"),
        "gradient_norm_smoothed": _said(norm, "gradient norm of the optimiser, root of its smoothed square"),
        "predicted_gradient_norm": _said(at(norms), "gradient norm that the flow predicts"),
        "predicted_gradient_norm_smoothed": _said(
            norm_alike, "gradient norm that the flow predicts, root of its square smoothed alike"
        ),
        "gradient_norm_error": _error(
            norm_alike, norm, "predicted from the optimiser's gradient norm, both smoothed"
        ),
    }
    return found | _sharpness(optimiser, flow, width, at) | _oscillation(optimiser, flow, width, at)


def centre_sharpness(optimiser: xr.Dataset, width: float, name: str = "eigenvalue") -> xr.DataArray:
    """Return λ₁ at the optimiser's centre: at its midpoints where recorded there, else smoothed."""
    if f"midpoint_{name}" in optimiser:
        return optimiser[f"midpoint_{name}"][:, 0]
    return smoothed(optimiser[name][:, 0], width)


def predicted_variance(flow: xr.Dataset) -> xr.DataArray | None:
    """Return the variance of the oscillation that a flow predicts: tr Σ, else ρ²; None where it predicts none."""
    if "sigma_trace" in flow:
        return flow.sigma_trace
    if "rho" not in flow:
        return None
    return (flow.rho**2).sum([dim for dim in flow.rho.dims if dim != "time"], skipna=False)


def _sharpness(
    optimiser: xr.Dataset, flow: xr.Dataset, width: float, at: Callable[[xr.DataArray], xr.DataArray]
) -> dict[str, xr.DataArray]:
    both = [name for name in ("effective_eigenvalue", "eigenvalue") if name in optimiser and name in flow]
    if not both:
        return {}
    name = both[0]
    λ, predicted = centre_sharpness(optimiser, width, name), flow[name][:, 0]
    if f"midpoint_{name}" not in optimiser:
        predicted = smoothed_alike(predicted, optimiser[name][:, 0], width)
    λ, predicted = at(λ), at(predicted)
    return {
        "sharpness_at_centre": _said(λ, "largest eigenvalue at the optimiser's midpoints, else smoothed"),
        "sharpness_error": _error(predicted, λ, "the flow's largest eigenvalue from that at the centre"),
    }


def _oscillation(
    optimiser: xr.Dataset, flow: xr.Dataset, width: float, at: Callable[[xr.DataArray], xr.DataArray]
) -> dict[str, xr.DataArray]:
    found = {}
    if "oscillation_variance" in optimiser:
        series = at(smoothed(optimiser.oscillation_variance, width))
        found["oscillation_variance_smoothed"] = _said(series, "variance of the oscillation, smoothed")
    if (variance := predicted_variance(flow)) is not None:
        found["sigma_trace"] = _said(at(variance), "variance of the oscillation that the flow predicts")
    if "oscillation_along" in optimiser and "sigma_eigenvalue" in flow:
        along = smoothed(optimiser.oscillation_along.rename(eig="mode"), width)
        modes = slice(min(along.sizes["mode"], flow.sizes["mode"]))
        along, σ = at(along[:, modes]), at(flow.sigma_eigenvalue[:, modes])
        text = "variance of the oscillation along each top eigenvector, smoothed"
        found["oscillation_along_smoothed"] = _said(along, text)
        found["sigma_eigenvalue"] = _said(σ, "eigenvalues of the covariance that the flow predicts")
    return found


def _said(series: xr.DataArray, long_name: str) -> xr.DataArray:
    return series.assign_attrs(units="1", long_name=long_name)


def _error(predicted: xr.DataArray, found: xr.DataArray, what: str) -> xr.DataArray:
    with np.errstate(divide="ignore", invalid="ignore"):  # where a loss is zero
        error = abs(predicted - found) / abs(found)
    return _said(error, f"relative distance of the {what}")
