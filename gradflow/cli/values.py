"""How values are written on a command line: cadences, times, numbers, settings."""

from __future__ import annotations

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import click
import numpy as np

from gradflow.driver import Event, steps
from gradflow.errors import GradflowError, UnknownNameError, suggest
from gradflow.observe.quantities import QUANTITIES


class Written(click.ParamType[Any]):
    """A type of values, by the function that reads one.

    Parameters
    ----------
    name : str
        What the help calls a value.
    read : callable
        From text to value; raises ValueError or a GradflowError.
    expected : str
        What a value looks like, for error messages.
    """

    def __init__(self, name: str, read: Callable[[str], Any], expected: str) -> None:
        self.name, self.read, self.expected = name, read, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a value."""
        if not isinstance(value, str):
            return value
        try:
            return self.read(value)
        except GradflowError as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(f"expected {self.expected}, got {value!r}", param, ctx)


def read_cadence(text: str) -> float | steps | list[float]:
    """Read ``0.5`` (time), ``10steps``, ``10steps@0.01`` (steps of that size), or times.

    Examples
    --------
    >>> read_cadence("10steps@0.01")
    steps(n=10, of=0.01)
    """
    if match := re.fullmatch(r"(\d+)\s*steps?(?:@(.+))?", text):
        return steps(int(match[1]), None if match[2] is None else float(match[2]))
    return read_times(text) if "," in text or ":" in text else float(text)


def read_times(text: str) -> list[float]:
    """Read times separated by commas, or ``log:FIRST:LAST:N`` for N times spaced evenly in their logarithm.

    Examples
    --------
    >>> read_times("log:0.1:10:3")
    [0.1, 1.0, 10.0]
    """
    if not text.startswith("log:"):
        return [float(part) for part in text.split(",")]
    first, last, n = text.removeprefix("log:").split(":")
    if not 0 < float(first) < float(last) < math.inf or int(n) < 2:
        raise ValueError(text)
    times: list[float] = np.geomspace(float(first), float(last), int(n)).tolist()
    return times


def read_event(text: str) -> Event:
    """Read ``NAME=VALUE``: where a quantity crosses a value; ``:rising`` or ``:falling`` says how, ``!`` ends the run.

    Examples
    --------
    >>> event = read_event("sharpness=20:rising!")
    >>> event.quantity, event.threshold, event.direction, event.terminal
    ('sharpness', 20.0, 'rising', True)
    """
    match = re.fullmatch(r"([^=]+)=([^:!]+)(?::(rising|falling))?(!?)", text)
    if match is None:
        raise ValueError(text)
    name, value, direction, terminal = match.groups()
    if name not in QUANTITIES:
        raise UnknownNameError(f"No quantity {name!r}; {suggest(name, QUANTITIES)}")
    return Event(name, float(value), direction=cast(Any, direction or "either"), terminal=bool(terminal))


def name_events(events: Sequence[Event]) -> list[Event]:
    """Rename events of one quantity from the second on: loss, loss_2, …, so that each has a variable of its own.

    Examples
    --------
    >>> [event.name for event in name_events([read_event("loss=0.1"), read_event("loss=0.01")])]
    ['loss', 'loss_2']
    """
    found: list[Event] = []
    for event in events:
        n = 1 + sum(other.quantity == event.quantity for other in found)
        found.append(event if n == 1 else replace(event, name=f"{event.name}_{n}"))
    return found


def read_numbers(text: str) -> Any:
    """Read a number, or several separated by commas; ``none`` is None.

    Examples
    --------
    >>> read_numbers("none,0.25")
    (None, 0.25)
    """
    numbers = tuple(None if part.strip() == "none" else float(part) for part in text.split(","))
    return numbers if len(numbers) > 1 else numbers[0]


def read_settings(text: str) -> dict[str, float | int]:
    """Read names with numbers, the options of a library's solver.

    Examples
    --------
    >>> read_settings("safety=0.8,ifactor=2")
    {'safety': 0.8, 'ifactor': 2}
    """
    pairs = [part.split("=") for part in text.split(",")]
    return {name.strip(): int(x) if x.strip().lstrip("-").isdigit() else float(x) for name, x in pairs}


def read_anything(text: str) -> Any:
    """Read a number, several, or else the text itself."""
    try:
        return read_numbers(text)
    except ValueError:
        return text


_TIMES = "1,2,5 or log:0.1:100:31 (31 of them)"
CADENCE = Written(
    "cadence",
    read_cadence,
    f"a time such as 0.5, steps such as 10steps or 10steps@0.01 (of that size), or times such as {_TIMES}",
)
TIMES = Written("t1,t2,…", read_times, f"times such as {_TIMES}")
EVENT = Written(
    "event", read_event, "NAME=VALUE[:rising|:falling][!], such as sharpness=20:rising! or loss=0.1"
)
NUMBERS = Written("x1,x2,…", read_numbers, "a number, or several separated by commas")
SETTINGS = Written("name=number,…", read_settings, "name=number, separated by commas")
ANYTHING = Written("value", read_anything, "a value")


def members(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def type_of(hint: Any) -> click.ParamType[Any]:
    """Return how a value of a type is written.

    Examples
    --------
    >>> type_of(tuple[float, float] | None).name, type_of(int | None).name
    ('x1,x2,…', 'integer')
    """
    kinds = [kind for kind in members(hint) if kind is not type(None)]
    origins = {typing.get_origin(kind) for kind in kinds}
    literals = [
        each for kind in kinds if typing.get_origin(kind) is Literal for each in typing.get_args(kind)
    ]
    for applies, made in (
        (steps in kinds, CADENCE),
        (bool in kinds, click.BOOL),
        (literals, click.Choice(literals)),
        (Sequence in origins, TIMES),
        (os.PathLike in origins, click.Path(path_type=Path)),
        (Mapping in origins, SETTINGS),
        (tuple in origins, NUMBERS),
        (str in kinds and float in kinds, click.STRING),  # a number as text
        (float in kinds, click.FLOAT),
        (int in kinds, click.INT),
        (str in kinds, click.STRING),
    ):
        if applies:
            return made
    return ANYTHING


def shown_type(kind: click.ParamType[Any]) -> str:
    """Return what the help calls values of a type."""
    return "|".join(map(str, kind.choices)) if isinstance(kind, click.Choice) else kind.name


def parameter_docs(documented: object) -> dict[str, str]:
    r"""Return what a function, or a class and its bases, say of their parameters: text by name.

    The *Parameters* sections of numpydoc docstrings are read; a class has the last word over its bases.

    Examples
    --------
    >>> def f(a): 'Summary.\n\nParameters\n----------\na : int\n    First. More.'
    >>> parameter_docs(f)
    {'a': 'First. More.'}
    """
    found: dict[str, str] = {}
    for each in reversed(getattr(documented, "__mro__", (documented,))):
        doc = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Parameters\n-+\n(.*?)(?:\n\S[^\n]*\n-+\n|\Z)", doc, re.DOTALL | re.MULTILINE)
        for entry in re.split(r"\n(?=\S)", section[1] if section else ""):
            head, _, body = entry.partition("\n")
            for name in head.partition(" : ")[0].replace("*", "").split(", "):
                found[name] = " ".join(body.split())
    return found


def without_markup(text: str) -> str:
    """Drop the markup of a docstring."""
    return re.sub(r":\w+:(?=`)|`", "", text)


def first_sentence(text: str) -> str:
    """Return the first sentence, and the one that names the default.

    Examples
    --------
    >>> first_sentence("Cadence of θ. A number is time. Default: 0.5. Else never.")
    'Cadence of θ. Default: 0.5.'
    """
    found = re.match(r".*?[.](?=\s|$)", text)
    said = found[0] if found else text
    default = re.search(r"Default: [^.]*(?:\.\d[^.]*)*\.", text)
    return f"{said} {default[0]}" if default and default[0] not in said else said
