"""Figures of runs. Every function takes datasets and axes, and returns the axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradflow.analysis.compare import compare
from gradflow.errors import InvalidTypeError

Runs = xr.Dataset | Mapping[str, xr.Dataset]


def train_loss(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the training loss over time, on a logarithmic axis if it is positive.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        One run, or several by the name that the legend gives them.
    ax : matplotlib.axes.Axes, optional
    """
    ax = _axes(ax)
    for label, run in _named(runs).items():
        _line(ax, run.train_loss, label)
    positive = all((np.asarray(line.get_ydata(), float) > 0).all() for line in ax.lines)
    ax.set(xlabel="time t", ylabel="training loss", yscale="log" if positive else "linear")
    return _legend(ax)


def sharpness(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the largest Hessian eigenvalue over time, with the threshold 2/η of discrete methods.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
    ax : matplotlib.axes.Axes, optional
    """
    ax = _axes(ax)
    thresholds: dict[float, Any] = {}
    for label, run in _named(runs).items():
        measured = "eigenvalue" in run
        line = _line(ax, run.eigenvalue[:, 0] if measured else run.sharpness_used, label)
        if "stability_threshold" in run.attrs:
            thresholds.setdefault(float(run.attrs["stability_threshold"]), line.get_color())
    for threshold, color in thresholds.items():
        ax.axhline(threshold, color=color, linestyle="--", linewidth=1, label=f"2/η = {threshold:.4g}")
    ax.set(xlabel="time t", ylabel="sharpness λ₁")
    if all((np.asarray(line.get_ydata(), float) >= 0).all() for line in ax.lines):
        ax.set_ylim(bottom=0)
    return _legend(ax)


def distance(a: xr.Dataset, b: xr.Dataset, ax: Axes | None = None, *, interp: bool = False) -> Axes:
    """Plot the distance of two runs over time, relative to the path length of the second.

    Parameters
    ----------
    a, b : Dataset
        As of :func:`gradflow.compare`; a vertical line marks where `a` crosses its threshold.
    ax : matplotlib.axes.Axes, optional
    interp : bool
        As of :func:`gradflow.compare`.
    """
    ax = _axes(ax)
    difference = compare(a, b, interp=interp)
    _line(ax, 100 * difference.relative_distance, f"{difference.attrs['a']} − {difference.attrs['b']}")
    crossing = float(difference.crossing_time_a)
    if np.isfinite(crossing):
        ax.axvline(
            crossing, color="0.4", linestyle=":", linewidth=1, label=f"λ₁ crosses 2/η, t = {crossing:.4g}"
        )
    ax.set(xlabel="time t", ylabel="distance / path length (%)")
    ax.set_ylim(bottom=0)
    return _legend(ax)


def overview(gd: xr.Dataset, flow: xr.Dataset) -> Figure:
    """Draw loss, sharpness and distance of gradient descent beside the gradient flow.

    Parameters
    ----------
    gd, flow : Dataset
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    runs = {"gradient descent": gd, f"gradient flow ({flow.attrs['method']})": flow}
    train_loss(runs, axes[0])
    sharpness(runs, axes[1])
    distance(gd, flow, axes[2], interp=True)
    return figure


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _named(runs: Runs) -> Mapping[str, xr.Dataset]:
    if not isinstance(runs, xr.Dataset | Mapping):
        raise InvalidTypeError(
            f"Expected a run, or a mapping of names to runs, got {type(runs).__name__}. Give each a name: {{'gd': gd}}."
        )
    return {str(runs.attrs.get("method", "run")): runs} if isinstance(runs, xr.Dataset) else runs


def _line(ax: Axes, series: xr.DataArray, label: str) -> Any:
    known = np.isfinite(series.values)
    return ax.plot(series.time.values[known], series.values[known], label=label, linewidth=1.3)[0]


def _legend(ax: Axes) -> Axes:
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
