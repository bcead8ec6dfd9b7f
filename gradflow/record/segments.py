"""The segments of a run that has not ended: their files, and their records as one dataset."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import xarray as xr

from gradflow.errors import InvalidInputError, RecordWarning
from gradflow.record.files import is_whole

_NAME = re.compile(r"segment-(\d{6,})(?:-(\d{6,}))?\.nc")
#: Files that are read before a run goes on from them; those before were on the disk long ago.
_READ_AGAIN = 8


@dataclass(frozen=True)
class Segment:
    """A file with the records of one segment, or of several that were put together.

    Attributes
    ----------
    path : Path
    first, last : int
        Numbers of the segments that it holds.
    """

    path: Path
    first: int
    last: int

    @property
    def span(self) -> int:
        """Number of segments in the file."""
        return self.last - self.first + 1


def segment_path(partial: Path, first: int, last: int | None = None) -> Path:
    """Return the file of a segment, or of those from `first` to `last` together."""
    end = "" if last is None else f"-{last:06d}"
    return partial / f"segment-{first:06d}{end}.nc"


def list_segments(partial: Path) -> list[Segment]:
    """List the files that hold all segments once, in order.

    Where several were put together, and the process died before they were removed, the file of all of them counts.
    """
    found = []
    for path in partial.glob("segment-*.nc"):
        if match := _NAME.fullmatch(path.name):
            first = int(match[1])
            found.append(Segment(path, first, int(match[2] or first)))
    found.sort(key=lambda segment: (segment.first, -segment.last))
    chosen: list[Segment] = []
    for segment in found:
        if not chosen or segment.first > chosen[-1].last:
            chosen.append(segment)
    return chosen


def holds_segments(partial: Path, n: int) -> bool:
    """Return whether the first `n` segments are there; the last files are read to see if they are whole."""
    files = [file for file in list_segments(partial) if file.first < n]
    follow = all(a.last + 1 == b.first for a, b in pairwise(files))
    there = bool(files) and files[0].first == 0 and files[-1].last == n - 1 and follow
    return there and all(is_whole(file.path) for file in files[-_READ_AGAIN:])


def remove_segments(partial: Path, first: int) -> None:
    """Remove the segments from number `first` on, the last one first: what is left is always a beginning of the run."""
    for file in reversed(list_segments(partial)):
        if file.first >= first:
            file.path.unlink()


def open_segments(partial: Path) -> xr.Dataset:
    """Read all segments in a directory, up to the first that isn't whole.

    Raises
    ------
    FileNotFoundError
        If there are none, or one goes away: the run has ended, or has put segments together, in the meantime.
    InvalidInputError
        If not even the first can be read.
    """
    files = list_segments(partial)
    if not files:
        raise FileNotFoundError(partial)
    segments: list[xr.Dataset] = []
    for file in files:
        try:
            with xr.open_dataset(file.path, engine="netcdf4") as segment:
                segments.append(segment.load())
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            if not file.path.exists():
                raise FileNotFoundError(file.path) from error
            if not segments:
                raise InvalidInputError(f"{file.path} can't be read as netCDF: {error}") from error
            warnings.warn(
                f"{file.path} isn't whole: records are read up to t = {float(segments[-1].time[-1]):.6g}, before it.",
                RecordWarning,
                stacklevel=3,
            )
            break
    return combine_segments(segments)


def combine_segments(segments: Sequence[xr.Dataset]) -> xr.Dataset:
    """Put segments one after another; attributes and variables without time are those of the first."""
    return xr.concat(
        segments,
        "time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
