"""Events: where a quantity crosses a value."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.optimize import brentq

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.status import Status

#: Part of a step to which an event is located.
_WITHIN = 1e-6


@dataclass(frozen=True)
class Event:
    """Where a quantity crosses a value.

    Along a flow it is located within the step, by the method's interpolant or, for a method without one, by shorter
    steps, to 1e-6 of the step. An optimiser has events at its steps. Where steps see mini-batches, events are looked
    for at the records. A quantity that crosses twice within one step has no event there. The state at an event is a
    record with all quantities, in which the variable ``event_NAME`` is 1.

    Parameters
    ----------
    quantity : str or callable
        ``"loss"``, ``"accuracy"``, ``"gradient_norm"`` or ``"sharpness"``; or a function of the observed point that
        gives a number: ``lambda point: point.theta.norm()``. It is evaluated after every step: the sharpness costs
        a few products with the Hessian there.
    threshold : float, default 0.0
        The value that is crossed.
    direction : {"either", "rising", "falling"}
        Which crossings count.
    terminal : bool, default False
        End the run there.
    name : str, optional
        Default: that of the quantity.

    Examples
    --------
    Gradient flow up to where gradient descent with learning rate 0.1 would leave it:

    >>> import torch, gradflow
    >>> sharpening = lambda x: 0.5 * (x[0] * x[1] - 3) ** 2 + 0.5 * (x[1] - x[0]) ** 2
    >>> run = gradflow.integrate(
    ...     sharpening, torch.tensor([1.0, 1.0], dtype=torch.float64), method="rk4", t_max=10.0,
    ...     events=[gradflow.Event("sharpness", 5.0, direction="rising", terminal=True)],
    ... )
    >>> run.attrs["status"], int(run.event_sharpness[-1])
    ('event', 1)
    """

    quantity: str | Callable[[Any], Any]
    threshold: float = 0.0
    direction: Literal["either", "rising", "falling"] = field(default="either", kw_only=True)
    terminal: bool = field(default=False, kw_only=True)
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.quantity, str) and not callable(self.quantity):
            raise InvalidTypeError(
                "Expected an event's quantity as a name or a function of the observed point, got "
                f"{type(self.quantity).__name__}."
            )
        check_number("the threshold of an event", self.threshold)
        if not isinstance(self.terminal, bool):
            raise InvalidTypeError(f"Expected terminal as True or False, got {self.terminal!r}.")
        if self.direction not in {"either", "rising", "falling"}:
            raise InvalidInputError(
                f'Expected direction as "either", "rising" or "falling", got {self.direction!r}.'
            )
        if not self.name:
            called = self.quantity if isinstance(self.quantity, str) else _name_of(self.quantity)
            object.__setattr__(self, "name", called)
        if not isinstance(self.name, str) or not re.fullmatch(r"\w+", self.name):
            raise InvalidInputError(f"Expected an event's name of letters, digits and _, got {self.name!r}.")

    @property
    def variable(self) -> str:
        """Name of the variable that is 1 where it happened."""
        return f"event_{self.name}"

    @property
    def status(self) -> Status:
        """How the run ends if it is terminal."""
        return Status.EVENT

    def crosses(self, before: float, after: float) -> bool:
        """Whether the value crosses the threshold between two values of quantity − threshold."""
        rises = before < 0 <= after
        falls = before > 0 >= after
        return (rises and self.direction != "falling") or (falls and self.direction != "rising")

    def settings(self) -> dict[str, Any]:
        """Return the options by name."""
        quantity = self.quantity if isinstance(self.quantity, str) else _name_of(self.quantity)
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return options | {"quantity": quantity}

    def describe(self) -> str:
        """Return what happens, in words."""
        verb = {"either": "crosses", "rising": "rises to", "falling": "falls to"}[self.direction]
        return f"{self.name} {verb} {self.threshold:g}"


@dataclass(frozen=True)
class Goal(Event):
    """A terminal event that counts at the run's start as well, ends it with a status of its own, and isn't recorded."""

    ending: Status = field(default=Status.EVENT, kw_only=True)

    @property
    def variable(self) -> str:
        """None: the run's status tells."""
        return ""

    @property
    def status(self) -> Status:
        """That of the goal."""
        return self.ending

    def reached(self, value: float) -> bool:
        """Whether a value of quantity − threshold is at the goal or beyond."""
        return value <= 0 if self.direction == "falling" else value >= 0


@dataclass(frozen=True)
class Occurrence:
    """An event that happened.

    Attributes
    ----------
    t : float
    event : Event
    """

    t: float
    event: Event


class _NoNumberError(Exception):
    """A quantity is NaN."""


class EventTracker:
    """Watches the quantities of events from step to step.

    Parameters
    ----------
    events : sequence of Event
    evaluate : callable
        ``evaluate(quantity, snapshot)`` gives a quantity's value at a state of the run.
    """

    def __init__(self, events: Sequence[Event], evaluate: Callable[[Any, Any], float]) -> None:
        self.events = tuple(events)
        self._evaluate = evaluate
        self._before: tuple[float, ...] = ()

    def values(self, snapshot: Any) -> tuple[float, ...]:
        """Return quantity − threshold of every event."""
        return tuple(self._evaluate(e.quantity, snapshot) - e.threshold for e in self.events)

    def begin(self, snapshot: Any) -> Goal | None:
        """Take the state to start from; return the goal that it is at already, if any."""
        self._before = self.values(snapshot)
        pairs = zip(self.events, self._before, strict=True)
        return next((e for e, value in pairs if isinstance(e, Goal) and e.reached(value)), None)

    def look(self, t0: float, t1: float, end: Any, within: Callable[[float], Any] | None) -> list[Occurrence]:
        """Return what happened between two states, in order of time, up to the first that ends the run.

        Parameters
        ----------
        t0, t1 : float
        end : snapshot
            The state at t1.
        within : callable or None
            The state at a time between; None where only the end can be looked at.
        """
        if not self.events:
            return []
        before, now = self._before, self.values(end)
        # Where there is no number, the last one counts: a crossing is seen when there is one again.
        self._before = tuple(g0 if math.isnan(g1) else g1 for g0, g1 in zip(before, now, strict=True))
        found = []
        for event, g0, g1 in zip(self.events, before, now, strict=True):
            if event.crosses(g0, g1):
                t = t1 if within is None or g1 == 0 else self._locate(event, t0, t1, within, g0, g1)
                found.append(Occurrence(t, event))
        found.sort(key=lambda each: each.t)
        ends = next((i for i, each in enumerate(found) if each.event.terminal), len(found))
        last = found[ends].t if ends < len(found) else math.inf
        return [each for each in found if each.t <= last]

    def _locate(
        self, event: Event, t0: float, t1: float, within: Callable[[float], Any], g0: float, g1: float
    ) -> float:
        """Return the time of a crossing; the end where the quantity isn't a number in between."""
        known = {0.0: g0, 1.0: g1}

        def g(s: float) -> float:
            if s not in known:
                known[s] = self._evaluate(event.quantity, within(t0 + s * (t1 - t0))) - event.threshold
            if math.isnan(known[s]):
                raise _NoNumberError
            return known[s]

        try:
            root = float(brentq(g, 0.0, 1.0, xtol=_WITHIN / 4, rtol=_WITHIN / 4))
        except _NoNumberError:
            return t1
        s = root if g(root) * g1 >= 0 else min(1.0, root + _WITHIN / 2)  # where it has crossed
        return t1 if s == 1.0 else t0 + s * (t1 - t0)

    def state_dict(self) -> tuple[float, ...]:
        """Return the last values."""
        return self._before

    def load_state_dict(self, state: Iterable[float]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._before = tuple(state)


def check_events(events: object) -> tuple[Event, ...]:
    """Check the events that a user gave.

    Raises
    ------
    InvalidInputError, InvalidTypeError
    """
    if isinstance(events, Event):
        events = (events,)
    if isinstance(events, str | Mapping) or not isinstance(events, Iterable):
        raise InvalidTypeError(
            f"Expected events as a sequence of gradflow.Event, got {type(events).__name__}."
        )
    found = tuple(events)
    for event in found:
        if not isinstance(event, Event):
            raise InvalidTypeError(
                f"Expected events as gradflow.Event(…), got {type(event).__name__} {event!r}."
            )
    names = [event.name for event in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"Two events have the name {twice[0]!r}: give each its own, with name=….")
    return found


def _name_of(function: Callable[..., Any]) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return name if re.fullmatch(r"\w+", name) else "function"
