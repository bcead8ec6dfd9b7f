"""Figures of runs and of loss landscapes: xarray in, axes out. Needs matplotlib."""

from gradflow.plot.edge import edge
from gradflow.plot.landscape import contour, curve, lr_curve, surface
from gradflow.plot.runs import (
    accuracy,
    cost,
    distance,
    figure,
    overview,
    sharpness,
    spectrum,
    step_size,
    train_loss,
)

__all__ = [
    "accuracy", "cost", "distance", "edge", "figure", "overview", "sharpness", "spectrum", "step_size", "train_loss",
    "contour", "curve", "lr_curve", "surface",
]  # fmt: skip
