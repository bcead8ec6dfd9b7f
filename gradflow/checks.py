"""Checks of numbers that a caller gave."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable

from gradflow.errors import InvalidInputError, InvalidTypeError


def check_number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    finite: bool = True,
) -> float:
    """Return a real number as a float; refuse what isn't one in range.

    Parameters
    ----------
    name : str
        Of the argument, for the message.
    value : object
    above, least, below, most : float
        Bounds: > above, ≥ least, < below, ≤ most.
    finite : bool
        Refuse the infinite, too.

    Raises
    ------
    InvalidTypeError, InvalidInputError

    Examples
    --------
    >>> check_number("momentum", 0.9, least=0, below=1)
    0.9
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"Expected {name} to be a number, got {type(value).__name__} {value!r}.")
    number = as_float(value)
    if math.isnan(number) or (finite and math.isinf(number)):
        raise InvalidInputError(f"Expected {name} to be finite, got {value}.")
    for sign, bound, holds in (
        (">", above, number > above or above == -math.inf),
        ("≥", least, number >= least),
        ("<", below, number < below or below == math.inf),
        ("≤", most, number <= most),
    ):
        if not holds:
            raise InvalidInputError(f"Expected {name} {sign} {bound:g}, got {value}.")
    return number


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse what isn't one of some names.

    Raises
    ------
    InvalidInputError
    """
    names = list(choices)
    if value not in names:
        raise InvalidInputError(f"Expected {name} as one of {', '.join(names)}, got {value!r}.")


def as_float(value: numbers.Real) -> float:
    """Convert a real number; infinite where it is beyond float64."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_count(name: str, value: object, *, least: int = 0) -> int:
    """Return an int; refuse what isn't one of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"Expected {name} to be an int, got {type(value).__name__} {value!r}.")
    if int(value) < least:
        raise InvalidInputError(f"Expected {name} ≥ {least}, got {value}.")
    return int(value)
