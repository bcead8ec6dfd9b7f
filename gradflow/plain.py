"""Values as plain data: what a checkpoint holds, and can be loaded without running code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

_CLASS = "__class__"
_ARRAY = "__array__"
_restorable: dict[str, type] = {}

C = TypeVar("C", bound=type)


def restorable(cls: C) -> C:
    """Decorate a dataclass of values, so that :func:`from_plain` may make it again."""
    _restorable[cls.__qualname__] = cls
    return cls


def to_plain(value: Any) -> Any:
    """Copy a value into dicts, lists, tuples, tensors, strings and numbers.

    Examples
    --------
    >>> to_plain({"a": (1, np.float64(2.0), None)})
    {'a': (1, 2.0, None)}
    """
    if isinstance(value, Tensor):
        return value.detach().clone()  # a view would bring all that it is a view of
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__qualname__
        if name not in _restorable:
            raise TypeError(
                f"{name} isn't restorable: it is part of a state, and a checkpoint can't hold it."
            )
        fields = dataclasses.fields(value)
        return {_CLASS: name, **{field.name: to_plain(getattr(value, field.name)) for field in fields}}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_plain(item) for item in value)
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(value.copy())}
    return value.item() if isinstance(value, np.generic) else value


def from_plain(value: Any) -> Any:
    """Make a value again; classes are those that were declared :func:`restorable`, and no others."""
    if isinstance(value, Mapping):
        if _ARRAY in value:
            return value[_ARRAY].numpy()
        if _CLASS in value:
            cls = _restorable[value[_CLASS]]
            return cls(**{key: from_plain(item) for key, item in value.items() if key != _CLASS})
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(from_plain(item) for item in value)
    return value
