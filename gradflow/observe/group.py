"""All that is measured in a run. Measuring reads the run, and never writes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gradflow.driver import Snapshot
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.flows import Field
from gradflow.observe.base import Observer
from gradflow.observe.midpoint import Midpoints
from gradflow.observe.point import ObservedPoint
from gradflow.observe.quantities import evaluate
from gradflow.observe.run_state import RunState
from gradflow.spectrum import SpectrumService
from gradflow.variable import Variable


class Observers:
    """The observers of a run, with fields of their own for what the run doesn't know.

    Parameters
    ----------
    fields : sequence of Field
        The observers' own: their cost is what measuring takes, and is not the method's. The first is that of the run's
        loss and flow, others are those of a part of the data.
    observers : mapping of str to Observer
        By the names under which they are due.
    n_parameters : int
    events : mapping of str to str, optional
        Variables of events, with what happens there in words.
    midpoints : Midpoints, optional
        Where observers at the midpoint measure.

    Attributes
    ----------
    variables : dict of str to Variable
        All that is recorded, by name. Those of functions get their dimensions with the first record.
    coordinates : dict of str to (Variable, array)
        Those of all observers.
    sizes : dict of str to int
        Of the dimensions, as far as they are known: by the first record all are.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        observers: Mapping[str, Observer],
        n_parameters: int,
        events: Mapping[str, str] | None = None,
        midpoints: Midpoints | None = None,
    ) -> None:
        self._fields = tuple(fields)
        self._observers = dict(observers)
        self._midpoints = midpoints
        self._run_state = RunState(self._fields[0].flow.third_derivatives, events or {})
        self._service = SpectrumService(self._fields[0].loss)  # of the points: ours keep their own bases
        self.variables: dict[str, Variable] = {}
        self.coordinates = {name: each for o in observers.values() for name, each in o.coordinates.items()}
        self.sizes = {"param": n_parameters}
        self.sizes |= {name: len(values) for name, (_, values) in self.coordinates.items()}
        self._begun = False
        self._last: ObservedPoint | None = None
        self._check_names()
        self._declare()

    @property
    def n_gradients(self) -> int:
        """Gradients that measuring has taken."""
        return sum(field.cost.n_gradients for field in self._fields)

    @property
    def n_hvps(self) -> int:
        """Hessian–vector products that measuring has taken."""
        return sum(field.cost.n_hvps for field in self._fields)

    @property
    def n_third(self) -> int:
        """Products with the Hessian's derivative that measuring has taken."""
        return sum(field.cost.n_third for field in self._fields)

    def state_dict(self) -> dict[str, Any]:
        """Return what later measurements depend on: bases that eigensolves start from, random numbers, counts."""
        each = {name: observer.state_dict() for name, observer in self._observers.items()}
        for name, state in each.items():
            _check_plain(name, state)
        state = {
            "fields": [field.state_dict() for field in self._fields],
            "service": self._service.state_dict(),
            "sizes": dict(self.sizes),
            "each": each,
        }
        return state if self._midpoints is None else state | {"midpoints": self._midpoints.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for field, saved in zip(self._fields, state["fields"], strict=True):
            field.load_state_dict(saved)
        self._service.load_state_dict(state["service"])
        self.sizes.update(state["sizes"])
        for name, observer in self._observers.items():
            observer.load_state_dict(state["each"][name])
        if self._midpoints is not None:
            self._midpoints.load_state_dict(state["midpoints"])
        self._begun = True
        self._declare()

    def measure(self, snapshot: Snapshot, due: Collection[str]) -> dict[str, Any]:
        """Measure what is due; time, step and cost always."""
        point = self._point(snapshot)
        values = self._run_state.measure(point)
        for name, observer in self._observers.items():
            if name in due and not observer.at_midpoint:
                values |= self._values(name, observer, point)
        if self._midpoints is not None:
            self._midpoints.wait(snapshot, [name for name in due if self._observers[name].at_midpoint])
        if not self._begun:
            self._check_sizes()
            self._begun = True
        return {name: value for name, value in values.items() if not _is_nan(value)}

    def follow(self, z: Tensor) -> dict[str, Any]:
        """See where a step led; return what could not be measured at the record made last before that is known."""
        found = None if self._midpoints is None else self._midpoints.follow(z)
        if found is None:
            return {}
        midpoint, due = found
        values: dict[str, Any] = {}
        for name, observer in self._observers.items():
            if name in due:
                values |= self._values(name, observer, midpoint)
        return {name: value for name, value in values.items() if not _is_nan(value)}

    def quantity(self, quantity: str | Callable[[Any], Any], snapshot: Snapshot) -> float:
        """Evaluate the quantity of an event."""
        try:
            return evaluate(quantity, self._point(snapshot))
        except Exception as error:
            error.add_note(f"Raised by the quantity of an event at t = {snapshot.t:.6g}.")
            raise

    def forget(self) -> None:
        """Let the last point go: the graphs that it holds take memory that the next step needs."""
        self._last = None

    def _point(self, snapshot: Snapshot) -> ObservedPoint:
        """Return a snapshot as observers see it; events and records of one snapshot share what is computed there."""
        if self._last is None or self._last.snapshot is not snapshot:
            self._last = ObservedPoint(self._fields[0], snapshot, self._service)
        return self._last

    def _values(self, name: str, observer: Observer, point: ObservedPoint) -> dict[str, Any]:
        """Measure by one observer, and check what it gives."""
        try:
            given = observer.measure(point)
        except Exception as error:
            error.add_note(f"Raised by the observer {name!r} at t = {point.t:.6g}.")
            raise
        if not isinstance(given, Mapping):
            raise InvalidTypeError(
                f"Expected {name}.measure to return a mapping of variables to values, got {type(given).__name__}."
            )
        if not self._begun:  # a function's variable has its dimensions with its first value
            self._declare()
        values = {}
        for variable, value in given.items():
            if variable not in observer.variables:
                declared = ", ".join(observer.variables) or "none"
                raise InvalidInputError(
                    f"{name}.measure returned {variable!r}, which isn't among its variables: {declared}. Declare it "
                    "there with a gradflow.Variable."
                )
            values[variable] = self._fitted(f"{name}: {variable!r}", value, observer.variables[variable].dims)
        return values

    def _fitted(self, what: str, value: Any, dims: tuple[str, ...]) -> float | np.ndarray:
        """Return a value as a float or an array of the sizes of its dimensions, which the first one sets."""
        array = _as_array(what, value)
        if array.ndim != len(dims):
            shape = f"dimensions {dims}" if dims else "no dimensions, a number"
            raise InvalidInputError(f"Expected {what} with {shape}, got shape {array.shape}.")
        for dim, size in zip(dims, array.shape, strict=True):
            if self.sizes.setdefault(dim, size) != size:
                raise InvalidInputError(
                    f"Expected {what} of size {self.sizes[dim]} along {dim!r}, as that dimension has had so far, got "
                    f"{size}. A dimension has one size in all variables and records; give another one another name."
                )
        return array if dims else array.item()

    def _check_sizes(self) -> None:
        """Refuse variables whose dimensions the first record doesn't give."""
        for name, variable in self.variables.items():
            unknown = [dim for dim in variable.dims if dim not in self.sizes]
            if unknown:
                raise InvalidInputError(
                    f"The first record has no {name!r}, so that the size of its dimension {unknown[0]!r} isn't known. "
                    "Return NaN of its shape where there is no value yet."
                )

    def _declare(self) -> None:
        for observer in (*self._observers.values(), self._run_state):
            self.variables.update(observer.variables)

    def _check_names(self) -> None:
        """Refuse variables that two record, such as an observer and the flow, or an event."""
        owners = dict.fromkeys(self._run_state.variables, "the run or an event")
        for name, observer in self._observers.items():
            for variable in observer.variables:
                if owners.setdefault(variable, name) != name:
                    raise InvalidInputError(
                        f"{name} records {variable!r}, which is a variable of {owners[variable]}. Give it another name."
                    )


def _as_array(what: str, value: Any) -> np.ndarray:
    """Copy a value to an array of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.double() if value.dtype.itemsize < 4 and value.is_floating_point() else value
        value = value.resolve_conj().resolve_neg().numpy()
    try:
        array = np.array(value)
    except ValueError:  # rows of several lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        raise InvalidTypeError(
            f"Expected {what} as a number, an array or a tensor of real numbers, got {type(value).__name__} "
            f"{str(value)[:60]}."
        )
    return array


def _check_plain(name: str, state: object) -> None:
    """Refuse a state that a checkpoint could hold, but not give back."""
    if isinstance(state, Mapping):
        state = [*state.keys(), *state.values()]
    if isinstance(state, list | tuple):
        for part in state:
            _check_plain(name, part)
    elif not (
        state is None
        or isinstance(state, bool | int | float | complex | str | Tensor | np.ndarray | np.generic)
        or dataclasses.is_dataclass(state)
    ):
        raise InvalidTypeError(
            f"Expected the state of the observer {name!r} in dicts, lists and tuples of tensors, arrays, numbers and "
            f"strings, which a checkpoint can hold, got {type(state).__name__}."
        )


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
