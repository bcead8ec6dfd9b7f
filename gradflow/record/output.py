"""The place of a run on disk: what exists there, whether a run may be written there, and the claim to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import IO, Literal

from gradflow.errors import InvalidInputError, OutputExistsError, ResumeError
from gradflow.record.checkpoints import has_checkpoints
from gradflow.record.files import write_atomically
from gradflow.record.lock import is_held, take_lock

PARTIAL = ".partial"
_ENDED = "ended.json"


def partial_directory(path: Path) -> Path:
    """Return the directory in which a run to ``NAME.nc`` keeps its segments and checkpoints until it ends."""
    return path.with_name(path.name + PARTIAL)


def what_is_at(path: Path) -> Literal["nothing", "unfinished", "ended"]:
    """Return what there is of a run: nothing, what an unfinished run left, or the file of one that has ended.

    Beside the file of an earlier run, an unfinished one counts once it has a checkpoint; while it is written, at once.
    """
    partial = partial_directory(path)
    if path.is_file() and not has_checkpoints(partial) and not is_held(partial):
        return "ended"
    return "unfinished" if partial.is_dir() else "nothing"


def check_output(path: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Refuse an output that can't be written, that is there already, or that isn't there to be resumed.

    Raises
    ------
    InvalidInputError
        If no file can be written at this path.
    OutputExistsError
        If there is a run, and it is neither overwritten nor resumed.
    ResumeError
        If there is nothing to resume.
    """
    records = partial_directory(path)
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
        raise ResumeError(f"{ended}, so there is nothing to resume. Leave resume out, or name another run.")
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


def claim(path: Path, *, overwrite: bool, resume: bool) -> IO[str]:
    """Make the directory of a run, unless it is resumed, and lock it.

    Returns
    -------
    file
        Holds the lock until it is closed, or the process dies.

    Raises
    ------
    OutputExistsError
        If another process holds the lock.
    """
    partial = partial_directory(path)
    made = False
    try:
        if partial.exists() and overwrite and not resume:
            with take_lock(partial):
                shutil.rmtree(partial)
        if not resume:
            partial.mkdir()
            made = True
        return take_lock(partial)
    except (BlockingIOError, FileExistsError) as error:
        raise OutputExistsError(
            f"Another run is writing to {path}. Wait for its end, or choose another name."
        ) from error
    except BaseException:
        if made:
            shutil.rmtree(partial)
        raise


def write_ending(partial: Path, status: str, message: str) -> None:
    """Write beside the segments how their run ended."""
    text = json.dumps({"status": status, "message": message}, ensure_ascii=False)

    def write(target: Path) -> None:
        target.write_text(text, encoding="utf-8")

    write_atomically(partial / _ENDED, write)


def read_ending(partial: Path) -> dict[str, str] | None:
    """Return how the run of these segments ended; None if nothing was written about it."""
    try:
        ending: dict[str, str] = json.loads((partial / _ENDED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return ending


def remove_ending(partial: Path) -> None:
    """Remove the note of how a run ended, as the run goes on."""
    (partial / _ENDED).unlink(missing_ok=True)
