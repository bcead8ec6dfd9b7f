"""Values made of a class and its options by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from gradflow.errors import InvalidTypeError, UnknownOptionError, suggest

T = TypeVar("T")


def option_names(cls: type) -> set[str]:
    """Return the names of the options of a dataclass."""
    return {field.name for field in dataclasses.fields(cls)}


def build(cls: type[T], what: str, options: Mapping[str, Any], also: Iterable[str] = ()) -> T:
    """Make an instance of a dataclass of options.

    Parameters
    ----------
    cls : type
    what : str
        What it is, for messages: ``Method 'rk4'``.
    options : mapping
        By name.
    also : iterable of str
        Other names, to suggest where an unknown option looks like one of them.

    Raises
    ------
    UnknownOptionError
        The message lists what exists.
    InvalidTypeError
        If one without a default is missing.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in options:
        if name not in fields:
            raise UnknownOptionError(f"{what} has no option {name!r}; {suggest(name, fields, also)}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in options
    ]
    if required:
        raise InvalidTypeError(f"{what} needs {', '.join(required)}: pass {required[0]}=…")
    return cls(**options)
