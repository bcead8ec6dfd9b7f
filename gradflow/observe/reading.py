"""Observers as a user gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.observe.base import Observer
from gradflow.observe.density import Density
from gradflow.observe.eigenvalues import EffectiveEigenvalues
from gradflow.observe.error_estimate import ErrorEstimate
from gradflow.observe.function import FunctionObserver
from gradflow.observe.parameters import Parameters
from gradflow.observe.point import ObservedPoint
from gradflow.observe.projections import Projections
from gradflow.observe.run_state import RunState
from gradflow.observe.scalars import Scalars
from gradflow.observe.test_set import TestSet
from gradflow.variable import Variable

Function = Callable[[ObservedPoint], Any]
#: Observers as a user gives them: instances, or functions by the name of what they measure.
Observed = Mapping[str, Function | Observer] | Sequence[Observer | Mapping[str, Function]]

#: Variables of gradflow's own, which are in a file or may be.
OURS: frozenset[str] = frozenset({"x", "params", "params_initial"}).union(
    RunState.all_variables,
    Parameters.all_variables,
    ErrorEstimate.all_variables,
    *(o.variables for o in (Scalars, TestSet, EffectiveEigenvalues, Density, Projections)),
)


def read_observers(observe: object) -> list[Observer]:
    """Read the argument `observe`, which should be :data:`Observed`, or None.

    Raises
    ------
    InvalidTypeError
        For what is neither an observer nor a mapping of functions.
    """
    if observe is None:
        return []
    if isinstance(observe, Mapping):
        return [_named(name, each) for name, each in observe.items()]
    if isinstance(observe, Iterable) and not isinstance(observe, str):
        found: list[Observer] = []
        for each in observe:
            found += read_observers(each) if isinstance(each, Mapping) else [_instance(each)]
        return found
    if isinstance(observe, Observer) or callable(observe):
        raise InvalidTypeError(
            "Expected observe as a sequence of observers or a mapping of names to functions, got one alone. Put it "
            "into a list, or a function under a name: observe={'name': function}."
        )
    raise InvalidTypeError(
        f"Expected observe as a sequence of observers or a mapping of names to functions, got {type(observe).__name__}."
    )


def _named(name: object, each: object) -> Observer:
    if not isinstance(name, str):
        raise InvalidTypeError(f"Expected the names in observe as str, got {type(name).__name__} {name!r}.")
    if isinstance(each, Observer) or (isinstance(each, type) and issubclass(each, Observer)):
        return _instance(each)
    if not callable(each):
        raise InvalidTypeError(
            f"Expected observe[{name!r}] as a function of the point, got {type(each).__name__} {each!r}."
        )
    return FunctionObserver(name, each)


def _instance(each: object) -> Observer:
    if isinstance(each, Observer):
        return each
    if isinstance(each, type) and issubclass(each, Observer):
        raise InvalidTypeError(f"Expected an observer as an instance, got the class: {each.__name__}(…).")
    raise InvalidTypeError(
        f"Expected observe to hold instances of gradflow.Observer, got {type(each).__name__}. Derive its class from "
        "it; put functions into a mapping, {'name': function}."
    )


def name_observers(
    ours: Iterable[Observer], theirs: Iterable[Observer], events: Iterable[str] = ()
) -> dict[str, Observer]:
    """Name the observers of a run, each its own; check the variables of those that aren't ours.

    Parameters
    ----------
    ours, theirs : iterable of Observer
    events : iterable of str
        Variables of events, whose names are taken too.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If a name can't be a variable's or is taken, or a dimension can't be one.
    """
    named: dict[str, Observer] = {observer.name: observer for observer in ours}
    owners = dict.fromkeys(OURS, "gradflow") | dict.fromkeys(events, "an event")
    for observer in theirs:
        base = name = observer.name or type(observer).__name__
        n = 1
        while name in named:
            n += 1
            name = f"{base} {n}"
        named[name] = observer
        if not isinstance(observer.variables, Mapping):
            raise InvalidTypeError(
                f"Expected the variables of {name} as a mapping of names to gradflow.Variable, got "
                f"{type(observer.variables).__name__}."
            )
        for variable, row in (*observer.variables.items(), *_coordinates(name, observer)):
            _check_variable(name, variable, row, owners)
            owners[variable] = name
    for name, observer in named.items():
        _check_dims(name, observer, owners)
    return named


def _coordinates(name: str, observer: Observer) -> list[tuple[str, Variable]]:
    rows = []
    for dim, (row, values) in observer.coordinates.items():
        if row.dims != (dim,) or np.ndim(values) != 1 or np.asarray(values).dtype.kind not in "biuf":
            raise InvalidInputError(
                f"Expected the coordinate {dim!r} of {name} with the dimension {dim!r} and a row of numbers, got the "
                f"dimensions {row.dims} and shape {np.shape(values)}."
            )
        rows.append((dim, row))
    return rows


def _check_variable(name: str, variable: object, row: object, owners: Mapping[str, str]) -> None:
    if not isinstance(variable, str) or not variable.isidentifier():
        raise InvalidInputError(
            f"Expected the variables of {name} to have names of letters, digits and _, got {variable!r}."
        )
    if not isinstance(row, Variable):
        raise InvalidTypeError(
            f"Expected the variable {variable!r} of {name} as a gradflow.Variable, got {type(row).__name__}."
        )
    if variable in owners:
        raise InvalidInputError(
            f"{name} records {variable!r}, which is a variable of {owners[variable]}. Give it another name."
        )
    if not isinstance(row.long_name, str) or not isinstance(row.units, str):
        raise InvalidTypeError(
            f"Expected long_name and units of {variable!r} of {name} as text, got {row.long_name!r} and {row.units!r}."
        )
    if row.dtype not in {None, "float32", "float64"}:
        raise InvalidInputError(
            f'Expected the dtype of {variable!r} of {name} as "float32", "float64" or None, that of θ: what isn\'t '
            f"measured is NaN; got {row.dtype!r}."
        )


def _check_dims(name: str, observer: Observer, owners: Mapping[str, str]) -> None:
    for variable, row in observer.variables.items():
        if not isinstance(row.dims, tuple) or not all(
            isinstance(dim, str) and dim.isidentifier() for dim in row.dims
        ):
            raise InvalidTypeError(
                f"Expected the dims of {variable!r} of {name} as a tuple of names, got {row.dims!r}."
            )
        if len(set(row.dims)) < len(row.dims):
            raise InvalidInputError(f"Expected the dims of {variable!r} of {name} to differ, got {row.dims}.")
        for dim in row.dims:
            if dim == "time":
                raise InvalidInputError(
                    f"Expected the dims of {variable!r} of {name} without time, which all have; got {row.dims}."
                )
            if dim in owners and dim != "x" and dim not in observer.coordinates:
                raise InvalidInputError(
                    f"{dim!r} is a dimension of {variable!r} of {name}, and a variable of {owners[dim]}. Give one of "
                    "them another name."
                )
