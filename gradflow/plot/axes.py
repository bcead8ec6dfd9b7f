"""The axes of all figures."""

from __future__ import annotations

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the axes, or those of a new figure."""
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def with_legend(ax: Axes) -> Axes:
    """Add the legend, and take off the frame at the top and on the right."""
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
