"""The loss on lines and planes through θ."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.landscape.arguments import (
    Trajectory,
    as_grid,
    as_theta,
    as_trajectory,
    progress_bar,
)
from gradflow.landscape.batches import as_batches
from gradflow.landscape.directions import Direction, check_direction
from gradflow.loss import Loss, LossFunction, as_loss


def line(
    loss: Loss,
    theta: Tensor,
    direction: Tensor | Direction,
    at: Sequence[float] | np.ndarray | None = None,
    *,
    batches: Sequence[LossFunction] | None = None,
    batch_size: int | None = None,
    n_batches: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Evaluate the loss at θ + x·d.

    Parameters
    ----------
    loss : LossFunction or callable
    theta : Tensor, shape (P,)
        The centre.
    direction : Tensor of shape (P,), or Direction
        d; taken as long as it is.
    at : sequence of float, optional
        Values of x, increasing. Default: 51 from −1 to 1.
    batches : sequence of LossFunction, optional
        Mini-batches to evaluate as well.
    batch_size, n_batches : int, optional
        Make them of `loss`, as :func:`minibatches` does.
    seed : int, default 0
        Seed of the choice of mini-batches.
    progress : bool, optional
        Show a progress line on standard error. Default: when it is a terminal.

    Returns
    -------
    xarray.Dataset
        ``loss`` (x), ``accuracy`` (x) if the targets are classes; ``batch_loss`` and ``batch_accuracy``
        (batch, x) if there are mini-batches. Values that aren't finite stay as they are. The attributes name
        the direction and give its norm, that of θ, and what was measured of the direction.

    Examples
    --------
    >>> slope = line(lambda x: (x**2).sum(), torch.zeros(2), torch.tensor([1.0, 0.0]), at=[-1.0, 0.0, 2.0])
    >>> slope.loss.values
    array([1., 0., 4.])
    """
    grid = np.linspace(-1, 1, 51) if at is None else as_grid("at", at)
    return _slice(loss, theta, [direction], [grid], batches, batch_size, n_batches, seed, progress)


def plane(
    loss: Loss,
    theta: Tensor,
    directions: Sequence[Tensor | Direction],
    x: Sequence[float] | np.ndarray | None = None,
    y: Sequence[float] | np.ndarray | None = None,
    *,
    batches: Sequence[LossFunction] | None = None,
    batch_size: int | None = None,
    n_batches: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> xr.Dataset:
    """Evaluate the loss at θ + x·d₁ + y·d₂.

    Parameters
    ----------
    loss : LossFunction or callable
    theta : Tensor, shape (P,)
        The centre.
    directions : two of Tensor of shape (P,), or Direction
        d₁ and d₂, linearly independent; taken as they are, neither normalised nor made orthogonal.
    x, y : sequence of float, optional
        Coordinates, increasing. Default: 31 from −1 to 1.
    batches, batch_size, n_batches, seed, progress
        As in :func:`line`.

    Returns
    -------
    xarray.Dataset
        ``loss`` (y, x) and what else :func:`line` gives; ``xy_cosine`` in the attributes is the cosine of the angle
        between the directions.

    Examples
    --------
    >>> e1, e2 = torch.eye(2)
    >>> plane(lambda w: w[0] - w[1], torch.zeros(2), [e1, e2], x=[0, 1, 2], y=[0, 10]).loss.values
    array([[  0.,   1.,   2.],
           [-10.,  -9.,  -8.]])
    """
    if isinstance(directions, Direction) or len(directions) != 2:
        n = 1 if isinstance(directions, Direction) else len(directions)
        raise InvalidInputError(f"Expected two directions, got {n}. line() takes one.")
    grids = [
        np.linspace(-1, 1, 31) if values is None else as_grid(name, values)
        for name, values in (("x", x), ("y", y))
    ]
    return _slice(loss, theta, directions, grids, batches, batch_size, n_batches, seed, progress)


def project(path: Trajectory, theta: Tensor, directions: Sequence[Tensor | Direction]) -> xr.Dataset:
    """Project a trajectory onto the line or plane through θ, by least squares.

    Parameters
    ----------
    path : run, Tensor of shape (n, P), or sequence of Tensor of shape (P,)
        A run must have been recorded with θ; where it wasn't due it is left out.
    theta : Tensor, shape (P,)
        The centre.
    directions : one or two of Tensor of shape (P,), or Direction

    Returns
    -------
    xarray.Dataset
        ``x`` and, for two directions, ``y`` over ``time``, the coordinates on the slice; ``distance``, the 2-norm
        of what is left, and ``distance_from_centre``. ``time`` counts from 0 if the path isn't a run.

    Examples
    --------
    >>> path = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    >>> flat = project(path, torch.zeros(3), list(torch.eye(3)[:2]))
    >>> flat.x.values, flat.y.values, flat.distance.values
    (array([0., 1.]), array([0., 2.]), array([0., 3.]))
    """
    times, thetas = as_trajectory(path)
    theta = theta.detach()
    if theta.dim() != 1 or thetas.shape[1:] != theta.shape:
        raise InvalidInputError(
            f"Expected a trajectory of θ's shape {tuple(theta.shape)}, got {tuple(thetas.shape[1:])}."
        )
    if not 1 <= len(directions) <= 2:
        raise InvalidInputError(f"Expected one or two directions, got {len(directions)}.")
    centre = theta.double()
    vectors = [check_direction(d, centre).vector for d in directions]
    _check_independent(vectors)
    Q, R = torch.linalg.qr(torch.stack(vectors, 1))
    rows = []
    for state in thetas:
        δ = state.to(centre) - centre
        inside = Q.T @ δ
        coordinates = torch.linalg.solve_triangular(R, inside[:, None], upper=True)[:, 0]
        left = torch.linalg.vector_norm(δ - Q @ inside)
        rows.append([*coordinates.tolist(), float(left), float(torch.linalg.vector_norm(δ))])
    columns = np.array(rows).T
    names = {"x": "coordinate along the first direction", "y": "coordinate along the second direction"}
    shown = dict(list(names.items())[: len(vectors)]) | {
        "distance": "distance from the slice",
        "distance_from_centre": "distance from the centre of the slice",
    }
    data = {
        name: ("time", values, {"units": "1", "long_name": said})
        for (name, said), values in zip(shown.items(), columns, strict=True)
    }
    return xr.Dataset(data, {"time": ("time", times, {"units": "1", "long_name": "flow time"})})


def _slice(
    loss: Loss,
    theta: Tensor,
    directions: Sequence[Tensor | Direction],
    grids: Sequence[np.ndarray],
    batches: Sequence[LossFunction] | None,
    batch_size: int | None,
    n_batches: int | None,
    seed: int,
    progress: bool | None,
) -> xr.Dataset:
    loss = as_loss(loss)
    theta = as_theta(loss, theta)
    checked = [check_direction(d, theta) for d in directions]
    vectors = [d.vector for d in checked]
    _check_independent(vectors)
    parts = as_batches(loss, batches, batch_size, n_batches, seed)
    values = _sample([loss, *parts], theta, vectors, grids, progress)
    names = ["x", "y"][: len(grids)]
    dims = tuple(reversed(names))
    data = {}
    for kind, array, said in zip(
        ("loss", "accuracy"), values, ("loss", "fraction classified right"), strict=True
    ):
        if kind == "accuracy" and not loss.classifies:
            continue
        data[kind] = (dims, array[0], {"units": "1", "long_name": said})
        if parts:
            attrs = {"units": "1", "long_name": f"{said} of a mini-batch"}
            data[f"batch_{kind}"] = (("batch", *dims), array[1:], attrs)
    coords = {
        name: (name, grid, {"units": "1", "long_name": d.name})
        for name, grid, d in zip(names, grids, checked, strict=True)
    }
    said_of = {"loss_function": json.dumps(loss.describe(), default=str), "n_parameters": theta.numel()}
    return xr.Dataset(data, coords, said_of | _described(names, checked, theta))


def _sample(
    losses: Sequence[LossFunction],
    theta: Tensor,
    vectors: Sequence[Tensor],
    grids: Sequence[np.ndarray],
    progress: bool | None,
) -> np.ndarray:
    """Return loss and accuracy, shape (2, losses, …); the last grid's dimension comes first, as y before x."""
    shape = tuple(len(grid) for grid in reversed(grids))
    values = np.empty((2, len(losses), *shape))
    with progress_bar(math.prod(shape), "slice", progress) as shown:
        for index in np.ndindex(shape):
            point = theta
            for vector, grid, i in zip(vectors, grids, reversed(index), strict=True):
                point = torch.add(point, vector, alpha=float(grid[i]))
            for j, loss in enumerate(losses):
                values[(slice(None), j, *index)] = loss.evaluate(point)
            shown.update()
    return values


def _described(names: Sequence[str], directions: Sequence[Direction], theta: Tensor) -> dict[str, Any]:
    attrs: dict[str, Any] = {"centre_norm": float(torch.linalg.vector_norm(theta, dtype=torch.float64))}
    for name, direction in zip(names, directions, strict=True):
        attrs |= {f"{name}_direction": direction.name, f"{name}_norm": direction.norm}
        attrs |= {f"{name}_{what}": value for what, value in direction.measured.items()}
    if len(directions) == 2:
        a, b = (d.vector.double() for d in directions)
        attrs["xy_cosine"] = float(a @ b) / (directions[0].norm * directions[1].norm)
    return attrs


def _check_independent(vectors: Sequence[Tensor]) -> None:
    if len(vectors) < 2:
        return
    unit = torch.stack([v.double() / torch.linalg.vector_norm(v.double()) for v in vectors], 1)
    if float(torch.linalg.svdvals(unit)[-1]) < 1e-6:
        raise InvalidInputError("Expected two linearly independent directions, got parallel ones.")
