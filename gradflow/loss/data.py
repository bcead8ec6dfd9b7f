"""The data set, cut into chunks once, as tensors where θ lives."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError, suggest
from gradflow.loss.trees import map_tensors, tensors_of

#: What a net and a criterion take.
Chunk = tuple[tuple[Tensor, ...], Tensor]

_FORBIDDEN = {
    "shuffle": "the loss must be the same function at every evaluation",
    "sampler": "the loss is over the whole data set; pass a torch.utils.data.Subset instead",
    "batch_sampler": "chunks are cut in the order of the data set; pass batch_size",
    "drop_last": "the loss is over the whole data set",
}
_LOADER_OPTIONS = set(inspect.signature(DataLoader.__init__).parameters) - {"self", "dataset", "batch_size"}


def check_loader_options(options: dict[str, Any]) -> None:
    """Refuse loader options that don't exist or that would change the objective."""
    for name, value in options.items():
        if name in _FORBIDDEN and value:
            raise InvalidInputError(f"{name}={value!r} can't be used: {_FORBIDDEN[name]}. Leave it out.")
        if name not in _LOADER_OPTIONS:
            raise UnknownOptionError(
                f"LossFunction has no option {name!r}; "
                + suggest(name, (_LOADER_OPTIONS - set(_FORBIDDEN)) | {"batch_size", "memory_budget"})
            )


def default_memory_budget(device: torch.device) -> int:
    """Half of the memory that is free on a device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return free // 2


def as_chunk(items: Any) -> Chunk:
    """Read a collated batch as ((inputs…), target)."""
    if not isinstance(items, tuple | list) or len(items) < 2:
        raise InvalidTypeError(
            "Dataset items must be (inputs…, target), at least one input and the target; got "
            f"{type(items).__name__}"
            + (f" of length {len(items)}" if hasattr(items, "__len__") else "")
            + ". A function of the net and a batch takes items of any kind: LossFunction(dataset, loss_fn=f, net=net)."
        )
    for position, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise InvalidTypeError(
                f"Dataset items must collate to tensors; element {position} became {type(item).__name__}. "
                "Return tensors, arrays or numbers from the data set, or pass collate_fn; or LossFunction(dataset, "
                "loss_fn=f, net=net), for items of any kind."
            )
    return tuple(items[:-1]), items[-1]


class ChunkedData:
    """A map-style data set in chunks on a device.

    Chunks are collated once and kept on the device when the data fit in the memory budget; otherwise they
    are read from the data set again in every pass.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
    loader_options : dict
        Keyword arguments of :class:`torch.utils.data.DataLoader`.
    read : callable, default :func:`as_chunk`
        Makes a chunk of what is collated.
    of_batches : bool, default False
        Each item is a batch already: it is a chunk.

    Attributes
    ----------
    resident : bool
        The chunks are kept.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        loader_options: dict[str, Any],
        read: Callable[[Any], Any] = as_chunk,
        *,
        of_batches: bool = False,
    ) -> None:
        check_loader_options(loader_options)
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise InvalidTypeError(
                "Expected a map-style data set with __len__ and __getitem__, got "
                f"{type(dataset).__name__}. Collect a stream into a torch.utils.data.TensorDataset."
            )
        given: object = dataset
        if (
            read is as_chunk
            and isinstance(given, list | tuple)
            and any(isinstance(item, Tensor) for item in given)
        ):
            raise InvalidTypeError(
                "Expected a data set of (inputs…, target) items, got a sequence of tensors. Wrap it: "
                "torch.utils.data.TensorDataset(*tensors)."
            )
        if len(dataset) == 0:
            raise InvalidInputError("The data set is empty: the loss is a mean over at least one sample.")
        self.dataset: Any = dataset
        self.n_samples = len(dataset)
        self.chunk_size = self.n_samples
        # A DataLoader draws a seed at every pass: from a generator of its own, not from the global one.
        self._options: dict[str, Any] = {"generator": torch.Generator("cpu")}
        self._options |= {k: v for k, v in loader_options.items() if k not in _FORBIDDEN}
        # Read directly, unless a subclass or a collate_fn has a say in what its items are.
        self._is_tensors = type(dataset) is TensorDataset and not loader_options.get("collate_fn")
        self._read = read
        self.of_batches = of_batches
        self.resident = False
        self._kept: tuple[tuple[torch.device, torch.dtype], list[Any]] | None = None

    @property
    def n_chunks(self) -> int:
        """Number of chunks, the last of which may be shorter."""
        return -(-self.n_samples // self.chunk_size)

    def items_per_chunk(self) -> list[int]:
        """Return how many items each chunk has."""
        N, size = self.n_samples, self.chunk_size
        return [min(size, N - start) for start in range(0, N, size)]

    def cut(self, chunk_size: int, budget: int) -> None:
        """Fix the chunk size, and whether the data stay in memory within `budget` bytes."""
        self.chunk_size = chunk_size
        n_bytes = sum(t.numel() * t.element_size() for t in tensors_of(self.head(1)))
        self.resident = n_bytes * self.n_samples <= budget

    def head(self, n: int, *, spread: bool = False) -> Any:
        """Collate n items: the first ones, or `spread` evenly over the data set."""
        return self.rows(self.spread(n) if spread else torch.arange(n, device="cpu"))

    def spread(self, n: int) -> Tensor:
        """Return n row numbers, shape (n,), spread evenly over the data set."""
        return torch.as_tensor([i * self.n_samples // n for i in range(n)], device="cpu")

    def rows(self, rows: Tensor) -> Any:
        """Collate the items of the given numbers, shape (n,)."""
        if self._is_tensors:
            return self._read([t[rows.to(t.device)] for t in self.dataset.tensors])
        collate = self._options.get("collate_fn") or default_collate
        return self._read(collate([self.dataset[i] for i in rows.tolist()]))

    def tensors(self, n: int) -> tuple[Tensor, ...]:
        """Return all tensors, or those of at most n items where they would have to be read one by one."""
        if self._is_tensors:
            return tuple(self.dataset.tensors)
        rows = self.spread(min(n, self.n_samples))
        chunks = [self.rows(row) for row in rows.split(1)] if self.of_batches else [self.rows(rows)]
        return tuple(t for chunk in chunks for t in tensors_of(chunk))

    def subset(self, rows: Sequence[int]) -> Dataset[Any]:
        """Return the data set of some items."""
        if self._is_tensors:
            return TensorDataset(*(t[list(rows)] for t in self.dataset.tensors))
        return Subset(self.dataset, rows)

    def part(self, rows: Sequence[int]) -> ChunkedData:
        """Return some of the items, read in the same way."""
        return ChunkedData(self.subset(rows), self._options, self._read, of_batches=self.of_batches)

    def host_chunks(self) -> Iterator[Any]:
        """Read the chunks from the data set, as it gives them."""
        if self._is_tensors:
            for start in range(0, self.n_samples, self.chunk_size):
                yield self._read([t[start : start + self.chunk_size] for t in self.dataset.tensors])
        else:
            loader = DataLoader(self.dataset, batch_size=self.chunk_size, shuffle=False, **self._options)
            for items in loader:
                yield self._read(items)

    def on(self, device: torch.device, dtype: torch.dtype) -> Iterator[Any]:
        """Return the chunks on a device, floating-point tensors in `dtype`."""
        key = (device, dtype)
        if self._kept is None or self._kept[0] != key:
            chunks = (move(chunk, device, dtype) for chunk in self.host_chunks())
            if not self.resident:
                yield from chunks
                return
            self._kept = (key, list(chunks))
        yield from self._kept[1]


def move(chunk: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Put a chunk on a device, its floating-point tensors in `dtype`."""
    return map_tensors(lambda t: cast(t, device, dtype), chunk)


def cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Put a tensor on a device; in `dtype` if it is floating-point, in the complex dtype of it if it is complex."""
    if tensor.is_complex():
        dtype = dtype.to_complex()
    return tensor.detach().to(device, dtype if tensor.is_floating_point() or tensor.is_complex() else None)


def add_to_hash(digest: Any, tensors: Iterable[Tensor]) -> None:
    """Add tensors, their dtypes and their shapes to a hash."""
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
