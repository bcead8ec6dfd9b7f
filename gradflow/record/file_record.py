"""The record of a run on disk: segments and checkpoints while it goes on, one file at its end."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from gradflow.errors import RecordingError, ResumeError, ResumeWarning
from gradflow.record.checkpoints import Checkpoints
from gradflow.record.files import TEMPORARY, fsync
from gradflow.record.output import (
    check_output,
    claim,
    partial_directory,
    remove_ending,
    write_ending,
)
from gradflow.record.provenance import history, versions_of_numerics
from gradflow.record.schema import Layout
from gradflow.record.segment_writer import SegmentWriter
from gradflow.record.segments import holds_segments, list_segments, open_segments, remove_segments


class FileRecord:
    """Write the records of a run to ``NAME.nc.partial/`` as it goes on, and to ``NAME.nc`` at its end.

    Records reach the disk `sync_every` seconds after they were made, at the end of the step that is under way then.
    They are written to a netCDF file, a segment, that is closed, fsynced and renamed. At the end all segments are
    merged into one file, which takes the place of ``NAME.nc`` by a rename. The last two checkpoints of the run's
    state lie beside the segments.

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
        The properties that a run must share to resume this one, as text by name.
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
    path : Path
    partial : Path
        The directory of segments and checkpoints.
    checkpoint : dict or None
        The state from which the run goes on.

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
        self.partial = partial_directory(self.path)
        self.checkpoint: dict[str, Any] | None = None
        self._attrs = dict(attrs)
        self._identity = dict(identity)
        self._sync_every = sync_every
        self._checkpoint_every = checkpoint_every
        self._synced = self._checkpointed = time.monotonic()
        self._checkpoints = Checkpoints(self.partial)
        check_output(self.path, overwrite=overwrite, resume=resume)
        self._untouched = resume  # as an earlier run left it
        self._lock = claim(self.path, overwrite=overwrite, resume=resume)
        if resume:
            try:
                self.checkpoint = self._checkpoints.read_newest(
                    lambda state: holds_segments(self.partial, state["n_segments"])
                )
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
        n_written = self.checkpoint["n_segments"] if self.checkpoint else 0
        self._segments = SegmentWriter(self.partial, layout, self._attrs, static, n_written)
        self._oldest = n_written  # segments that the older of the two checkpoints counts

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
            paths = (self.path.with_name(f"{self.path.name}.aside-{n}") for n in itertools.count(1))
            aside = next(path for path in paths if not partial_directory(path).exists())
            self.partial.rename(partial_directory(aside))
            warnings.warn(
                f"{self.partial} had no checkpoint that is whole, so the run starts anew. What was recorded is kept: "
                f"gradflow.open_run({str(aside)!r}).",
                ResumeWarning,
                stacklevel=5,  # in integrate()
            )
        else:
            shutil.rmtree(self.partial)
        self._untouched = False
        self._lock.close()
        self._lock = claim(self.path, overwrite=False, resume=False)

    def first_loss(self) -> float:
        """Return the loss at θ₀ as the run that goes on recorded it."""
        with xr.open_dataset(list_segments(self.partial)[0].path, engine="netcdf4") as segment:
            return float(segment.train_loss[0])

    def rewind(self) -> None:
        """Drop what came after the checkpoint from which the run goes on."""
        remove_segments(self.partial, self._segments.n_written)
        self._checkpoints.remove_later()
        remove_ending(self.partial)
        self._untouched = False

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record, and write a segment if one is due."""
        self._segments.append(record)
        if self._segments.n_written == 0 or self._sync_due():
            self.flush()

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the last record, on disk if it is there already."""
        with self._safely():
            self._segments.amend(values)

    def flush(self) -> None:
        """Write the records that are not on disk yet."""
        if not self._segments.has_pending:
            return
        with self._safely():
            self._segments.flush()
        self._synced = time.monotonic()

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Write the records and the state of the run, if they are due; the last two states are kept."""
        if self._sync_due():
            self.flush()
        if not now and time.monotonic() - self._checkpointed < self._checkpoint_every:
            return
        self.flush()
        n_segments = self._segments.n_written
        whole = state() | {
            "n_segments": n_segments,
            "identity": self._identity,
            "versions": versions_of_numerics(),
            "history": self._attrs.get("history", ""),
        }
        with self._safely():
            self._checkpoints.write(whole)
            self._checkpointed = time.monotonic()
            # Both checkpoints count what the older one does; the last segment may still be amended.
            self._segments.put_together(below=min(self._oldest, n_segments - 1))
        self._oldest = n_segments

    def _sync_due(self) -> bool:
        return time.monotonic() - self._synced >= self._sync_every

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Merge the segments into the file, and open it."""
        self.flush()
        merged = self.partial / "merged.nc"
        with self._safely():
            self._segments.merge(merged, static, attrs)
        os.replace(merged, self.path)
        fsync(self.path.parent)
        self._checkpoints.remove_all()  # first: without them, the file is what counts
        shutil.rmtree(self.partial)
        self._lock.close()
        return xr.open_dataset(self.path, engine="netcdf4")

    def suspend(self, status: str, message: str) -> xr.Dataset:
        """Stop before the end. The segments stay for open_run, and for a run that resumes from the last checkpoint."""
        self.flush()
        write_ending(self.partial, status, message)
        self._lock.close()
        return open_segments(self.partial).assign_attrs(status=status, message=message, success=np.int8(0))

    def abandon(self, error: BaseException) -> None:
        """Give up: what was written stays for open_run, with the reason; if nothing was written, nothing stays."""
        if self._untouched:  # the run wasn't taken up
            self._lock.close()
            return
        if self._segments.n_written == 0:
            shutil.rmtree(self.partial)
        else:
            with contextlib.suppress(OSError):
                write_ending(self.partial, "error", f"{type(error).__name__}: {error}")
            error.add_note(
                f"Recorded up to there: gradflow.open_run({str(self.path)!r}). "
                f"resume={str(self.path)!r} goes on from the last checkpoint."
            )
        self._lock.close()

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """Turn a failure to write into an error that carries all records."""
        try:
            yield
        except (OSError, RuntimeError) as error:  # RuntimeError: what HDF5 makes of a full disk
            for left in self.partial.glob(f"*{TEMPORARY}"):
                left.unlink(missing_ok=True)
            failure = RecordingError(
                f"Records can't be written to {self.partial}: {error}. What was written before is whole: "
                f"gradflow.open_run({str(self.path)!r}). All of it, the last records included, is in this error's "
                "dataset. Make room, and go on with resume=…"
            )
            failure.dataset = self._segments.take_all()
            raise failure from error


def differences(before: Mapping[str, str], now: Mapping[str, str], missing: str = "not given") -> str:
    """Return in which entries two runs differ, as text; empty if they don't."""
    return "; ".join(
        f"{name} was {before.get(name, missing)}, is {now.get(name, missing)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    )
