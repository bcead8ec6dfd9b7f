"""The segments of a run that has not ended, as one dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from gradflow.errors import InvalidInputError, RecordWarning


def open_segments(partial: Path) -> xr.Dataset:
    """Read all segments in a directory, up to the first that isn't whole.

    Raises
    ------
    FileNotFoundError
        If there are none, or one goes away: the run has ended in the meantime.
    InvalidInputError
        If not even the first can be read.
    """
    names = sorted(partial.glob("segment-*.nc"))
    if not names:
        raise FileNotFoundError(partial)
    segments: list[xr.Dataset] = []
    for name in names:
        try:
            with xr.open_dataset(name, engine="netcdf4") as segment:
                segments.append(segment.load())
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if not name.exists():
                raise FileNotFoundError(name) from error
            if not segments:
                raise InvalidInputError(f"{name} can't be read as netCDF: {error}") from error
            warnings.warn(
                f"{name} isn't whole: records are read up to t = {float(segments[-1].time[-1]):.6g}, before it.",
                RecordWarning,
                stacklevel=3,
            )
            break
    return combine_segments(segments)


def combine_segments(segments: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put segments one after another; what has no time, and the attributes, are those of the first."""
    return xr.concat(
        segments,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
