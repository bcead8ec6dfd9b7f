"""Values as plain data: what a checkpoint holds, and can be loaded without running code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from gradflow.errors import InvalidInputError, InvalidTypeError, ResumeError

_CLASS = "__class__"
_ARRAY = "__array__"
#: By full name, module and qualified name; a class that was renamed is there by its former names too.
_restorable: dict[str, type] = {}

#: What loads without running code, beside tensors and containers.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)

C = TypeVar("C", bound=type)


@overload
def restorable(cls: C) -> C: ...


@overload
def restorable(*, aliases: tuple[str, ...]) -> Callable[[C], C]: ...


def restorable(cls: C | None = None, *, aliases: tuple[str, ...] = ()) -> C | Callable[[C], C]:
    """Decorate a dataclass of values, so that :func:`from_plain` may make it again.

    A checkpoint names the class by its module and qualified name. A class that is renamed or moved is given its former
    name as an alias, so that older checkpoints still find it. A module that is executed again (a cell of a notebook,
    ``importlib.reload``) declares its classes again, and they take the place of the former ones.

    Parameters
    ----------
    cls : type
        At the top level of a module.
    aliases : tuple of str
        Former full names: ``"gradflow.integrators.rkc._Sharpness"``.

    Raises
    ------
    InvalidInputError
        If another class has one of the names, or the class is local to a function, so that its name says nothing.

    Examples
    --------
    >>> @restorable
    ... @dataclasses.dataclass(frozen=True)
    ... class Pair:
    ...     a: float
    ...     b: float
    >>> from_plain(to_plain(Pair(1.0, 2.0)))
    Pair(a=1.0, b=2.0)
    """

    def declare(cls: C) -> C:
        name = _full_name(cls)
        if "<locals>" in name:
            raise InvalidInputError(
                f"Expected a restorable class at the top level of a module, got {name}, which is local to a function: "
                "a checkpoint couldn't name it."
            )
        for each in (name, *aliases):
            other = _full_name(_restorable.get(each, cls))
            if other != name:
                raise InvalidInputError(
                    f"{name} can't be restorable as {each}, which is {other} already. Give it another name."
                )
        _restorable.update(dict.fromkeys((name, *aliases), cls))
        return cls

    return declare if cls is None else declare(cls)


def to_plain(value: Any) -> Any:
    """Copy a value into dicts, lists, tuples, tensors, strings and numbers.

    Raises
    ------
    InvalidTypeError
        For a dataclass that isn't :func:`restorable`, and for what a checkpoint can't hold.

    Examples
    --------
    >>> to_plain({"a": (1, np.float64(2.0), None)})
    {'a': (1, 2.0, None)}
    """
    if isinstance(value, Tensor):
        return value.detach().clone()  # a view would bring all that it is a view of
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = _full_name(type(value))
        if _restorable.get(name) is not type(value):
            raise InvalidTypeError(
                f"{name} isn't restorable: it is part of a state, and a checkpoint can't hold it. Decorate the class "
                "with gradflow.plain.restorable."
            )
        fields = dataclasses.fields(value)
        return {_CLASS: name, **{field.name: to_plain(getattr(value, field.name)) for field in fields}}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(value.copy())}
    if isinstance(value, np.generic):
        return value.item()
    if type(value) not in _PLAIN:
        raise InvalidTypeError(
            f"A checkpoint can't hold a {_full_name(type(value))}, which is part of a state. Keep tensors, arrays, "
            "numbers and text there, and dicts, lists, tuples or restorable dataclasses of these."
        )
    return value


def from_plain(value: Any) -> Any:
    """Make a value again; classes are those that were declared :func:`restorable`, and no others.

    Raises
    ------
    ResumeError
        If there is no such class, or it has other fields than it had.
    """
    if isinstance(value, Mapping):
        if _ARRAY in value:
            return value[_ARRAY].numpy()
        if _CLASS in value:
            return _make(value[_CLASS], {key: from_plain(v) for key, v in value.items() if key != _CLASS})
        return {key: from_plain(item) for key, item in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(from_plain(item) for item in value)
    return value


def _make(name: str, values: Mapping[str, Any]) -> Any:
    cls = _find(name)
    fields = {field.name for field in dataclasses.fields(cls)}
    if fields != set(values):
        raise ResumeError(
            f"The checkpoint has {name} with the fields {', '.join(values)}; here {_full_name(cls)} has "
            f"{', '.join(sorted(fields))}. It was written by another version of the class: resume with that version."
        )
    return cls(**values)


def _find(name: str) -> type:
    """Find a class by its full name; by its bare name too, as in older checkpoints, where one class alone has it."""
    if name in _restorable:
        return _restorable[name]
    found = {cls for full, cls in _restorable.items() if full.endswith(f".{name}")}
    if len(found) == 1:
        return found.pop()
    known = ", ".join(sorted(map(_full_name, found)))
    what = f"which may be any of {known}" if found else "which isn't known here"
    raise ResumeError(
        f"The checkpoint holds a {name}, {what}. Resume with the version of gradflow that wrote it; for a class of "
        "your own, import its module first, and give a class that was renamed its former name: "
        "restorable(aliases=(…,))."
    )


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
