"""Reading a run, finished or not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import xarray as xr

from gradflow.errors import InvalidInputError, RunNotFoundError
from gradflow.record.run_record import PARTIAL

#: How often a run that ends while it is read is looked for.
_TRIES = 3


def open_run(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open a recorded run.

    Parameters
    ----------
    path : path
        ``NAME.nc`` of a finished run. While the run goes on, or after it died, its records so far are read
        from ``NAME.nc.partial/``, by either name.

    Returns
    -------
    xarray.Dataset
        Opened lazily when finished; in memory, with ``status`` "running", when not.

    Raises
    ------
    RunNotFoundError
        If there is neither.
    InvalidInputError
        If the file isn't netCDF.
    """
    path = Path(path)
    if path.name.endswith(PARTIAL):
        path = path.with_name(path.name.removesuffix(PARTIAL))
    if path.is_dir() or not path.name:
        raise InvalidInputError(f"Expected a file, got the directory {path}.")
    for _ in range(_TRIES):
        if path.is_file():
            return _open(path)
        try:
            return _open_segments(path.with_name(path.name + PARTIAL))
        except FileNotFoundError:  # the run ended while it was being read: now the file should be there
            time.sleep(0.01)
    raise RunNotFoundError(
        f"No run at {path}: there is neither that file nor {path.name + PARTIAL}/ with records."
    )


def _open_segments(partial: Path) -> xr.Dataset:
    names = sorted(partial.glob("segment-*.nc"))
    if not names:
        raise FileNotFoundError(partial)
    segments = []
    for name in names:
        with _open(name) as segment:
            segments.append(segment.load())
    return xr.concat(
        segments,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )


def _open(path: Path) -> xr.Dataset:
    try:
        return xr.open_dataset(path, engine="netcdf4")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read as netCDF: {error}") from error
