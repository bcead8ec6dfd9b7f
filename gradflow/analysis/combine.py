"""Several runs as one dataset."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from gradflow.errors import InvalidInputError, InvalidTypeError

#: Dimension of the records of combined runs, each of which has times of its own.
RECORD = "record"


def combine(runs: Iterable[xr.Dataset] | Mapping[Any, xr.Dataset], dim: str = "lr") -> xr.Dataset:
    """Put several runs into one dataset: those of a sweep over learning rates, for example.

    Parameters
    ----------
    runs : iterable or mapping of Dataset
        A mapping gives each run's value along `dim`. Of others it is looked up in their configuration: an option
        of the method, such as ``lr``, or else ``seed``, ``batch_size``, ``method``, ….
    dim : str, default "lr"
        Name of the new dimension.

    Returns
    -------
    xarray.Dataset
        What had the dimension ``time`` has (`dim`, ``record``), the two-dimensional coordinate ``time`` included;
        shorter runs are filled up with NaN, which makes floats of counts. What is per run (``params``) has `dim`, and
        so do attributes in which the runs differ, such as ``stability_threshold``; the others stay attributes.

    Raises
    ------
    InvalidInputError
        If a run's value can't be found, two are equal, or the runs don't fit together.

    Examples
    --------
    >>> import torch, gradflow
    >>> runs = [
    ...     gradflow.integrate(lambda x: (x**2).sum(), torch.ones(1), method="gd", lr=lr, t_max=1.0)
    ...     for lr in (0.25, 0.5)
    ... ]
    >>> gradflow.combine(runs).time.values
    array([[0.  , 0.25, 0.5 , 0.75, 1.  ],
           [0.  , 0.5 , 1.  ,  nan,  nan]])
    """
    one: object = runs
    if isinstance(one, xr.Dataset):  # which is a mapping as well
        raise InvalidTypeError("Expected several runs, got one Dataset. Put it in a list.")
    given = list(runs.values() if isinstance(runs, Mapping) else runs)
    for run in given:
        if not isinstance(run, xr.Dataset):
            raise InvalidTypeError(f"Expected runs as xarray.Dataset, got {type(run).__name__}.")
    named = dict(runs) if isinstance(runs, Mapping) else _by_value(given, dim)
    if not named:
        raise InvalidInputError("Expected at least one run to combine, got none.")
    for value, run in named.items():
        if "time" not in run.dims:
            raise InvalidInputError(
                f"Expected a run of gradflow, with records over time, at {dim} = {value}."
            )
        if dim in run.dims or dim in run.variables:
            raise InvalidInputError(f"The runs have a variable {dim!r} already. Choose another name for dim.")
    parts = [run.swap_dims(time=RECORD) for run in named.values()]
    sizes = {name: max(p.sizes.get(name, 0) for p in parts) for p in parts for name in p.dims}
    filled = [_filled(part.drop_attrs(deep=False), sizes) for part in parts]
    along = xr.IndexVariable(dim, list(named))
    try:
        result = xr.concat(filled, along, data_vars="all", coords="different", join="exact", compat="equals")
    except ValueError as error:
        raise InvalidInputError(f"The runs don't fit together: {error}") from error
    # Whoever asks for an attribute of all gets it; one in which they differ has a value for each.
    everywhere = [name for name in parts[0].attrs if all(name in part.attrs for part in parts)]
    for name in everywhere:
        values = [part.attrs[name] for part in parts]
        if all(value == values[0] for value in values):
            result.attrs[name] = values[0]
        elif name not in result.variables:
            result[name] = dim, np.array(values)
    return result


def separate(combined: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Return the runs of a combined dataset one by one, named by their value."""
    dim = next(name for name in combined.time.dims if name != RECORD)
    for value in combined[dim].values:
        run = combined.sel({dim: value}).dropna(RECORD, subset=["time"]).swap_dims({RECORD: "time"})
        own: dict[Hashable, Any] = {
            name: array.item() for name, array in run.data_vars.items() if combined[name].dims == (dim,)
        }
        yield f"{dim} = {value:g}" if isinstance(value, float) else f"{dim} = {value}", run.assign_attrs(own)


def _filled(run: xr.Dataset, sizes: Mapping[Hashable, int]) -> xr.Dataset:
    missing = {name: (0, sizes[name] - n) for name, n in run.sizes.items() if n < sizes[name]}
    return run.pad(missing) if missing else run


def _by_value(runs: Iterable[xr.Dataset], dim: str) -> dict[Any, xr.Dataset]:
    named: dict[Any, xr.Dataset] = {}
    for run in runs:
        value = _value(run, dim)
        if value in named:
            raise InvalidInputError(
                f"Two runs have {dim} = {value}. Combine them along what they differ in, or give a mapping."
            )
        named[value] = run
    return named


def _value(run: xr.Dataset, dim: str) -> Any:
    try:
        config = json.loads(run.attrs["gradflow_config"])
    except (KeyError, ValueError):
        config = {}
    for place in (config.get("options", {}), config.get("loss", {}), config):
        if place.get(dim) is not None:
            return place[dim]
    raise InvalidInputError(
        f"Expected {dim} in the record of every run, but one has none. Give a mapping of its values to the runs, "
        "{0.01: run, …}."
    )
