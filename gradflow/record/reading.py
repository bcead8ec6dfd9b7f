"""Open a run, finished or not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import xarray as xr

from gradflow.errors import InvalidInputError, RunNotFoundError
from gradflow.record.lock import is_held
from gradflow.record.output import PARTIAL, partial_directory, read_ending
from gradflow.record.segments import open_segments

#: Attempts to read a run that may end while it is read.
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
        Opened lazily when finished; in memory when not. Its ``status`` is then ``running``, ``killed`` if the process
        is no more, ``unfinished`` if the file system has no locks and so can't tell, ``error`` or ``interrupted``.
        Segments that were cut off are left out, with a warning.

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
            return _open_partial(partial_directory(path))
        except FileNotFoundError:  # the run ended while it was being read: now the file should be there
            time.sleep(0.01)
    raise RunNotFoundError(
        f"No run at {path}: there is neither that file nor {partial_directory(path).name}/ with records."
    )


def _open_partial(partial: Path) -> xr.Dataset:
    """Read what an unfinished run has recorded; its status tells what became of it."""
    records = open_segments(partial)
    ended = read_ending(partial)
    if ended is None:
        held = is_held(partial)
        if held:
            return records
        ended = {
            "status": "killed",
            "message": "The process ended before the run did. resume=… goes on from it.",
        }
        if held is None:
            ended = {
                "status": "unfinished",
                "message": "The run hasn't ended. Whether its process still runs can't be told: the file system has "
                "no locks. If it doesn't, resume=… goes on from it.",
            }
    return records.assign_attrs(ended)


def _open(path: Path) -> xr.Dataset:
    try:
        return xr.open_dataset(path, engine="netcdf4")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InvalidInputError(f"{path} can't be read as netCDF: {error}") from error
