"""The sharpness of a run, and where it crosses the threshold of stability."""

from __future__ import annotations

import xarray as xr

#: Name of the largest eigenvalue, by the variable that holds it.
SHARPNESS = {"eigenvalue": "sharpness", "effective_eigenvalue": "effective_sharpness"}


def bounded_by_threshold(run: xr.Dataset) -> str | None:
    """Return the name of the variable whose first column the run's stability threshold bounds.

    Parameters
    ----------
    run : xarray.Dataset

    Returns
    -------
    str or None
        ``eigenvalue``, or ``effective_eigenvalue`` for a method that preconditions; recorded or not. None if the run
        has no threshold, or an older file leaves it open.
    """
    if "stability_threshold" not in run.attrs:
        return None
    recorded = (name for name in ("effective_eigenvalue", "eigenvalue") if name in run)
    # Files without the attribute have both spectra of a method that preconditions, or none.
    bounded: str | None = run.attrs.get("stability_threshold_of", next(recorded, None))
    return bounded


def crossing_time(run: xr.Dataset) -> float:
    """Return the first recorded time at which the sharpness that the run's stability threshold bounds is above it.

    That is the effective sharpness, λ₁ of the preconditioned Hessian, for methods that precondition.

    Parameters
    ----------
    run : xarray.Dataset

    Returns
    -------
    float
        NaN if it never is, or the run has no threshold or no such eigenvalues.
    """
    bounded = bounded_by_threshold(run)
    if bounded is None or bounded not in run:
        return float("nan")
    above = run.time.values[run[bounded].values[:, 0] > run.attrs["stability_threshold"]]
    return float(above[0]) if len(above) else float("nan")


def governing_sharpness(run: xr.Dataset) -> tuple[str, xr.DataArray]:
    """Return the sharpness that decides on stability: of the preconditioned Hessian, for methods that precondition.

    Parameters
    ----------
    run : xarray.Dataset

    Returns
    -------
    str
        The variable that it is taken from: ``effective_eigenvalue`` where recorded, else ``eigenvalue``; else
        ``sharpness_used``, what the steps were sized with, as in :func:`sharpness_used`.
    xarray.DataArray
        λ₁ over time.
    """
    for name in ("effective_eigenvalue", "eigenvalue"):
        if name in run:
            return name, run[name][:, 0]
    return "sharpness_used", sharpness_used(run)


def sharpness_used(run: xr.Dataset) -> xr.DataArray:
    """Return λ₁ that steps were sized with; NaN along another flow, whose steps are sized with its own rates."""
    of_hessian = run.attrs.get("flow", "gradient") == "gradient"  # older files have no flow
    return run.sharpness_used if of_hessian else run.sharpness_used.where(False)
