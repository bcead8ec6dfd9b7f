"""Figures of runs. Every function takes datasets and axes, and returns the axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradflow.analysis.combine import RECORD, separate
from gradflow.analysis.compare import compare, label
from gradflow.analysis.thresholds import bounded_by_threshold, governing_sharpness
from gradflow.errors import GradflowError, InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.plot.axes import axes_or_new, with_legend

Runs = xr.Dataset | Mapping[str, xr.Dataset]


def train_loss(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the training loss over time, on a logarithmic axis if it spans a decade.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        One run, several by the name that the legend gives them, or several combined by
        :func:`gradflow.combine`.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new figure.
    """
    ax = axes_or_new(ax)
    for name, run in _named(runs).items():
        _line(ax, run.train_loss, name)
    ax.set(xlabel="time t", ylabel="training loss", yscale=_scale(ax))
    return with_legend(ax)


def accuracy(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the training accuracy over time, and the test accuracy, dashed, if it was recorded.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    for name, run in _named(runs).items():
        line = _line(ax, 100 * run.train_accuracy, name)
        if np.isfinite(run.test_accuracy).any():
            _line(ax, 100 * run.test_accuracy, f"{name}, test", color=line.get_color(), linestyle="--")
    ax.set(xlabel="time t", ylabel="accuracy (%)", ylim=(None, 102))
    return with_legend(ax)


def sharpness(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the largest Hessian eigenvalue over time, with the threshold of each optimiser, 2/η for ``gd``.

    For adaptive optimisers that is λ₁ of the preconditioned Hessian. A threshold is drawn beside the sharpness that it
    bounds, and beside no other.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`. If no eigenvalues were recorded, those by which the steps were sized.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    thresholds: dict[float, tuple[str, Any]] = {}
    named = _named(runs)
    drawn = {name: governing_sharpness(run) for name, run in named.items()}
    effective = [variable == "effective_eigenvalue" for variable, _ in drawn.values()]
    mixed = any(effective) and not all(effective)
    for name, (variable, series) in drawn.items():
        run = named[name]
        suffix = ", effective" if mixed and variable == "effective_eigenvalue" else ""
        line = _line(ax, series, name + suffix)
        # The steps are sized by λ₁ of the Hessian, too.
        if bounded_by_threshold(run) == ("eigenvalue" if variable == "sharpness_used" else variable):
            value = float(run.attrs["stability_threshold"])
            thresholds.setdefault(value, (threshold_name(run), line.get_color()))
    for value, (formula, color) in thresholds.items():
        ax.axhline(value, color=color, linestyle="--", linewidth=1, label=f"{formula} = {value:.4g}")
    what = "sharpness λ₁, effective where preconditioned" if any(effective) else "sharpness λ₁"
    ax.set(xlabel="time t", ylabel="effective sharpness λ₁" if all(effective) else what)
    return with_legend(_from_zero(ax))


def distance(a: xr.Dataset, b: xr.Dataset, ax: Axes | None = None, *, interp: bool = False) -> Axes:
    """Plot the distance of two runs over time, relative to the path length of the second.

    Parameters
    ----------
    a, b : Dataset
        As in :func:`gradflow.compare`; a vertical line marks where `a` crosses its threshold.
    ax : matplotlib.axes.Axes, optional
    interp : bool
        As in :func:`gradflow.compare`.
    """
    ax = axes_or_new(ax)
    difference = compare(a, b, interp=interp)
    _line(ax, 100 * difference.relative_distance, f"{difference.attrs['a']} − {difference.attrs['b']}")
    crossing = float(difference.crossing_time_a)
    if np.isfinite(crossing):
        bounded = "effective λ₁" if bounded_by_threshold(a) == "effective_eigenvalue" else "λ₁"
        said = f"{bounded} crosses {threshold_name(a)}, t = {crossing:.4g}"
        ax.axvline(crossing, color="0.4", linestyle=":", linewidth=1, label=said)
    ax.set(xlabel="time t", ylabel="distance / path length (%)")
    ax.set_ylim(bottom=0)
    return with_legend(ax)


def spectrum(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot all recorded Hessian eigenvalues over time, each run in one colour, paler from the second on.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`; recorded with ``n_eigs``.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    for name, run in _named(runs).items():
        if "eigenvalue" not in run:
            raise InvalidInputError(f"{name} has no eigenvalues: record it with n_eigs ≥ 1.")
        n = run.sizes["eig"]
        first = _line(ax, run.eigenvalue[:, 0], f"{name}, λ₁ to λ{_subscript(n)}" if n > 1 else f"{name}, λ₁")
        for i in range(1, n):
            pale = 1 - 0.75 * i / n
            _line(ax, run.eigenvalue[:, i], None, color=first.get_color(), alpha=pale, linewidth=0.9)
    ax.set(xlabel="time t", ylabel="Hessian eigenvalues")
    return with_legend(_from_zero(ax))


def step_size(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the sizes of the recorded steps over time.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    for name, run in _named(runs).items():
        _line(ax, run.step_size, name)
    ax.set(xlabel="time t", ylabel="step size h", yscale=_scale(ax))
    return with_legend(ax)


def cost(runs: Runs, ax: Axes | None = None) -> Axes:
    """Plot the cost of the runs over time: gradients and Hessian–vector products together.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    for name, run in _named(runs).items():
        _line(ax, run.n_gradients + run.n_hvps, name)
    ax.set(xlabel="time t", ylabel="gradients + H·v", yscale=_scale(ax))
    return with_legend(ax)


#: The panels of :func:`figure`, by name.
PANELS: dict[str, Callable[..., Axes]] = {
    "loss": train_loss,
    "accuracy": accuracy,
    "sharpness": sharpness,
    "distance": distance,
    "spectrum": spectrum,
    "step_size": step_size,
    "cost": cost,
}


def figure(runs: Runs, panels: Sequence[str] | None = None) -> Figure:
    """Draw several panels side by side, three to a row.

    Parameters
    ----------
    runs : Dataset or mapping of str to Dataset
        As in :func:`train_loss`.
    panels : sequence of str, optional
        Of ``loss``, ``accuracy``, ``sharpness``, ``distance`` (of the first run from the second), ``spectrum``,
        ``step_size``, ``cost``. Default: loss; accuracy and sharpness if they were recorded; distance for two runs
        that can be compared.

    Returns
    -------
    matplotlib.figure.Figure
    """
    named = _named(runs)
    if not named:
        raise InvalidInputError("Expected at least one run, got none.")
    chosen = _panels_of(named) if panels is None else list(panels)
    for name in chosen:
        if name not in PANELS:
            raise UnknownNameError(f"No panel {name!r}; {suggest(name, PANELS)}")
    if "distance" in chosen and len(named) != 2:
        raise InvalidInputError(f"The distance is that of two runs, got {len(named)}.")
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    result, axes = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.6 * rows), layout="constrained", squeeze=False
    )
    for name, ax in zip(chosen, axes.flat, strict=False):
        if name == "distance":
            a, b = named.values()
            distance(a, b, ax, interp=not _share_times(a, b))
        else:
            PANELS[name](named, ax)
    for ax in axes.flat[len(chosen) :]:
        ax.set_axis_off()
    return result


def overview(gd: xr.Dataset, flow: xr.Dataset) -> Figure:
    """Draw loss, sharpness and distance of gradient descent beside the gradient flow.

    Parameters
    ----------
    gd, flow : Dataset
    """
    runs = {"gradient descent": gd, f"gradient flow ({flow.attrs['method']})": flow}
    return figure(runs, ["loss", "sharpness", "distance"])


def _panels_of(named: Mapping[str, xr.Dataset]) -> list[str]:
    chosen = ["loss"]
    if any(np.isfinite(run.train_accuracy).any() for run in named.values()):
        chosen.append("accuracy")
    if any(np.isfinite(governing_sharpness(run)[1]).any() for run in named.values()):
        chosen.append("sharpness")
    if len(named) == 2:
        try:
            compare(*named.values(), interp=True)
            chosen.append("distance")
        except GradflowError:
            pass
    return chosen


def _share_times(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Return whether the runs have more times in common than their ends: then nothing is interpolated."""
    try:
        return compare(a, b).sizes["time"] > 2
    except GradflowError:
        return False


def threshold_name(run: xr.Dataset) -> str:
    """Return the formula of a run's stability threshold."""
    return str(run.attrs.get("stability_threshold_formula", "2/η"))


def _subscript(n: int) -> str:
    return str(n).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _named(runs: Runs) -> Mapping[str, xr.Dataset]:
    if not isinstance(runs, xr.Dataset | Mapping):
        raise InvalidTypeError(
            f"Expected a run, or a mapping of names to runs, got {type(runs).__name__}. Give each a name: {{'gd': gd}}."
        )
    if not isinstance(runs, xr.Dataset):
        return runs
    return dict(separate(runs)) if RECORD in runs.dims else {label(runs): runs}


def _line(ax: Axes, series: xr.DataArray, name: str | None, **style: Any) -> Any:
    known = np.isfinite(series.values)
    style = {"linewidth": 1.3} | style
    return ax.plot(series.time.values[known], series.values[known], label=name, **style)[0]


def _scale(ax: Axes) -> str:
    """Return "log" if all that is drawn is positive and spans a decade, else "linear"."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    return "log" if len(drawn) and drawn.min() > 0 and drawn.max() >= 10 * drawn.min() else "linear"


def _from_zero(ax: Axes) -> Axes:
    if all((np.asarray(line.get_ydata(), float) >= 0).all() for line in ax.lines):
        ax.set_ylim(bottom=0)
    return ax
