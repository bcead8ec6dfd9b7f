"""The state of a run on disk, from which it can be taken up again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"gradflow checkpoint 1\n"


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run, plain data, with a checksum before it."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    with path.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(payload).digest())
        file.write(payload)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a state; None if the file isn't whole. Tensors and plain data are loaded alone: nothing can run code."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    head, payload = content[: len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
    if head != _MAGIC + hashlib.sha256(payload).digest():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
