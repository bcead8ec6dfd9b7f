"""The file: one table of variables, and datasets made of records by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Variable:
    """A variable of the file.

    Attributes
    ----------
    name : str
    dims : tuple of str
    units, long_name : str
    dtype : str or None
        None: that of θ.
    optional : bool
        Present only when it was asked for; else present always, NaN where it doesn't apply.
    """

    name: str
    dims: tuple[str, ...]
    units: str
    long_name: str
    dtype: str | None = "float64"
    optional: bool = False


_T = ("time",)

#: Every variable that a run's file can hold.
VARIABLES: tuple[Variable, ...] = (
    Variable("time", _T, "1", "flow time"),
    Variable("step", _T, "1", "accepted steps so far", "int64"),
    Variable("train_loss", _T, "1", "training loss"),
    Variable("test_loss", _T, "1", "test loss"),
    Variable("train_accuracy", _T, "1", "fraction of the training set classified right"),
    Variable("test_accuracy", _T, "1", "fraction of the test set classified right"),
    Variable("gradient_norm", _T, "1", "2-norm of the gradient of the training loss"),
    Variable("step_size", _T, "1", "size of the last step in time"),
    Variable("sharpness_used", _T, "1", "largest Hessian eigenvalue that the last step was sized with"),
    Variable("n_gradients", _T, "1", "cumulative gradient evaluations of the method", "int64"),
    Variable("n_hvps", _T, "1", "cumulative Hessian-vector products of the method", "int64"),
    Variable("wall_time", _T, "s", "wall-clock time since the start, recording included"),
    Variable("eigenvalue", ("time", "eig"), "1", "largest Hessian eigenvalues, descending", optional=True),
    Variable(
        "eigenvalue_residual",
        ("time", "eig"),
        "1",
        "residual norm of the eigenpair relative to the largest absolute eigenvalue",
        optional=True,
    ),
    Variable(
        "effective_eigenvalue",
        ("time", "eig"),
        "1",
        "largest eigenvalues of the preconditioned Hessian, descending",
        optional=True,
    ),
    Variable(
        "effective_eigenvalue_residual",
        ("time", "eig"),
        "1",
        "residual norm of that eigenpair relative to the largest absolute eigenvalue",
        optional=True,
    ),
    Variable("x", ("x",), "1", "Hessian eigenvalue at which the spectral density is given", optional=True),
    Variable("spectral_density", ("time", "x"), "1", "density of the Hessian eigenvalues", optional=True),
    Variable(
        "spectral_density_error",
        ("time", "x"),
        "1",
        "standard error of the density over its random vectors",
        optional=True,
    ),
    Variable("projection", ("time", "proj"), "1", "random projection of the parameters", optional=True),
    Variable("theta", ("time", "param"), "1", "flat parameters", None, optional=True),
    Variable("params", ("param",), "1", "flat parameters at the end", None, optional=True),
    Variable("params_initial", ("param",), "1", "flat parameters at the start", None, optional=True),
)

_COORDINATES = ("time", "step", "x")
_BY_NAME = {variable.name: variable for variable in VARIABLES}


@dataclass(frozen=True)
class Layout:
    """The shape of one run's file.

    Attributes
    ----------
    sizes : mapping of str to int
        Of the dimensions eig, x, proj and param.
    optional : frozenset of str
        Which optional variables it has.
    theta_dtype : str
    """

    sizes: Mapping[str, int]
    optional: frozenset[str]
    theta_dtype: str

    def variables(self) -> list[Variable]:
        """Return the variables of this file."""
        return [v for v in VARIABLES if not v.optional or v.name in self.optional]

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
        for v in self.variables():
            if v.dims[:1] != _T and v.name not in static:
                continue
            values = self._stack(v, records) if v.dims[:1] == _T else np.asarray(static[v.name])
            target = coords if v.name in _COORDINATES else data
            target[v.name] = (v.dims, values, {"units": v.units, "long_name": v.long_name})
        return xr.Dataset(data, coords, dict(attrs))

    def _stack(self, v: Variable, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        dtype = np.dtype(v.dtype or self.theta_dtype)
        shape = (len(records), *(self.sizes[dim] for dim in v.dims[1:]))
        values = np.full(shape, np.nan if dtype.kind == "f" else 0, dtype)
        for row, record in enumerate(records):
            if v.name in record:
                values[row] = record[v.name]
        return values


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
        in_time = array.dims[:1] == _T
        # Only a quantity that may not have been due can be missing.
        missing = in_time and array.dtype.kind == "f" and name != "time"
        result[str(name)] = {"_FillValue": np.nan if missing else None}
        if in_time:
            row = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:], dtype=np.int64)))
            length = int(np.clip(2**20 // row, 1, min(1024, max(1, n_records))))
            result[str(name)]["chunksizes"] = (length, *array.shape[1:])
    return result
