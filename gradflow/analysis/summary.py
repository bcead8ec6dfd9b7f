"""A run in a few numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gradflow.analysis.compare import crossing_time
from gradflow.errors import InvalidInputError


def summary(run: xr.Dataset) -> dict[str, str | float | int]:
    """Sum up a run.

    Parameters
    ----------
    run : xarray.Dataset

    Returns
    -------
    dict
        ``method``, ``status``, ``n_steps``, ``t``, ``train_loss``, ``n_gradients``, ``n_hvps``, ``wall_time``;
        ``train_accuracy``, ``test_loss``, ``test_accuracy`` where they were recorded; ``sharpness`` (the last
        λ₁ recorded, else used) and ``stability_threshold``, ``crossing_time`` where there are such.

    Examples
    --------
    >>> import torch, gradflow
    >>> ds = gradflow.integrate(lambda x: (x**2).sum(), torch.ones(1), method="gd", lr=0.1, max_steps=3)
    >>> summary(ds)["n_steps"]
    3
    """
    if "time" not in run.dims or "train_loss" not in run:
        raise InvalidInputError("Expected a run of gradflow, with train_loss over time.")
    end = run.isel(time=-1)
    result: dict[str, str | float | int] = {
        "method": str(run.attrs.get("method", "")),
        "status": str(run.attrs.get("status", "")),
        "n_steps": int(end.step),
        "t": float(end.time),
        "train_loss": float(end.train_loss),
        "n_gradients": int(end.n_gradients),
        "n_hvps": int(end.n_hvps),
        "wall_time": float(end.wall_time),
    }
    for name in ("train_accuracy", "test_loss", "test_accuracy"):
        if np.isfinite(end[name]):
            result[name] = float(end[name])
    sharpness = run.eigenvalue[:, 0] if "eigenvalue" in run else run.sharpness_used
    known = sharpness.values[np.isfinite(sharpness.values)]
    if len(known):
        result["sharpness"] = float(known[-1])
    if "stability_threshold" in run.attrs:
        result["stability_threshold"] = float(run.attrs["stability_threshold"])
        if np.isfinite(crossing := crossing_time(run)):
            result["crossing_time"] = crossing
    return result
