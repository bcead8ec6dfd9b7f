"""Writing the segments of a run one after another, and merging them so that there are few files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gradflow.record.files import merge_netcdf, write_netcdf
from gradflow.record.schema import Layout
from gradflow.record.segments import combine_segments, list_segments, open_segments, segment_path

#: Segments that are put together in one file, and such files again.
_TOGETHER = 32


class SegmentWriter:
    """Write records to a directory, as closed netCDF files of some records each.

    Parameters
    ----------
    directory : Path
    layout : Layout
    attrs : mapping
        Global attributes known at the start.
    static : mapping
        Variables without time that are known at the start.
    n_written : int
        Segments that are there already; those after them are overwritten.

    Attributes
    ----------
    n_written : int
        Segments that are on the disk.
    """

    def __init__(
        self,
        directory: Path,
        layout: Layout,
        attrs: Mapping[str, Any],
        static: Mapping[str, np.ndarray],
        n_written: int = 0,
    ) -> None:
        self.n_written = n_written
        self._directory = directory
        self._layout = layout
        self._attrs = dict(attrs)
        self._static = dict(static)
        self._pending: list[dict[str, Any]] = []
        self._last: list[dict[str, Any]] = []  # the records of the last segment

    @property
    def has_pending(self) -> bool:
        """Whether there are records that no segment holds yet."""
        return bool(self._pending)

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record for the next segment."""
        self._pending.append(record)

    def flush(self) -> None:
        """Write the records that no segment holds yet."""
        if not self._pending:
            return
        self._write(self.n_written, self._pending)
        self._last, self._pending = self._pending, []
        self.n_written += 1

    def amend(self, values: Mapping[str, Any]) -> None:
        """Add values to the last record, on disk if it is there already."""
        if self._pending:
            self._pending[-1] |= values
        elif self._last:
            self._last[-1] |= values
            self._write(self.n_written - 1, self._last)
        else:  # the run was resumed, and has recorded nothing since
            self._amend_on_disk(values)

    def put_together(self, below: int) -> None:
        """Merge 32 files of equally many segments in a row into one, as often as there are so many.

        Parameters
        ----------
        below : int
            Number of the first segment that stays as it is.
        """
        while True:
            files = [file for file in list_segments(self._directory) if file.last < below]
            rows = (files[i : i + _TOGETHER] for i in range(len(files) - _TOGETHER + 1))
            row = next((row for row in rows if len({file.span for file in row}) == 1), None)
            if row is None:
                return
            merge_netcdf(
                [file.path for file in row],
                self._dataset(row[0].first, []),
                segment_path(self._directory, row[0].first, row[-1].last),
            )
            for file in reversed(row):
                file.path.unlink()

    def merge(self, path: Path, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> None:
        """Write all segments to one file, with the variables and attributes that are known at the end."""
        segments = [file.path for file in list_segments(self._directory)]
        frame = self._layout.dataset([], self._static | dict(static), self._attrs | dict(attrs))
        merge_netcdf(segments, frame, path)

    def take_all(self) -> xr.Dataset | None:
        """Return all records, on disk and not, and forget those that are not; None if there are none."""
        parts = [] if self.n_written == 0 else [open_segments(self._directory)]
        if self._pending:
            parts.append(self._layout.dataset(self._pending, {} if parts else self._static, self._attrs))
            self._pending = []
        return combine_segments(parts) if parts else None

    def _write(self, number: int, records: list[dict[str, Any]]) -> None:
        write_netcdf(self._dataset(number, records), segment_path(self._directory, number))

    def _dataset(self, number: int, records: list[dict[str, Any]]) -> xr.Dataset:
        """Return the content of a segment; only the first one has the variables without time."""
        static = self._static if number == 0 else {}
        return self._layout.dataset(records, static, self._attrs | {"status": "running"})

    def _amend_on_disk(self, values: Mapping[str, Any]) -> None:
        last = list_segments(self._directory)[-1].path
        with xr.open_dataset(last, engine="netcdf4") as segment:
            dataset = segment.load()
        for name, value in values.items():
            if name not in dataset.coords:
                dataset[name][-1] = value
        write_netcdf(dataset, last)
