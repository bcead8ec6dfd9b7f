"""When what is recorded."""

from __future__ import annotations

import bisect
import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError


@dataclass(frozen=True)
class steps:
    """A cadence in steps: ``save_every=gradflow.steps(10)`` records every tenth step.

    Parameters
    ----------
    n : int
    of : float, optional
        Steps of this size instead of the method's own: the times k·n·of, which a flow hits exactly. They are, bit
        for bit, those of every n-th step of an optimiser that goes through time in steps of `of` (``gd`` with
        that learning rate), so that the records of both can be aligned.

    Examples
    --------
    >>> steps(10)
    steps(n=10, of=None)
    """

    n: int
    of: float | None = None

    def __post_init__(self) -> None:
        check_count("the number of steps", self.n, least=1)
        if self.of is not None:
            check_number("the size of steps", self.of, above=0)


class Cadence(Protocol):
    """A set of times, or of steps, without a state of its own."""

    def next_after(self, t: float) -> float:
        """Return the first time later than t; infinite if there is none."""

    def due_at_step(self, step: int) -> bool:
        """Whether it names this step."""


@dataclass(frozen=True)
class EveryTime:
    """The times k·n·dt, k = 1, 2, 3 and so on, rounded as (k n)·dt."""

    dt: float
    n: int = 1

    def next_after(self, t: float) -> float:
        """Return the next of them, computed and not summed."""
        ratio = t / self.dt / self.n
        if not ratio < 2**52:  # multiples are closer together than times can be
            return math.nextafter(t, math.inf)
        k = math.floor(ratio)
        while k * self.n * self.dt <= t:
            k += 1
        return k * self.n * self.dt

    def due_at_step(self, step: int) -> bool:
        """No step is named."""
        return False


@dataclass(frozen=True)
class AtTimes:
    """Times given one by one, increasing."""

    times: tuple[float, ...]

    def next_after(self, t: float) -> float:
        """Return the next of them."""
        i = bisect.bisect_right(self.times, t)
        return self.times[i] if i < len(self.times) else math.inf

    def due_at_step(self, step: int) -> bool:
        """No step is named."""
        return False


@dataclass(frozen=True)
class EverySteps:
    """The steps k·n, k = 1, 2, 3 and so on."""

    n: int

    def next_after(self, t: float) -> float:
        """No time is named."""
        return math.inf

    def due_at_step(self, step: int) -> bool:
        """Whether the step is a multiple of n."""
        return step % self.n == 0


def cadence(name: str, value: object, t_max: float | None = None) -> Cadence:
    """Read a cadence as a user gives it: a number is time, :class:`steps` is steps, a sequence is times."""
    if isinstance(value, steps):
        return EverySteps(int(value.n)) if value.of is None else EveryTime(float(value.of), int(value.n))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return at_times(name, value, t_max)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(
            f"Expected {name} as a time (a number), gradflow.steps(n) or a sequence of times, got "
            f"{type(value).__name__} {value!r}."
        )
    check_number(name, value, above=0)
    return EveryTime(float(value))


def cadences(name: str, value: object, t_max: float | None = None) -> list[Cadence]:
    """Read a cadence that may be left out, or be one of cadences that were read before."""
    if value is None:
        return []
    if isinstance(value, Sequence) and value and all(hasattr(each, "due_at_step") for each in value):
        return list(value)
    return [cadence(name, value, t_max)]


def at_times(name: str, values: Iterable[float], t_max: float | None) -> AtTimes:
    """Read times given one by one."""
    given: object = values
    try:
        if isinstance(given, str):
            raise TypeError
        times = tuple(float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidTypeError(
            f"Expected {name} as a sequence of times, got {type(values).__name__} {str(values)[:60]}."
        ) from error
    for t in times:
        if not 0 <= t < math.inf:
            raise InvalidInputError(f"Expected {name} to hold finite times ≥ 0, got {t}.")
    for before, after in pairwise(times):
        if after <= before:
            raise InvalidInputError(
                f"Expected {name} to increase strictly, got {before} before {after}. Sort it."
            )
    if t_max is not None and times and times[-1] > t_max * (1 + 1e-9):
        raise InvalidInputError(f"Expected {name} within t_max = {t_max}, got {times[-1]}.")
    return AtTimes(times)


class Schedule:
    """Which groups of quantities are due when.

    Parameters
    ----------
    cadences : mapping of str to sequence of Cadence
        By group. The records are the union.
    always : collection of str
        Groups that are due at each record.

    Attributes
    ----------
    groups : frozenset of str
        All of them.
    """

    def __init__(
        self, cadences: Mapping[str, Sequence[Cadence]], always: Collection[str] = frozenset()
    ) -> None:
        self.cadences = {group: tuple(each) for group, each in cadences.items()}
        self._always = frozenset(always)
        self.groups = frozenset(cadences) | self._always

    def next_time(self, t: float, tol: float) -> float:
        """Return the first time that is named later than t + tol."""
        return min((c.next_after(t + tol) for each in self.cadences.values() for c in each), default=math.inf)

    def due(
        self, t0: float, t1: float, step: int, tol: float, *, at_end: bool
    ) -> list[tuple[float, frozenset[str]]]:
        """Return what is due in a step, by time.

        Parameters
        ----------
        t0, t1 : float
            Begin and end of the step; times in (t0 + tol, t1 + tol] count.
        step : int
            Accepted steps at t1.
        tol : float
        at_end : bool
            Record what is due within the step at its end (a method without an interpolant).

        Returns
        -------
        list of (time, groups)
            In order of time.
        """
        found: dict[float, set[str]] = {}
        for group, each in self.cadences.items():
            for c in each:
                if c.due_at_step(step):
                    found.setdefault(t1, set()).add(group)
                t = c.next_after(t0 + tol)
                while t <= t1 + tol:
                    found.setdefault(t1 if at_end or abs(t - t1) <= tol else t, set()).add(group)
                    if at_end:
                        break
                    t = c.next_after(max(t, t0 + tol))
        return [(t, self._always.union(groups)) for t, groups in sorted(found.items())]
