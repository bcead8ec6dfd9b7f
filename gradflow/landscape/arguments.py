"""Checks of the arguments that the tools of this package share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.driver.progress import Bar
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss import LossFunction

#: Parameters along a path: a recorded run, a tensor of shape (n, P), or n flat tensors.
Trajectory = xr.Dataset | Tensor | Sequence[Tensor]


def as_theta(loss: LossFunction, theta: Tensor | None) -> Tensor:
    """Check θ; the net's present weights for None."""
    theta = loss.parameters() if theta is None else theta
    loss.check_theta(theta)
    if not bool(torch.isfinite(theta).all()):
        raise InvalidInputError("Expected θ with finite entries, got NaN or inf. Take an earlier one.")
    return theta.detach()


def as_grid(name: str, values: Sequence[float] | np.ndarray | Tensor) -> np.ndarray:
    """Check coordinates: at least two finite numbers, increasing."""
    try:
        grid = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidTypeError(
            f"Expected {name} as a sequence of numbers, got {type(values).__name__}."
        ) from error
    if grid.ndim != 1 or len(grid) < 2:
        raise InvalidInputError(
            f"Expected {name} as at least two numbers in a row, got shape {grid.shape}. "
            "np.linspace(-1, 1, 51) makes some."
        )
    if not np.isfinite(grid).all() or not (np.diff(grid) > 0).all():
        raise InvalidInputError(f"Expected {name} to be finite and increase strictly. Sort it.")
    return grid


def as_trajectory(path: Trajectory) -> tuple[np.ndarray, Tensor]:
    """Return times, shape (n,), and θ at them, shape (n, P); rows of θ that aren't finite are left out."""
    if isinstance(path, xr.Dataset):
        if "theta" not in path or path["theta"].dims != ("time", "param"):
            raise InvalidInputError(
                "Expected a run with θ over time, got one without. Record it with params_every=…"
            )
        times, thetas = path.time.values, torch.from_numpy(path.theta.values)
    else:
        if not isinstance(path, Tensor):
            path = torch.stack(list(path)) if len(path) else torch.empty(0)
        if path.dim() != 2:
            raise InvalidInputError(f"Expected parameters of shape (n, P), got {tuple(path.shape)}.")
        times, thetas = np.arange(len(path), dtype=np.float64), path.detach()
    finite = torch.isfinite(thetas).all(1)
    if not bool(finite.any()):
        raise InvalidInputError("Expected at least one finite θ along the trajectory, got none.")
    return times[finite.cpu().numpy()], thetas[finite]


def final_theta(given: xr.Dataset | Tensor) -> Tensor:
    """Return θ, or the last of a run."""
    if isinstance(given, Tensor):
        return given.detach()
    if not isinstance(given, xr.Dataset):
        raise InvalidTypeError(f"Expected θ as a torch.Tensor, or a run, got {type(given).__name__}.")
    if "params" not in given:
        raise InvalidInputError(
            "Expected a run with its final θ (params), got one without. Let it end first."
        )
    return torch.from_numpy(given.params.values.copy())


def progress_bar(total: int, what: str, shown: bool | None) -> Any:
    """Count evaluations on standard error; None: when it is a terminal."""
    return Bar(total=total, desc=what, disable=not (sys.stderr.isatty() if shown is None else shown))
