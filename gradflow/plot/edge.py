"""An optimiser at its edge of stability beside the flows that describe it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradflow.analysis.compare import compare, label
from gradflow.analysis.predictions import (
    IN_STEPS,
    WIDTH,
    UnevenStepsError,
    in_common_time,
    predicted_variance,
    smoothed,
)
from gradflow.analysis.thresholds import bounded_by_threshold, crossing_time
from gradflow.checks import check_number
from gradflow.errors import GradflowError, InvalidInputError, InvalidTypeError
from gradflow.plot.runs import threshold_name

#: Of the optimiser: its iterates, and their average.
_RAW, _AVERAGE = "0.65", "black"


def edge(
    optimiser: xr.Dataset,
    *flows: xr.Dataset | Mapping[str, xr.Dataset] | None,
    smooth: float | None = None,
    **named: xr.Dataset | None,
) -> Figure:
    """Draw an optimiser beyond its threshold beside flows: loss, sharpness, oscillation, and distance to each flow.

    It is drawn where it was recorded: averages need records that are evenly spaced in steps, the oscillation and the
    distance of the centre need ``midpoint=True``. Lines of the optimiser are grey (its iterates) and black (smoothed,
    or at its midpoints); each flow has one colour. The dotted line is where the optimiser crosses its threshold. What
    is smoothed is drawn from there on, and not before two widths of the Gaussian, which smears a fast start over them.

    Parameters
    ----------
    optimiser : Dataset
        Such as a run of ``gd``.
    *flows : Dataset, or mapping of str to Dataset
        Runs of flows from the same start, as they come or by the names that the legends give them. None is left out.
    smooth : float, optional
        Standard deviation of the Gaussian, in steps of the optimiser. Default: 50.
    **named : Dataset
        Further flows by name.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If there is no flow, or one can't be compared with the optimiser.
    """
    width = WIDTH if smooth is None else check_number("smooth", smooth, least=0)
    runs = _named(optimiser, flows, named)
    aligned = {name: in_common_time(optimiser, run) for name, run in runs.items()}
    gd = next(iter(aligned.values()))[0]
    if any(
        other.attrs.get("time_definition") != gd.attrs.get("time_definition") for other, _ in aligned.values()
    ):
        raise InvalidInputError(
            "Some of the flows go by steps of the optimiser and others by flow time. Draw one kind at a time."
        )
    centred = {name: run for name, (_, run) in aligned.items()}
    colors = {name: f"C{i}" for i, name in enumerate(centred)}
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 8.0), layout="constrained")
    panels: tuple[Callable[..., None], ...] = (_loss, _sharpness, _variance, _distance)
    for ax, panel in zip(axes.flat, panels, strict=True):
        panel(ax, gd, centred, colors, width)
        _finish(ax, gd)
    return figure


def _named(
    optimiser: xr.Dataset,
    flows: tuple[xr.Dataset | Mapping[str, xr.Dataset] | None, ...],
    named: Mapping[str, xr.Dataset | None],
) -> dict[str, xr.Dataset]:
    """Return the flows by the names of the legends; without one, that of the flow."""
    found: dict[str, xr.Dataset] = {}
    for each in (*flows, named):
        given = {None: each} if isinstance(each, xr.Dataset) or each is None else each
        if not isinstance(given, Mapping):
            raise InvalidTypeError(
                f"Expected flows as runs, or mappings of names to runs, got {type(each).__name__}."
            )
        for name, run in given.items():
            if run is None:
                continue
            known = str(run.attrs.get("flow", "gradient")) if name is None else str(name)
            if known in found:
                known = (
                    f"{known}, {label(run)}"
                    if f"{known}, {label(run)}" not in found
                    else f"{known} {len(found)}"
                )
            found[known] = run
    if not isinstance(optimiser, xr.Dataset) or any(
        not isinstance(run, xr.Dataset) for run in found.values()
    ):
        raise InvalidTypeError("Expected runs as datasets of xarray. Open files with gradflow.open_run.")
    if not found:
        raise InvalidInputError("Expected at least one flow beside the optimiser, got none.")
    return found


def _loss(
    ax: Axes, gd: xr.Dataset, flows: Mapping[str, xr.Dataset], colors: Mapping[str, str], width: float
) -> None:
    _line(ax, gd.train_loss, label(gd), _RAW, linewidth=0.8)
    _average(ax, gd, gd.train_loss, width)
    for name, run in flows.items():
        predicts = "predicted_train_loss" in run
        series = run.predicted_train_loss if predicts else run.train_loss
        _line(ax, series, f"{name}, predicted" if predicts else name, colors[name])
    ax.set(title="training loss", yscale=_scale(ax))
    if ax.get_yscale() == "linear":
        _leave_out_spikes(ax)


def _sharpness(
    ax: Axes, gd: xr.Dataset, flows: Mapping[str, xr.Dataset], colors: Mapping[str, str], width: float
) -> None:
    variable = "effective_eigenvalue" if bounded_by_threshold(gd) == "effective_eigenvalue" else "eigenvalue"
    if variable in gd:
        _line(ax, gd[variable][:, 0], label(gd), _RAW, linewidth=0.8)
    if f"midpoint_{variable}" in gd:
        _line(ax, gd[f"midpoint_{variable}"][:, 0], f"{label(gd)}, at midpoints", _AVERAGE, linewidth=1.0)
    for name, run in flows.items():
        if variable in run:
            _line(ax, run[variable][:, 0], name, colors[name])
    if "stability_threshold" in gd.attrs:
        value = float(gd.attrs["stability_threshold"])
        ax.axhline(
            value, color="0.3", linestyle="--", linewidth=1, label=f"{threshold_name(gd)} = {value:.4g}"
        )
    ax.set_title("sharpness λ₁" if variable == "eigenvalue" else "effective sharpness λ₁")


def _variance(
    ax: Axes, gd: xr.Dataset, flows: Mapping[str, xr.Dataset], colors: Mapping[str, str], width: float
) -> None:
    if "oscillation_variance" in gd:
        _line(
            ax, gd.oscillation_variance, f"{label(gd)}, squared distance from midpoint", _RAW, linewidth=0.8
        )
        _average(ax, gd, gd.oscillation_variance, width)
    for name, run in flows.items():
        variance = predicted_variance(run)
        if variance is not None:
            _line(ax, variance, f"{name}, tr Σ" if "sigma_trace" in run else f"{name}, ρ²", colors[name])
    ax.set_title("variance of the oscillation")
    _leave_out_spikes(ax)


def _distance(
    ax: Axes, gd: xr.Dataset, flows: Mapping[str, xr.Dataset], colors: Mapping[str, str], width: float
) -> None:
    from_midpoints = False
    for name, run in flows.items():
        result = _compared(gd, run)
        if result is None:
            continue
        if "midpoint_distance" in result:
            from_midpoints = True
            _line(ax, result.midpoint_distance, name, colors[name])
        else:
            _line(ax, result.distance, f"{name}, from iterates", colors[name])
    ax.set_title("distance of the midpoints to each flow" if from_midpoints else "distance to each flow")
    ax.set_ylim(bottom=0)


def _compared(gd: xr.Dataset, run: xr.Dataset) -> xr.Dataset | None:
    """Compare at the times that both have, or else by interpolation; None where the runs have no state in common."""
    for interp in (False, True):
        try:
            result = compare(gd, run, interp=interp)
        except GradflowError:
            continue
        if result.sizes["time"] > 2:
            return result
    return None


def _average(ax: Axes, gd: xr.Dataset, series: xr.DataArray, width: float) -> None:
    """Draw a quantity of the optimiser smoothed, where it is beyond its threshold and its start no longer counts."""
    try:
        averaged = smoothed(series, width)
    except UnevenStepsError:
        return
    steps = averaged.step.values - gd.step.values[0]
    rows = ~(averaged.time.values < crossing_time(gd)) & (steps >= 2 * width)
    _line(ax, averaged[rows], f"{label(gd)}, smoothed", _AVERAGE)


def _line(ax: Axes, series: xr.DataArray, name: str, color: str, *, linewidth: float = 1.5) -> None:
    known = np.isfinite(series.values)
    ax.plot(series.time.values[known], series.values[known], label=name, color=color, linewidth=linewidth)


def _scale(ax: Axes) -> str:
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    return "log" if len(drawn) and drawn.min() > 0 and drawn.max() >= 10 * drawn.min() else "linear"


def _leave_out_spikes(ax: Axes) -> None:
    """Let spikes of the iterates leave the panel, where averages and predictions are far smaller."""
    drawn = [np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_color() != _RAW]
    values = np.concatenate([*drawn, np.zeros(0)])
    if len(values) and np.ptp(values) > 0:
        bottom, top = ax.get_ylim()
        wanted = values.max() + 0.6 * np.ptp(values)
        ax.set_ylim(max(bottom, values.min() - 0.1 * np.ptp(values)), min(top, wanted))


def _finish(ax: Axes, gd: xr.Dataset) -> None:
    """Mark the crossing, put the legend below the panel, where it covers nothing, and take off half of the frame."""
    crossing = crossing_time(gd)
    if np.isfinite(crossing):
        ax.axvline(crossing, color="0.4", linestyle=":", linewidth=1)
    in_steps = gd.attrs.get("time_definition") == IN_STEPS
    ax.set_xlabel("time (optimiser steps)" if in_steps else "time t")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    else:
        ax.text(0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", color="0.4")
    ax.spines[["top", "right"]].set_visible(False)
