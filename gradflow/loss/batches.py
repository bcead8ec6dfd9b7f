"""Data as users have them: data sets, loaders, lists of batches, one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss.data import ChunkedData
from gradflow.loss.trees import is_batch

_LIST = "Pass a list of its batches, list(loader), if they fit in memory."


def as_data(
    given: Any, batch_size: int | None, loader_options: dict[str, Any]
) -> tuple[ChunkedData, int | None]:
    """Return the data in chunks that a function takes as they are collated, and how many items a chunk is to have.

    Parameters
    ----------
    given : object
        A map-style data set; a DataLoader; a list of batches; one batch (a mapping, a tuple, a tensor, a dataclass, a
        graph). A list with `batch_size` or ``collate_fn`` is one of items.
    batch_size : int or None
    loader_options : dict
    """
    if isinstance(given, ChunkedData):
        return given, batch_size
    if isinstance(given, DataLoader):
        if given.batch_size is None and given.batch_sampler is None:  # its items are batches
            _check_order(given)
            return _of_batches(given.dataset, given.collate_fn), 1
        given, batch_size, loader_options = of_loader(given, batch_size, loader_options)
    elif isinstance(given, IterableDataset):
        raise InvalidTypeError(
            f"Expected data that can be read again in the same order, got a stream. {_LIST}"
        )
    as_items = batch_size is not None or loader_options.get("collate_fn") is not None
    batches = [given] if is_batch(given) else given
    if is_batch(given) or (isinstance(given, list) and not as_items):
        if batch_size is not None or loader_options:
            raise InvalidInputError(
                "One batch is evaluated as it is: leave out batch_size and the options of a DataLoader, or pass a "
                "data set."
            )
        return _of_batches(batches, None), 1
    return ChunkedData(given, loader_options, read=_as_it_is), batch_size


def of_loader(
    loader: Any, batch_size: int | None, options: dict[str, Any]
) -> tuple[Any, int | None, dict[str, Any]]:
    """Return a loader's data set, its batch size and its options, unless others are given.

    Raises
    ------
    InvalidInputError
        If the loader gives other items than those of its data set, each once.
    """
    _check_order(loader)
    own = {"collate_fn": loader.collate_fn, "num_workers": loader.num_workers}
    if loader.worker_init_fn is not None:
        own["worker_init_fn"] = loader.worker_init_fn
    size = loader.batch_size if loader.batch_sampler is None else loader.batch_sampler.batch_size
    return loader.dataset, size if batch_size is None else batch_size, own | options


def _check_order(loader: Any) -> None:
    """Refuse a loader whose batches aren't those of the whole data set, whatever the order."""
    if isinstance(loader.dataset, IterableDataset):
        raise InvalidTypeError(f"Expected a loader of a map-style data set, got one of a stream. {_LIST}")
    if type(loader).__iter__ is not DataLoader.__iter__:
        raise InvalidInputError(
            f"A {type(loader).__name__} makes its batches by itself, which can't be read again in parts. {_LIST}"
        )
    batches = loader.batch_sampler
    sampler, drops = (loader.sampler, False) if batches is None else (batches, True)
    if type(batches) is BatchSampler:
        sampler, drops = batches.sampler, batches.drop_last
    plain = type(sampler) is SequentialSampler or (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(loader.dataset)
    )
    if not plain:
        raise InvalidInputError(
            f"The loader chooses samples by a {type(sampler).__name__}, and the loss is over the whole data set, in "
            f"its order. Pass the data set (a torch.utils.data.Subset of it). {_LIST}"
        )
    if drops and len(loader.dataset) % batches.batch_size:
        raise InvalidInputError(
            "The loader drops the last batch, and the loss is over the whole data set. Pass drop_last=False, or a "
            "torch.utils.data.Subset of what is meant."
        )


def _of_batches(batches: Any, collate: Callable[[Any], Any] | None) -> ChunkedData:
    collated = _Only(collate)
    return ChunkedData(batches, {"collate_fn": collated}, read=_as_it_is, of_batches=True)


class _Only:
    """Makes a chunk of the one batch that is in it."""

    def __init__(self, collate: Callable[[Any], Any] | None) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Any:
        (batch,) = items
        return batch if self._collate is None else self._collate(batch)


def _as_it_is(batch: Any) -> Any:
    return batch
