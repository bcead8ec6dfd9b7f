"""Figures of the loss landscape. Every function takes datasets and axes, and returns the axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.plot.axes import axes_or_new, with_legend

#: Decades below the largest loss that a logarithmic scale shows at most.
_DECADES = 8
_N_LEVELS = 25
_COLORS = ("#ff5a36", "#ffc400", "#ff8ad8", "#ffffff", "#7dff7a")
_SUGGESTIONS = {
    "suggestion_steepest": "steepest",
    "suggestion_minimum": "minimum/10",
    "suggestion_curvature": "c/λ₁",
}


def contour(
    plane: xr.Dataset,
    trajectories: xr.Dataset | Mapping[str, xr.Dataset] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw filled contours of the loss on a plane, and trajectories on it.

    Levels are spaced logarithmically if the loss is positive and spans a decade, else evenly. Values that aren't
    finite stay white.

    Parameters
    ----------
    plane : Dataset
        From ``gradflow.landscape.plane``.
    trajectories : Dataset or mapping of str to Dataset, optional
        Of ``gradflow.landscape.project``, by the name that the legend gives them. A disc marks where each starts, a
        cross where it ends; what leaves the plane's rectangle isn't shown.
    ax : matplotlib.axes.Axes, optional
        Default: those of a new figure.
    """
    _check(plane, "loss", ("y", "x"), "plane")
    ax = axes_or_new(ax)
    L = np.ma.masked_invalid(plane.loss.values)
    if not L.count():
        raise InvalidInputError("Expected a plane with finite losses, got none. Take a smaller one.")
    levels, style = _levels(L)
    L = np.ma.clip(L, levels[0], None)
    filled = ax.contourf(plane.x, plane.y, L, levels=levels, cmap="viridis", **style)
    ax.contour(plane.x, plane.y, L, levels=levels[::3], colors="white", linewidths=0.3, alpha=0.6)
    bar = ax.figure.colorbar(filled, ax=ax, label="loss")
    if "norm" in style:
        _label_decades(bar, levels)
    else:
        bar.locator = MaxNLocator(6)
        bar.update_ticks()
    for i, (name, path) in enumerate(_named(trajectories).items()):
        _check(path, "y", ("time",), "projection onto a plane")
        color = _COLORS[i % len(_COLORS)]
        ax.plot(path.x, path.y, color="black", linewidth=2.4, alpha=0.6)
        ax.plot(path.x, path.y, color=color, linewidth=1.3, label=name)
        for marker, at in (("o", 0), ("X", -1)):
            ax.plot(path.x[at], path.y[at], marker, color=color, markeredgecolor="black", markersize=7)
    ax.set(xlabel=_name_of(plane, "x"), ylabel=_name_of(plane, "y"))
    ax.set(xlim=(plane.x[0], plane.x[-1]), ylim=(plane.y[0], plane.y[-1]))
    if trajectories is not None:
        ax.legend(fontsize="small", facecolor="0.35", labelcolor="white", framealpha=0.8)
    return ax


def surface(plane: xr.Dataset, ax: Any = None, *, batches: bool = False) -> Any:
    """Draw the loss on a plane as a surface in three dimensions.

    Parameters
    ----------
    plane : Dataset
        From ``gradflow.landscape.plane``.
    ax : mpl_toolkits.mplot3d.Axes3D, optional
        Default: those of a new figure.
    batches : bool, default False
        Draw those of the mini-batches as well, as wireframes.

    Returns
    -------
    mpl_toolkits.mplot3d.Axes3D
    """
    _check(plane, "loss", ("y", "x"), "plane")
    if ax is None:
        ax = plt.figure(layout="constrained").add_subplot(projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise InvalidTypeError("Expected axes in three dimensions: figure.add_subplot(projection='3d').")
    X, Y = np.meshgrid(plane.x, plane.y)
    if batches:
        _check(plane, "batch_loss", ("batch", "y", "x"), "plane with mini-batches")
        for i, values in enumerate(plane.batch_loss.values):
            color = f"C{i % 9 + 1}"
            ax.plot_wireframe(
                X, Y, _finite(values), rcount=12, ccount=12, color=color, linewidth=0.5, alpha=0.7
            )
    ax.plot_surface(X, Y, _finite(plane.loss.values), cmap="viridis", linewidth=0, alpha=0.9)
    ax.set(xlabel=_name_of(plane, "x"), ylabel=_name_of(plane, "y"))
    ax.set_zlabel("loss", labelpad=8)
    ax.xaxis.label.set_fontsize("small")
    ax.yaxis.label.set_fontsize("small")
    return ax


def curve(lines: xr.Dataset | Mapping[str, xr.Dataset], ax: Axes | None = None) -> Axes:
    """Plot the loss along lines, and thin those of mini-batches; on a logarithmic axis if it spans two decades.

    Parameters
    ----------
    lines : Dataset or mapping of str to Dataset
        From ``gradflow.landscape.line``; several by the name that the legend gives them.
    ax : matplotlib.axes.Axes, optional
    """
    ax = axes_or_new(ax)
    named = {"loss": lines} if isinstance(lines, xr.Dataset) else _named(lines)
    if not named:
        raise InvalidInputError("Expected at least one line, got none.")
    for i, (name, each) in enumerate(named.items()):
        _check(each, "loss", ("x",), "line")
        color = f"C{i}"
        if "batch_loss" in each:
            said = [f"{name}, {each.sizes['batch']} mini-batches"] + [None] * (each.sizes["batch"] - 1)
            for values, label in zip(each.batch_loss.values, said, strict=True):
                ax.plot(each.x, _finite(values), color=color, linewidth=0.6, alpha=0.45, label=label)
        ax.plot(each.x, _finite(each.loss.values), color=color, linewidth=1.6, label=name)
    names = {_name_of(each, "x") for each in named.values()}
    drawn = np.concatenate([np.asarray(each.get_ydata(), float) for each in ax.lines])
    ax.set(xlabel=names.pop() if len(names) == 1 else "x", ylabel="loss", yscale=_scale(drawn, 100))
    return with_legend(ax) if len(ax.lines) > 1 else ax


def lr_curve(found: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Plot the result of a learning rate range test, with its suggestions as vertical lines.

    Parameters
    ----------
    found : Dataset
        Of ``gradflow.landscape.lr_find``. The axis is cut off at twice the initial loss, if that is positive, and
        logarithmic if what is below spans a decade.
    ax : matplotlib.axes.Axes, optional
    """
    _check(found, "smoothed_loss", ("lr",), "range test")
    ax = axes_or_new(ax)
    if found.attrs.get("smoothing", 0) > 0:
        ax.plot(found.lr, _finite(found.loss.values), color="0.7", linewidth=0.8, label="loss")
        ax.plot(
            found.lr, _finite(found.smoothed_loss.values), color="C0", linewidth=1.6, label="smoothed loss"
        )
    else:
        ax.plot(found.lr, _finite(found.loss.values), color="C0", linewidth=1.6, label="loss")
    initial = float(found.initial_loss)
    cut = 2 * initial if initial > 0 else np.inf
    shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    shown = np.append(shown[shown <= cut], initial)
    ax.set(xlabel="learning rate η", ylabel="loss after the step", xscale="log", yscale=_scale(shown, 10))
    if ax.get_ylim()[1] > cut:
        low = float(np.nanmin(shown))
        ax.set_ylim(low / 1.2 if ax.get_yscale() == "log" else low - 0.05 * (cut - low), cut)
    for i, (name, said) in enumerate(_SUGGESTIONS.items()):
        value = float(found[name])
        if np.isfinite(value):
            ax.axvline(value, color=f"C{i + 1}", linestyle="--", linewidth=1, label=f"{said}: {value:.3g}")
    return with_legend(ax)


def _levels(L: np.ma.MaskedArray[Any, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return contour levels, and how contourf is to use them."""
    low, high = float(L.min()), float(L.max())
    positive = L.compressed()[L.compressed() > 0]
    if low >= 0 and len(positive) and high >= 10 * low:
        least = max(float(positive.min()), high * 10.0**-_DECADES)
        if high >= 10 * least:
            return np.geomspace(least, high, _N_LEVELS), {"norm": LogNorm(least, high)}
    if high <= low:
        high = low + max(abs(low), 1.0) * 1e-9
    return np.linspace(low, high, _N_LEVELS), {}


def _label_decades(bar: Any, levels: np.ndarray) -> None:
    """Put ticks at powers of ten, or at a few levels if there are hardly any powers."""
    decades = np.arange(np.ceil(np.log10(levels[0]) - 1e-9), np.floor(np.log10(levels[-1]) + 1e-9) + 1)
    if len(decades) >= 3:
        bar.set_ticks(10.0**decades, labels=[LogFormatterSciNotation()(10.0**d) for d in decades])
    else:
        shown = levels[:: (len(levels) - 1) // 4]
        bar.set_ticks(shown, labels=[f"{level:.3g}" for level in shown])
    bar.minorticks_off()


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _name_of(data: xr.Dataset, dim: str) -> str:
    return str(data[dim].attrs.get("long_name", dim))


def _check(data: object, name: str, dims: tuple[str, ...], what: str) -> None:
    if not isinstance(data, xr.Dataset):
        raise InvalidTypeError(f"Expected a {what} as an xarray.Dataset, got {type(data).__name__}.")
    if name not in data or data[name].dims != dims:
        raise InvalidInputError(
            f"Expected a {what}, with {name} over ({', '.join(dims)}), got a dataset without it."
        )


def _named(given: xr.Dataset | Mapping[str, xr.Dataset] | None) -> Mapping[str, xr.Dataset]:
    if given is None:
        return {}
    if not isinstance(given, xr.Dataset | Mapping):
        raise InvalidTypeError(
            f"Expected a dataset, or a mapping of names to datasets, got {type(given).__name__}."
        )
    return {"trajectory": given} if isinstance(given, xr.Dataset) else given


def _scale(drawn: np.ndarray, ratio: float) -> str:
    """Return "log" if all that is drawn is positive and spans a ratio, else "linear"."""
    drawn = drawn[np.isfinite(drawn)]
    return "log" if len(drawn) and drawn.min() > 0 and drawn.max() >= ratio * drawn.min() else "linear"
