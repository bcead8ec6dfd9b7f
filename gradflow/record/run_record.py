"""Where records are kept: in memory, or in small closed netCDF segments that are merged at the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import netCDF4
import numpy as np
import xarray as xr

from gradflow.errors import InvalidInputError, OutputExistsError, RecordingError, ResumeError, ResumeWarning
from gradflow.record.checkpoints import read_checkpoint, write_checkpoint
from gradflow.record.lock import is_held, take_lock
from gradflow.record.provenance import history, versions_of_numerics
from gradflow.record.schema import Layout, encoding
from gradflow.record.segments import combine_segments, list_segments, open_segments, segment_path

PARTIAL = ".partial"
#: Says how a run ended that left its segments.
ENDED = "ended.json"
_CHECKPOINTS = "checkpoint-*.pt"
#: Checkpoints that are kept.
_KEPT = 2
#: Segments that are put together in one file, and such files again.
_TOGETHER = 32
#: Files that are read before a run goes on from them; those before were on the disk long ago.
_READ_AGAIN = 8


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

    checkpoint: dict[str, Any] | None = None

    def first_loss(self) -> float:
        """Nothing was recorded before."""
        return float("nan")

    def rewind(self) -> None:
        """Nothing to go back to."""

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Nothing to bring to safety: memory is lost with the process."""

    def flush(self) -> None:
        """Nothing to bring to safety."""

    def abandon(self, error: BaseException) -> None:
        """Nothing to give up."""

    def suspend(self, status: str, message: str) -> xr.Dataset:
        """Return all records as a dataset."""
        return self.finish({}, {"status": status, "message": message, "success": np.int8(0)})

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Return all records as a dataset."""
        return self._layout.dataset(self._records, static, self._attrs | dict(attrs))


class FileRecord:
    """Writes the records of a run to ``NAME.nc.partial/`` as it goes on, and to ``NAME.nc`` at its end.

    Records reach the disk `sync_every` seconds after they were made, at the end of the step then, as a
    netCDF file that is written, closed, fsynced and renamed. At the end all segments are merged into one
    file, which takes the place of ``NAME.nc`` by a rename. The last two checkpoints of the run's state lie beside the
    segments.

    Parameters
    ----------
    path : path
        NAME.nc.
    layout : Layout
    attrs : mapping
        Global attributes known at the start.
    static : mapping
        Variables without time that are known at the start.
    identity : mapping
        What a run that goes on from this one must have in common with it, as text by name.
    overwrite : bool
        Replace what is there.
    resume : bool
        Go on where an earlier run left off; nothing is changed on the disk before :meth:`rewind`.
    anew : bool
        Start anew if that run has left no checkpoint that is whole; its records are set aside.
    sync_every, checkpoint_every : float
        Seconds.

    Attributes
    ----------
    checkpoint : dict or None
        The state to go on from.

    Raises
    ------
    OutputExistsError
        If there is a file, or the segments of another run, and `overwrite` is false.
    ResumeError
        If there is nothing to resume, or it is another run.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layout: Layout,
        attrs: Mapping[str, Any],
        static: Mapping[str, np.ndarray],
        identity: Mapping[str, str],
        *,
        overwrite: bool,
        resume: bool,
        anew: bool = False,
        sync_every: float,
        checkpoint_every: float,
    ) -> None:
        self.path = Path(path).absolute()
        self.partial = self.path.with_name(self.path.name + PARTIAL)
        self.checkpoint: dict[str, Any] | None = None
        self._layout = layout
        self._attrs = dict(attrs)
        self._static = dict(static)
        self._identity = dict(identity)
        self._records: list[dict[str, Any]] = []
        self._written: list[dict[str, Any]] = []  # those of the last segment
        self._n_segments = self._n_checkpoints = self._oldest = 0
        self._sync_every = sync_every
        self._checkpoint_every = checkpoint_every
        self._synced = self._checkpointed = time.monotonic()
        check_output(self.path, overwrite=overwrite, resume=resume)
        self._untouched = resume  # as an earlier run left it
        self._lock = self._take(overwrite=overwrite, resume=resume)
        if resume:
            try:
                self.checkpoint = self._newest_checkpoint()
                if self.checkpoint is not None:
                    self._check_origin(self.checkpoint)
                elif anew:
                    self._start_anew()
                else:
                    raise ResumeError(
                        f"{self.partial} has no checkpoint that is whole. Read its records with gradflow.open_run, and "
                        "start again with overwrite=True."
                    )
            except BaseException:
                self._lock.close()
                raise

    def _take(self, *, overwrite: bool, resume: bool) -> IO[str]:
        """Make the directory of segments, and hold its lock until the run ends or its process dies."""
        made = False
        try:
            if self.partial.exists() and overwrite and not resume:
                with take_lock(self.partial):
                    shutil.rmtree(self.partial)
            if not resume:
                self.partial.mkdir()
                made = True
            return take_lock(self.partial)
        except (BlockingIOError, FileExistsError) as error:
            raise OutputExistsError(
                f"Another run is writing to {self.path}. Wait for its end, or choose another name."
            ) from error
        except BaseException:
            if made:
                shutil.rmtree(self.partial)
            raise

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """Read the newest checkpoint that is whole, with its segments."""
        for number in sorted(self._checkpoints(), reverse=True):
            state = read_checkpoint(self._checkpoint(number))
            if state is not None and self._holds(state["n_segments"]):
                self._n_segments, self._n_checkpoints = state["n_segments"], number
                return state
        return None

    def _check_origin(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on from another run; warn if it went under other versions."""
        if different := differences(state["identity"], self._identity):
            raise ResumeError(
                f"The run can't be resumed, because it was another one: {different}. Give the same."
            )
        self._attrs["history"] = "\n".join(filter(None, (state.get("history"), history("resumed"))))
        before, now = state.get("versions", {}), versions_of_numerics()
        if before == now:
            return
        changed = differences(before, now, missing="unknown")
        self._attrs["history"] += f"; {changed}"
        warnings.warn(
            f"{self.path} was begun under other versions: {changed}. The run goes on, but not bit for bit: what was "
            "recorded stays, and what follows agrees with the run as it would have been to rounding and the method's "
            "tolerance, where both versions compute the same. The file's history tells of the change.",
            ResumeWarning,
            stacklevel=5,  # in integrate()
        )

    def _start_anew(self) -> None:
        """Make way for a run from the start; records that are there are kept under another name."""
        if self.path.exists():
            raise ResumeError(
                f"{self.partial} has no checkpoint that is whole, and {self.path} is there. Remove the one that you "
                "don't need, or pass overwrite=True to replace both."
            )
        if list_segments(self.partial):
            names = (f"{self.path.name}.aside-{n}" for n in itertools.count(1))
            aside = next(name for name in names if not self.path.with_name(name + PARTIAL).exists())
            self.partial.rename(self.path.with_name(aside + PARTIAL))
            warnings.warn(
                f"{self.partial} had no checkpoint that is whole, so the run starts anew. What was recorded is kept: "
                f"gradflow.open_run({str(self.path.with_name(aside))!r}).",
                ResumeWarning,
                stacklevel=5,  # in integrate()
            )
        else:
            shutil.rmtree(self.partial)
        self._untouched = False
        self._lock.close()
        self._lock = self._take(overwrite=False, resume=False)

    def first_loss(self) -> float:
        """Return the loss at θ₀ as the run that goes on recorded it."""
        with xr.open_dataset(list_segments(self.partial)[0].path, engine="netcdf4") as segment:
            return float(segment.train_loss[0])

    def rewind(self) -> None:
        """Drop what came after the checkpoint that the run goes on from."""
        # The last first: what is left is always a beginning.
        for later in reversed(list_segments(self.partial)):
            if later.first >= self._n_segments:
                later.path.unlink()
        self._oldest = self._n_segments
        for other in self._checkpoints():
            if other > self._n_checkpoints:
                self._checkpoint(other).unlink()
        (self.partial / ENDED).unlink(missing_ok=True)
        self._untouched = False

    def _holds(self, n: int) -> bool:
        """Whether the first n segments are there; the last files are read to see if they are whole."""
        files = [file for file in list_segments(self.partial) if file.first < n]
        follow = all(a.last + 1 == b.first for a, b in pairwise(files))
        there = bool(files) and files[0].first == 0 and files[-1].last == n - 1 and follow
        return there and all(_is_whole(file.path) for file in files[-_READ_AGAIN:])

    def _checkpoints(self) -> list[int]:
        """Return the numbers of the checkpoints that are there."""
        return [int(path.stem.rpartition("-")[2]) for path in self.partial.glob(_CHECKPOINTS)]

    def _checkpoint(self, number: int) -> Path:
        return self.partial / f"checkpoint-{number:06d}.pt"

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
        elif self._written:
            self._written[-1] |= values
            self._write_segment(self._n_segments - 1, self._written)
        else:  # of a run that was resumed, and has recorded nothing since
            self._amend_on_disk(values)

    def _amend_on_disk(self, values: Mapping[str, Any]) -> None:
        last = list_segments(self.partial)[-1].path
        with xr.open_dataset(last, engine="netcdf4") as segment:
            dataset = segment.load()
        for name, value in values.items():
            if name not in dataset.coords:
                dataset[name][-1] = value
        with self._safely():
            write_atomically(last, lambda target: _write(dataset, target))

    def _write_segment(self, number: int, records: list[dict[str, Any]]) -> None:
        static = self._static if number == 0 else {}
        segment = self._layout.dataset(records, static, self._attrs | {"status": "running"})
        with self._safely():
            write_atomically(segment_path(self.partial, number), lambda target: _write(segment, target))

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Write the records, and the state of the run, that are due; the last two states are kept."""
        if self._records and time.monotonic() - self._synced >= self._sync_every:
            self.flush()
        if not now and time.monotonic() - self._checkpointed < self._checkpoint_every:
            return
        self.flush()
        self._n_checkpoints += 1
        number = self._n_checkpoints
        whole = state() | {
            "n_segments": self._n_segments,
            "identity": self._identity,
            "versions": versions_of_numerics(),
            "history": self._attrs.get("history", ""),
        }
        with self._safely():
            write_atomically(self._checkpoint(number), lambda target: write_checkpoint(whole, target))
        self._checkpoint(number - _KEPT).unlink(missing_ok=True)
        self._checkpointed = time.monotonic()
        # Both checkpoints count what the older one does; the last segment may still be amended.
        self._put_together(below=min(self._oldest, self._n_segments - 1))
        self._oldest = self._n_segments

    def _put_together(self, below: int) -> None:
        """Put equally long files together as often as there are enough of them in a row, so that they stay few."""
        while True:
            files = [file for file in list_segments(self.partial) if file.last < below]
            rows = (files[i : i + _TOGETHER] for i in range(len(files) - _TOGETHER + 1))
            row = next((row for row in rows if len({file.span for file in row}) == 1), None)
            if row is None:
                return
            static = self._static if row[0].first == 0 else {}
            empty = self._layout.dataset([], static, self._attrs | {"status": "running"})
            with self._safely():
                write_atomically(
                    segment_path(self.partial, row[0].first, row[-1].last),
                    partial(_merge, [file.path for file in row], empty),
                )
            for file in reversed(row):
                file.path.unlink()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """Turn a failure to write into an error that carries all records."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # RuntimeError: what HDF5 makes of a full disk
            for left in self.partial.glob("*.tmp"):
                left.unlink(missing_ok=True)
            said = RecordingError(
                f"Records can't be written to {self.partial}: {error}. What was written before is whole: "
                f"gradflow.open_run({str(self.path)!r}). All of it, the last records included, is in this error's "
                "dataset. Make room, and go on with resume=…"
            )
            said.dataset = self._so_far()
            self._records = []  # which are in the error
            raise said from error

    def _so_far(self) -> xr.Dataset | None:
        """Return all records, on disk and not."""
        parts = [] if self._n_segments == 0 else [open_segments(self.partial)]
        if self._records:
            parts.append(self._layout.dataset(self._records, {} if parts else self._static, self._attrs))
        return combine_segments(parts) if parts else None

    def abandon(self, error: BaseException) -> None:
        """Return up: what was written stays for open_run, and says why; if nothing was, nothing stays."""
        if self._untouched:  # the run wasn't taken up
            self._lock.close()
            return
        if self._n_segments == 0:
            shutil.rmtree(self.partial)
        else:
            with contextlib.suppress(OSError):
                self._say_ended("error", f"{type(error).__name__}: {error}")
            error.add_note(
                f"Recorded up to there: gradflow.open_run({str(self.path)!r}). "
                f"resume={str(self.path)!r} goes on from the last checkpoint."
            )
        self._lock.close()

    def suspend(self, status: str, message: str) -> xr.Dataset:
        """Stop before the end: the segments stay, for open_run and for a run that goes on from the last checkpoint."""
        self.flush()
        self._say_ended(status, message)
        self._lock.close()
        return open_segments(self.partial).assign_attrs(status=status, message=message, success=np.int8(0))

    def _say_ended(self, status: str, message: str) -> None:
        text = json.dumps({"status": status, "message": message}, ensure_ascii=False)

        def write(target: Path) -> None:
            target.write_text(text, encoding="utf-8")

        write_atomically(self.partial / ENDED, write)

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Merge the segments into the file, and open it."""
        self.flush()
        merged = self.partial / "merged.nc"
        segments = [file.path for file in list_segments(self.partial)]
        end = self._layout.dataset([], self._static | dict(static), self._attrs | dict(attrs))
        with self._safely():
            write_atomically(merged, lambda target: _merge(segments, end, target))
        os.replace(merged, self.path)
        _fsync(self.path.parent)
        for number in self._checkpoints():  # first: without them, the file is what counts
            self._checkpoint(number).unlink()
        shutil.rmtree(self.partial)
        self._lock.close()
        return xr.open_dataset(self.path, engine="netcdf4")


def differences(before: Mapping[str, str], now: Mapping[str, str], missing: str = "not given") -> str:
    """Return in what two runs differ, as text; empty if in nothing."""
    return "; ".join(
        f"{name} was {before.get(name, missing)}, is {now.get(name, missing)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )


def _is_whole(segment: Path) -> bool:
    try:
        with xr.open_dataset(segment, engine="netcdf4") as dataset:
            dataset.load()
    except (OSError, RuntimeError, ValueError, KeyError):
        return False
    return True


def what_is_at(path: Path) -> Literal["nothing", "unfinished", "ended"]:
    """Return what there is of a run: nothing, what an unfinished run left, or the file of one that has ended.

    Beside the file of an earlier run, an unfinished one counts once it has a checkpoint; while it is written, at once.
    """
    partial = path.with_name(path.name + PARTIAL)
    if path.is_file() and not any(partial.glob(_CHECKPOINTS)) and not is_held(partial):
        return "ended"
    return "unfinished" if partial.is_dir() else "nothing"


def check_output(path: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse an output that can't be written, or that is there already, or that is not, to be resumed."""
    records = path.with_name(path.name + PARTIAL)
    if path.is_dir():
        raise InvalidInputError(f"Expected out as a file, got the directory {path}. Name a file in it.")
    if not path.parent.is_dir():
        raise InvalidInputError(f"The directory of out doesn't exist: {path.parent}. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise InvalidInputError(f"The directory of out can't be written to: {path.parent}.")
    if resume:
        if records.is_dir():
            return
        ended = f"{path} is of a run that has ended" if path.exists() else f"There is no {records}"
        raise ResumeError(
            f"{ended}, so that there is nothing to resume. Leave resume out, or name another run."
        )
    if overwrite:
        return
    if path.exists():
        raise OutputExistsError(f"{path} exists. Pass overwrite=True to replace it, or choose another name.")
    if records.exists():
        raise OutputExistsError(
            f"{records} holds the records of a run that didn't end, or is still going on. Read them with "
            f"gradflow.open_run({str(path)!r}); pass resume={str(path)!r} to go on with it, overwrite=True to discard "
            "them."
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
