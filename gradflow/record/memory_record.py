"""The record of a run in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from gradflow.record.schema import Layout


class MemoryRecord:
    """Keep the records of a run in memory. They are lost with the process, so nothing is brought to safety.

    Parameters
    ----------
    layout : Layout
    attrs : mapping
        Global attributes known at the start.

    Attributes
    ----------
    checkpoint : None
        A run in memory always starts at θ₀.
    """

    checkpoint: dict[str, Any] | None

    def __init__(self, layout: Layout, attrs: Mapping[str, Any]) -> None:
        self.checkpoint = None
        self._layout = layout
        self._attrs = dict(attrs)
        self._records: list[dict[str, Any]] = []

    def first_loss(self) -> float:
        """Return NaN: nothing was recorded before."""
        return float("nan")

    def rewind(self) -> None:
        """Do nothing: there is no checkpoint to go back to."""

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record."""
        self._records.append(record)

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the last record."""
        self._records[-1] |= values

    def flush(self) -> None:
        """Do nothing."""

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Do nothing."""

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Return all records as a dataset."""
        return self._layout.dataset(self._records, static, self._attrs | dict(attrs))

    def suspend(self, status: str, message: str) -> xr.Dataset:
        """Return all records as a dataset."""
        return self.finish({}, {"status": status, "message": message, "success": np.int8(0)})

    def abandon(self, error: BaseException) -> None:
        """Do nothing."""
