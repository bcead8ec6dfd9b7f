"""The file: the order of its variables, and datasets made of records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from gradflow.variable import Variable

_TIME = "time"
#: Variables that index records.
_INDEX = (_TIME, "step")
#: The variables that every file has, in their order; others follow.
_FIRST = (
    *_INDEX, "train_loss", "test_loss", "train_accuracy", "test_accuracy", "gradient_norm", "step_size",
    "sharpness_used", "n_gradients", "n_hvps", "n_third", "wall_time",
)  # fmt: skip
#: Variables without time that every file has: of the run's ends.
STATIC: Mapping[str, Variable] = {
    "params": Variable(("param",), "flat parameters at the end", dtype=None),
    "params_initial": Variable(("param",), "flat parameters at the start", dtype=None),
}


@dataclass(frozen=True)
class Layout:
    """The shape of one run's file.

    Attributes
    ----------
    variables : mapping of str to Variable
        What each record may hold.
    sizes : mapping of str to int
        Of their dimensions. Both may be completed until the first dataset is made.
    theta_dtype : str
    coordinates : mapping of str to Variable
        Those beside time and step, each along the dimension of its name.
    """

    variables: Mapping[str, Variable]
    sizes: Mapping[str, int]
    theta_dtype: str
    coordinates: Mapping[str, Variable] = field(default_factory=dict)

    def dataset(
        self,
        records: Sequence[Mapping[str, Any]],
        static: Mapping[str, np.ndarray],
        attrs: Mapping[str, Any],
    ) -> xr.Dataset:
        """Make a dataset of records; NaN where a quantity was not due.

        Parameters
        ----------
        records : sequence of mapping
            Values by variable name.
        static : mapping
            Variables without a time dimension; those of the layout that are missing are left out.
        attrs : mapping
            Global attributes.
        """
        data: dict[str, Any] = {}
        coords: dict[str, Any] = {}
        for name in sorted(self.variables, key=_place):
            v = self.variables[name]
            target = coords if name in _INDEX else data
            target[name] = _array((_TIME, *v.dims), self._stack(name, v, records), v)
        for name, v in self.coordinates.items():
            if name in static:
                coords[name] = _array(v.dims, np.asarray(static[name]), v)
        for name, v in STATIC.items():
            if name in static:
                data[name] = _array(v.dims, np.asarray(static[name]), v)
        return xr.Dataset(data, coords, dict(attrs))

    def _stack(self, name: str, v: Variable, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        dtype = np.dtype(v.dtype or self.theta_dtype)
        shape = (len(records), *(self.sizes[dim] for dim in v.dims))
        values = np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
        for row, record in enumerate(records):
            if name in record:
                values[row] = record[name]
        return values


def _place(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _array(dims: tuple[str, ...], values: np.ndarray, v: Variable) -> tuple[Any, ...]:
    return dims, values, {"units": v.units, "long_name": v.long_name}


def encoding(dataset: xr.Dataset, n_records: int) -> dict[str, dict[str, Any]]:
    """Return explicit chunk sizes: about 1 MiB, at most 1,024 records; and no fill value where none is meant.

    Parameters
    ----------
    dataset : xarray.Dataset
    n_records : int
        Length that the time dimension will have.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, array in dataset.variables.items():
        in_time = array.dims[:1] == (_TIME,)
        # Only a quantity that may not have been due can be missing.
        missing = in_time and array.dtype.kind == "f" and name != _TIME
        result[str(name)] = {"_FillValue": np.nan if missing else None}
        if in_time:
            row = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
            length = int(np.clip(2**20 // row, 1, min(1024, max(1, n_records))))
            result[str(name)]["chunksizes"] = (length, *array.shape[1:])
    return result
