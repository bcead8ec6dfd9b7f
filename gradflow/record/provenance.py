"""The attributes of a file that describe how it was made."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from gradflow.errors import InvalidTypeError

_PACKAGES = ("gradflow", "torch", "numpy", "scipy", "xarray", "netCDF4")
#: Packages that the bits of a run may depend on. NumPy draws mini-batches and projections.
_NUMERICS = ("gradflow", "torch", "numpy", "scipy", "torchdiffeq")


def provenance(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the global attributes that are known before a run starts.

    Parameters
    ----------
    config : mapping
        The resolved configuration; written as one JSON string.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "Conventions": "CF-1.11",
        "title": "Training trajectory of a neural network",
        "source": f"gradflow {versions['gradflow']}",
        "history": history("integrated"),
        "gradflow_config": to_json(config),
        "versions": to_json(versions | {"python": platform.python_version()}),
        "platform": platform.platform(),
        "commit": _commit(),
    }


def history(what: str) -> str:
    """Return a line for a file's history: what was done to it, and when."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return f"{now}: {what} by gradflow {_version('gradflow')}"


def versions_of_numerics() -> dict[str, str]:
    """Return the versions that the bits of a run may depend on, by package; of gradflow with the commit."""
    versions = {name: _version(name) for name in _NUMERICS}
    commit = _commit()
    return (
        versions
        if commit == "unknown"
        else versions | {"gradflow": f"{versions['gradflow']} ({commit[:12]})"}
    )


def to_json(value: Any) -> str:
    """Write a configuration as JSON; values that JSON can't hold are written as text."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if type(value) is int:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return str(value)


def check_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Make attributes that netCDF can hold: bool becomes 0 or 1, None is left out, mappings become JSON.

    Raises
    ------
    InvalidTypeError
        For a value that has no such form; before the run, not at its end.
    """
    clean: dict[str, Any] = {}
    for name, value in attrs.items():
        if value is None:
            continue
        if isinstance(value, bool | np.bool_):
            clean[name] = np.int8(value)
        elif isinstance(value, Mapping):
            clean[name] = to_json(value)
        elif isinstance(value, int):
            clean[name] = value if abs(value) < 2**63 else str(value)
        elif isinstance(value, str | float | np.integer | np.floating):
            clean[name] = value
        else:
            raise InvalidTypeError(f"Attribute {name!r} can't be written to netCDF: {type(value).__name__}.")
    return clean


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache  # the code that runs is that which was imported
def _commit() -> str:
    """Return the commit of the source tree that gradflow runs from; "unknown" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
