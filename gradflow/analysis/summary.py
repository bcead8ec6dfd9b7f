"""A run in a few numbers."""

from __future__ import annotations

import numpy as np
import xarray as xr

from gradflow.analysis.thresholds import SHARPNESS, bounded_by_threshold, crossing_time, sharpness_used
from gradflow.errors import InvalidInputError


def summary(run: xr.Dataset) -> dict[str, str | float | int]:
    """Summarise a run in a few numbers.

    Parameters
    ----------
    run : xarray.Dataset

    Returns
    -------
    dict
        ``method``, ``status``, ``n_steps``, ``t``, ``train_loss``, ``n_gradients``, ``n_hvps``, ``wall_time``;
        ``train_accuracy``, ``test_loss``, ``test_accuracy`` if they were recorded; the last ``midpoint_train_loss`` of
        an optimiser, and ``predicted_train_loss``, ``sigma_trace`` and ``n_active`` of a flow, if they were;
        ``sharpness``, λ₁ of the Hessian (the last recorded, else used), and ``effective_sharpness``, λ₁ of the
        preconditioned Hessian (the last recorded), where known; ``stability_threshold``, and in
        ``stability_threshold_of`` which of the two it bounds; ``crossing_time``, when that one was first above it.

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
    for name in ("midpoint_train_loss", "predicted_train_loss", "sigma_trace", "n_active"):
        if name in run and len(known := run[name].dropna("time")):
            result[name] = float(known[-1])
    series = {name: run[variable][:, 0] for variable, name in SHARPNESS.items() if variable in run}
    for name, sharpness in ({"sharpness": sharpness_used(run)} | series).items():
        known = sharpness.values[np.isfinite(sharpness.values)]
        if len(known):
            result[name] = float(known[-1])
    if "stability_threshold" in run.attrs:
        result["stability_threshold"] = float(run.attrs["stability_threshold"])
        if (bounded := bounded_by_threshold(run)) is not None:
            result["stability_threshold_of"] = SHARPNESS[bounded]
        if np.isfinite(crossing := crossing_time(run)):
            result["crossing_time"] = crossing
    return result
