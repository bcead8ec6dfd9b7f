"""Reading a run, finished or not."""

from __future__ import annotations

import os
from pathlib import Path

import xarray as xr

from gradflow.errors import InvalidInputError, RunNotFoundError
from gradflow.record.run_record import PARTIAL


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
    if path.is_file():
        return _open(path)
    partial = path if path.name.endswith(PARTIAL) else path.with_name(path.name + PARTIAL)
    if not partial.is_dir():
        raise RunNotFoundError(f"No run at {path}: there is neither that file nor {partial}.")
    segments = [_open(segment).load() for segment in sorted(partial.glob("segment-*.nc"))]
    if not segments:
        raise RunNotFoundError(f"The run at {path} has just begun: {partial} holds no records yet.")
    return xr.concat(segments, "time", data_vars="minimal", coords="minimal", compat="override", join="override",
                     combine_attrs="override")  # fmt: skip


def _open(path: Path) -> xr.Dataset:
    try:
        return xr.open_dataset(path, engine="netcdf4")
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read as netCDF: {error}") from error
