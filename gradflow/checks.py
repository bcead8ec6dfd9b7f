"""Checks of numbers that a caller gave."""

from __future__ import annotations

import math
import numbers

from gradflow.errors import InvalidInputError, InvalidTypeError


def check_number(
    name: str, value: object, *, above: float | None = None, least: float | None = None, finite: bool = True
) -> None:
    """Refuse what isn't a real number in range."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"Expected {name} to be a number, got {type(value).__name__} {value!r}.")
    number = as_float(value)
    if math.isnan(number) or (finite and math.isinf(number)):
        raise InvalidInputError(f"Expected {name} to be finite, got {value}.")
    if above is not None and not number > above:
        raise InvalidInputError(f"Expected {name} > {above:g}, got {value}.")
    if least is not None and not number >= least:
        raise InvalidInputError(f"Expected {name} ≥ {least:g}, got {value}.")


def as_float(value: numbers.Real) -> float:
    """Convert a real number; infinite where it is beyond float64."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_count(name: str, value: object, *, least: int = 0) -> None:
    """Refuse what isn't an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidTypeError(f"Expected {name} to be an int, got {type(value).__name__} {value!r}.")
    if int(value) < least:
        raise InvalidInputError(f"Expected {name} ≥ {least}, got {value}.")
