"""The state of a run on disk, from which it can be taken up again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradflow.errors import ResumeError

#: The first line of a file. The format counts up when the state of a run has another shape.
_MAGIC, _FORMER = b"gradflow checkpoint 2\n", b"gradflow checkpoint 1\n"


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run, plain data, with a checksum before it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    with path.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest())
        file.write(payload)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a state; None if the file isn't whole. It loads tensors and plain data only: nothing can run code.

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
            "the version in its history, or start it anew; gradflow.open_run reads what it recorded."
        )
    if head != _MAGIC + hashlib.sha256(payload).digest():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
