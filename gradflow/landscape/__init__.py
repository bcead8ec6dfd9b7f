"""The loss landscape: slices, directions, critical points and learning rates; torch in, xarray out."""

from gradflow.landscape.batches import minibatches
from gradflow.landscape.critical import CriticalPoint, classify
from gradflow.landscape.directions import (
    Direction,
    difference,
    eigenvectors,
    principal_directions,
    random_directions,
)
from gradflow.landscape.functions import (
    Quadratic,
    pathological_loss,
    plateau,
    quadratic,
    rosenbrock,
    saddle,
)
from gradflow.landscape.lr_find import lr_find
from gradflow.landscape.slices import line, plane, project
from gradflow.landscape.snapshots import cyclic, schedules

__all__ = [
    # slices
    "line",
    "plane",
    "project",
    "minibatches",
    # directions
    "Direction",
    "difference",
    "eigenvectors",
    "principal_directions",
    "random_directions",
    # points
    "CriticalPoint",
    "classify",
    # learning rates
    "cyclic",
    "lr_find",
    "schedules",
    # functions
    "Quadratic",
    "pathological_loss",
    "plateau",
    "quadratic",
    "rosenbrock",
    "saddle",
]
