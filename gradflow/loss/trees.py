"""Batches as users have them: tensors in dictionaries, tuples, dataclasses, graphs."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gradflow.errors import InvalidTypeError


def map_tensors(function: Callable[[Tensor], Tensor], batch: Any) -> Any:
    """Return a batch like another, with a function applied to each of its tensors.

    Containers keep their types: mappings (Hugging Face's batches among them), lists, tuples, named tuples, dataclasses,
    packed sequences, and objects that apply functions to their tensors themselves, as PyTorch Geometric's graphs do.
    What holds no tensors is left as it is. The batch that is given isn't changed.

    Parameters
    ----------
    function : callable
        Of one tensor.
    batch : object

    Raises
    ------
    InvalidTypeError
        If an object of another kind has tensors as attributes.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, PackedSequence):  # the sizes stay on the CPU
        data, sizes, *orders = batch
        return type(batch)(function(data), sizes, *(None if o is None else function(o) for o in orders))
    if isinstance(batch, Mapping):
        return _mapping_like(batch, {key: map_tensors(function, value) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, item) for item in batch))
    if isinstance(batch, tuple):
        return type(batch)(map_tensors(function, item) for item in batch)
    if isinstance(batch, list):
        new: Any = copy.copy(batch)
        new[:] = [map_tensors(function, item) for item in batch]
        return new
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        new = copy.copy(batch)
        for field in dataclasses.fields(batch):  # frozen ones too
            if hasattr(batch, field.name):
                object.__setattr__(new, field.name, map_tensors(function, getattr(batch, field.name)))
        return new
    if _is_graph(batch):
        return copy.copy(batch).apply(function)
    held = [name for name, value in getattr(batch, "__dict__", {}).items() if isinstance(value, Tensor)]
    if held:
        raise InvalidTypeError(
            f"A batch holds a {type(batch).__name__} with tensors in it ({', '.join(held[:3])}), which can't be moved "
            "or copied. Make it a dictionary or a dataclass."
        )
    return batch


def _mapping_like(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """Return a mapping of the type of another, with other items."""
    if isinstance(batch, dict | UserDict):  # whose copies have items of their own
        new: Any = copy.copy(batch)
        for key, value in items.items():
            new[key] = value
        return new
    try:
        return type(batch)(items)  # type: ignore[call-arg]
    except Exception:  # made otherwise
        return items


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch, in its order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, batch)
    return found


def is_batch(data: object) -> bool:
    """Whether data are one batch, and no data set of items nor a list of batches."""
    if isinstance(data, Tensor | tuple | Mapping) or _is_graph(data):
        return True
    return dataclasses.is_dataclass(data) and not hasattr(data, "__getitem__")


def _is_graph(batch: object) -> bool:
    return all(callable(getattr(batch, name, None)) for name in ("apply", "keys", "clone", "pin_memory"))
