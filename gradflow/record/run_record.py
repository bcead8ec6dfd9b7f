"""Where records are kept: in memory, or in small closed netCDF segments that are merged at the end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

import netCDF4
import numpy as np
import xarray as xr

from gradflow.errors import InvalidInputError, OutputExistsError
from gradflow.record.checkpoints import write_checkpoint
from gradflow.record.schema import Layout, encoding

PARTIAL = ".partial"


class MemoryRecord:
    """Keeps the records of a run in memory.

    Parameters
    ----------
    layout : Layout
    attrs : mapping
        Global attributes known at the start.
    """

    def __init__(self, layout: Layout, attrs: Mapping[str, Any]) -> None:
        self._layout = layout
        self._attrs = dict(attrs)
        self._records: list[dict[str, Any]] = []

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        self._records.append(record)

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the last record."""
        self._records[-1] |= values

    def sync(self, state: Callable[[], dict[str, Any]]) -> None:
        """Nothing to bring to safety: memory is lost with the process."""

    def flush(self) -> None:
        """Nothing to bring to safety."""

    def abandon(self) -> None:
        """Nothing to give up."""

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Give all records as a dataset."""
        return self._layout.dataset(self._records, static, self._attrs | dict(attrs))


class FileRecord:
    """Writes the records of a run to ``NAME.nc.partial/`` as it goes on, and to ``NAME.nc`` at its end.

    Records reach the disk `sync_every` seconds after they were made, at the end of the step then, as a
    netCDF file that is written, closed, fsynced and renamed. At the end all segments are merged into one
    file, which takes the place of ``NAME.nc`` by a rename.

    Parameters
    ----------
    path : path
        NAME.nc.
    layout : Layout
    attrs : mapping
        Global attributes known at the start.
    static : mapping
        Variables without time that are known at the start.
    overwrite : bool
        Replace what is there.
    sync_every, checkpoint_every : float
        Seconds.

    Raises
    ------
    OutputExistsError
        If there is a file, or the segments of another run, and `overwrite` is false.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Layout,
        attrs: Mapping[str, Any],
        static: Mapping[str, np.ndarray],
        *,
        overwrite: bool,
        sync_every: float,
        checkpoint_every: float,
    ) -> None:
        self.path = Path(path).absolute()
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        check_output(self.path, overwrite=overwrite)
        self._layout = layout
        self._attrs = dict(attrs)
        self._static = dict(static)
        self._records: list[dict[str, Any]] = []
        self._written: list[dict[str, Any]] = []  # those of the last segment
        self._n_segments = self._n_checkpoints = 0
        self._sync_every = sync_every
        self._checkpoint_every = checkpoint_every
        self._synced = self._checkpointed = time.monotonic()
        self._lock = self._take(overwrite)

    def _take(self, overwrite: bool) -> IO[str]:
        """Make the directory of segments, and hold its lock until the run ends or its process dies."""
        lock = self.partial / "lock"
        try:
            if self.partial.exists() and overwrite:
                with lock.open("a") as old:
                    _hold(old)
                    shutil.rmtree(self.partial)
            self.partial.mkdir()
            held = lock.open("w")
            _hold(held)
        except (BlockingIOError, FileExistsError) as error:
            raise OutputExistsError(
                f"Another run is writing to {self.path}. Wait for its end, or choose another name."
            ) from error
        return held

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record, and write a segment if it is time to."""
        self._records.append(record)
        if self._n_segments == 0 or time.monotonic() - self._synced >= self._sync_every:
            self.flush()

    def flush(self) -> None:
        """Write the records that are not on disk yet."""
        if not self._records:
            return
        self._write_segment(self._n_segments, self._records)
        self._written, self._records = self._records, []
        self._n_segments += 1
        self._synced = time.monotonic()

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the last record, on disk if it is there already."""
        if self._records:
            self._records[-1] |= values
        else:
            self._written[-1] |= values
            self._write_segment(self._n_segments - 1, self._written)

    def abandon(self) -> None:
        """Give up: what was written stays for open_run; if nothing was, nothing stays."""
        self._lock.close()
        if self._n_segments == 0:
            shutil.rmtree(self.partial)

    def _write_segment(self, number: int, records: list[dict[str, Any]]) -> None:
        static = self._static if number == 0 else {}
        segment = self._layout.dataset(records, static, self._attrs | {"status": "running"})
        write_atomically(self.partial / f"segment-{number:06d}.nc", lambda target: _write(segment, target))

    def sync(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the records, and the state of the run, that are due; the last two states are kept."""
        if self._records and time.monotonic() - self._synced >= self._sync_every:
            self.flush()
        if time.monotonic() - self._checkpointed < self._checkpoint_every:
            return
        self.flush()
        self._n_checkpoints += 1
        number = self._n_checkpoints
        whole = state() | {"n_segments": self._n_segments}
        target = self.partial / f"checkpoint-{number:06d}.pt"
        write_atomically(target, lambda temporary: write_checkpoint(whole, temporary))
        (self.partial / f"checkpoint-{number - 2:06d}.pt").unlink(missing_ok=True)
        self._checkpointed = time.monotonic()

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Merge the segments into the file, and open it."""
        self.flush()
        merged = self.partial / "merged.nc"
        segments = [self.partial / f"segment-{n:06d}.nc" for n in range(self._n_segments)]
        end = self._layout.dataset([], self._static | dict(static), self._attrs | dict(attrs))
        write_atomically(merged, lambda target: _merge(segments, end, target))
        os.replace(merged, self.path)
        _fsync(self.path.parent)
        shutil.rmtree(self.partial)
        self._lock.close()
        return xr.open_dataset(self.path, engine="netcdf4")


def _hold(file: IO[str]) -> None:
    """Lock a file for this process, which loses the lock when it ends, however it ends."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_output(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that can't be written, or that is there already."""
    partial = path.with_name(path.name + PARTIAL)
    if path.is_dir():
        raise InvalidInputError(f"Expected out as a file, got the directory {path}. Name a file in it.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"The directory of out doesn't exist: {path.parent}. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise InvalidInputError(f"The directory of out can't be written to: {path.parent}.")
    if overwrite:
        return
    if path.exists():
        raise OutputExistsError(f"{path} exists. Pass overwrite=True to replace it, or choose another name.")
    if partial.exists():
        raise OutputExistsError(
            f"{partial} holds the records of a run that didn't end, or is still going on. Read them with "
            f"gradflow.open_run({str(path)!r}); pass overwrite=True to discard them."
        )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name, bring it to the disk, and rename it: it is there whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(dataset: xr.Dataset, target: Path) -> None:
    dataset.to_netcdf(
        target, engine="netcdf4", encoding=encoding(dataset, dataset.sizes["time"]), unlimited_dims=["time"]
    )


def _merge(segments: list[Path], end: xr.Dataset, target: Path) -> None:
    """Append segment after segment to a file that has the attributes and static variables of `end`."""
    n_records = 0
    for segment in segments:
        with netCDF4.Dataset(segment) as source:
            n_records += len(source.dimensions["time"])
    end.to_netcdf(target, engine="netcdf4", encoding=encoding(end, n_records), unlimited_dims=["time"])
    with netCDF4.Dataset(target, "a") as out:
        start = 0
        for segment in segments:
            with netCDF4.Dataset(segment) as source:
                n = len(source.dimensions["time"])
                for name, variable in source.variables.items():
                    if variable.dimensions[:1] == ("time",):
                        out[name][start : start + n] = variable[:]
                start += n
