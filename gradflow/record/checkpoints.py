"""Checkpoints: the state of a run on disk, from which the run can be resumed."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gradflow.errors import ResumeError
from gradflow.record.files import write_atomically

#: The first line of a file. The format counts up when the state of a run has another shape.
_MAGIC, _FORMER = b"gradflow checkpoint 2\n", b"gradflow checkpoint 1\n"
_PATTERN = "checkpoint-*.pt"
#: Checkpoints that are kept.
_KEPT = 2


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run, plain data, with a checksum before it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    with path.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest())
        file.write(payload)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the state in a file; None if the file isn't whole. Only tensors and plain data load: no code can run.

    Raises
    ------
    ResumeError
        If an older version wrote it, whose runs had another state.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, payload = content[: len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if head == _FORMER + hashlib.sha256(payload).digest():
        raise ResumeError(
            f"{path} was written by an older gradflow, whose state this version can't go on from. Finish the run with "
            "the version in its history, or start it anew with overwrite=True; gradflow.open_run reads what it has."
        )
    if head != _MAGIC + hashlib.sha256(payload).digest():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def has_checkpoints(directory: Path) -> bool:
    """Return whether a directory has a checkpoint, whole or not."""
    return any(directory.glob(_PATTERN))


class Checkpoints:
    """The numbered checkpoints in a directory, of which the last two are kept.

    Parameters
    ----------
    directory : Path
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._current = 0  # number of the checkpoint that was written or read last

    def read_newest(self, usable: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """Return the newest state that is whole and usable; None if there is none."""
        for number in sorted(self._numbers(), reverse=True):
            state = read_checkpoint(self._path(number))
            if state is not None and usable(state):
                self._current = number
                return state
        return None

    def write(self, state: Mapping[str, Any]) -> None:
        """Write a state, and remove the checkpoint that is no longer kept."""
        self._current += 1
        write_atomically(self._path(self._current), lambda target: write_checkpoint(state, target))
        self._path(self._current - _KEPT).unlink(missing_ok=True)

    def remove_later(self) -> None:
        """Remove the checkpoints after the one that was read."""
        for number in self._numbers():
            if number > self._current:
                self._path(number).unlink()

    def remove_all(self) -> None:
        """Remove all checkpoints."""
        for number in self._numbers():
            self._path(number).unlink()

    def _numbers(self) -> list[int]:
        return [int(path.stem.rpartition("-")[2]) for path in self._directory.glob(_PATTERN)]

    def _path(self, number: int) -> Path:
        return self._directory / f"checkpoint-{number:06d}.pt"
