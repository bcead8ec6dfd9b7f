"""The state of a run on disk, from which it can be taken up again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write the state of a run."""
    torch.save(dict(state), path)
