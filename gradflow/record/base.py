"""The interface of the record of a run, in memory or on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import xarray as xr


class Record(Protocol):
    """Keep the records of one run: in memory (:class:`MemoryRecord`) or on disk (:class:`FileRecord`).

    A run ends in one of three ways, and one method is called for each: :meth:`finish`, :meth:`suspend` or
    :meth:`abandon`.

    Attributes
    ----------
    checkpoint : dict or None
        The state from which the run goes on; None if it starts at θ₀.
    """

    checkpoint: dict[str, Any] | None

    def first_loss(self) -> float:
        """Return the loss at θ₀ as the resumed run recorded it; NaN if nothing was recorded before."""

    def rewind(self) -> None:
        """Drop what was recorded after the checkpoint."""

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record: values by variable name."""

    def amend(self, values: dict[str, Any]) -> None:
        """Add values to the last record."""

    def flush(self) -> None:
        """Bring all records to safety."""

    def sync(self, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Bring to safety what is due: records, and the state of the run.

        Parameters
        ----------
        state : callable
            Returns the state as plain data; called only if a checkpoint is due.
        now : bool
            Write a checkpoint at once, due or not.
        """

    def finish(self, static: Mapping[str, np.ndarray], attrs: Mapping[str, Any]) -> xr.Dataset:
        """Close the record of a run that has ended, and return it.

        Parameters
        ----------
        static : mapping
            Variables without time that are known at the end.
        attrs : mapping
            Global attributes that are known at the end.
        """

    def suspend(self, status: str, message: str) -> xr.Dataset:
        """Close the record of a run that may be resumed, and return what there is."""

    def abandon(self, error: BaseException) -> None:
        """Close the record of a run that an error ended."""
