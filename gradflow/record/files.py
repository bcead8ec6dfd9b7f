"""Files that exist whole or not at all, and netCDF files of records."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import netCDF4
import xarray as xr

from gradflow.record.schema import encoding

#: Ending of a file that is being written.
TEMPORARY = ".tmp"


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name, bring it to the disk, and rename it, so it exists whole or not at all.

    Parameters
    ----------
    path : Path
    write : callable
        Writes the file that it gets the path of.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    write(temporary)
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_netcdf(dataset: xr.Dataset, path: Path) -> None:
    """Write records to a netCDF file, atomically."""

    def write(target: Path) -> None:
        dataset.to_netcdf(
            target,
            engine="netcdf4",
            encoding=encoding(dataset, dataset.sizes["time"]),
            unlimited_dims=["time"],
        )

    write_atomically(path, write)


def merge_netcdf(sources: Sequence[Path], frame: xr.Dataset, path: Path) -> None:
    """Write the records of several netCDF files to one, atomically and without reading all of them at once.

    Parameters
    ----------
    sources : sequence of Path
        Files with the same variables, in the order of time.
    frame : xarray.Dataset
        No records, but the attributes and the variables without time of the new file.
    path : Path
    """
    write_atomically(path, lambda target: _merge(sources, frame, target))


def _merge(sources: Sequence[Path], frame: xr.Dataset, target: Path) -> None:
    n_records = 0
    for path in sources:
        with netCDF4.Dataset(path) as source:
            n_records += len(source.dimensions["time"])
    frame.to_netcdf(target, engine="netcdf4", encoding=encoding(frame, n_records), unlimited_dims=["time"])
    with netCDF4.Dataset(target, "a") as out:
        start = 0
        for path in sources:
            with netCDF4.Dataset(path) as source:
                n = len(source.dimensions["time"])
                for name, variable in source.variables.items():
                    if variable.dimensions[:1] == ("time",):
                        out[name][start : start + n] = variable[:]
                start += n


def is_whole(path: Path) -> bool:
    """Return whether a netCDF file can be read to its end."""
    try:
        with xr.open_dataset(path, engine="netcdf4") as dataset:
            dataset.load()
    except (OSError, RuntimeError, ValueError, KeyError):
        return False
    return True
