"""CIFAR-10 from the official Python batches."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gradflow.errors import DatasetNotFoundError, InvalidInputError
from gradflow.problems.data import Data

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
VARIABLE = "GRADFLOW_DATA"

_TRAIN = tuple(f"data_batch_{n}" for n in range(1, 6))
_TEST = "test_batch"

#: Subsets by name: how many of the first training images. None: all.
SUBSETS: dict[str, int | None] = {"cifar10": None} | {f"cifar10-{n}k": 1000 * n for n in (1, 2, 5, 10, 20)}


def cifar10(name: str, directory: str | os.PathLike[str] | None) -> Data:
    """Load CIFAR-10 or its first images.

    Images are (3, 32, 32). Every feature is centred by its mean and divided by its standard deviation over the
    whole training set that is there, before the subset is taken; the test set by the same.

    Parameters
    ----------
    name : str
        ``cifar10``, or ``cifar10-1k``, ``-2k``, ``-5k``, ``-10k``, ``-20k`` for the first training images.
    directory : path or None
        Where ``cifar-10-batches-py/`` or ``cifar-10-python.tar.gz`` lies; None: ``$GRADFLOW_DATA``.

    Raises
    ------
    DatasetNotFoundError
        With where to get the data and where to put them.
    InvalidInputError
        If there are fewer images than the subset has, or a file isn't what it should be.
    """
    read = _reader(directory)
    pixels, labels = (np.concatenate(parts) for parts in zip(*(read(batch) for batch in _TRAIN), strict=True))
    n = SUBSETS[name]
    if n is not None and n > len(pixels):
        raise InvalidInputError(
            f"{name} is the first {n:,} training images; there are {len(pixels):,}. Use a smaller subset, or the full "
            "data set (gradflow fetch cifar10)."
        )
    mean = pixels.mean(0, dtype=np.float64)
    deviation = _standard_deviation(pixels, mean)
    test_pixels, test_labels = read(_TEST)

    def normalized(images: np.ndarray) -> Tensor:
        features = (images.astype(np.float64) - mean) / deviation
        return torch.from_numpy(features.reshape(-1, 3, 32, 32))

    return Data(
        name,
        normalized(pixels[:n]),
        torch.from_numpy(labels[:n]),
        normalized(test_pixels),
        torch.from_numpy(test_labels),
        n_classes=10,
        statistics=f"{len(pixels)} training images, SHA-256 {hashlib.sha256(pixels.tobytes()).hexdigest()}",
    )


def _standard_deviation(pixels: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the standard deviation of every feature; 1 if it is constant."""
    total = np.zeros_like(mean)
    for start in range(0, len(pixels), 1000):  # in pieces: the full set in float64 takes 1.2 GB
        total += ((pixels[start : start + 1000] - mean) ** 2).sum(0)
    deviation = np.sqrt(total / len(pixels))
    return np.where(deviation > 0, deviation, 1.0)


def _reader(directory: str | os.PathLike[str] | None) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """Return what reads a batch by its name, from the folder or the archive."""
    given = directory if directory is not None else os.environ.get(VARIABLE)
    if not given:
        raise DatasetNotFoundError(
            f"CIFAR-10 needs a directory: pass data=…, or set {VARIABLE}. It must hold "
            f"{FOLDER}/ or {ARCHIVE}, from {URL}; gradflow fetch cifar10 --data DIR puts it there."
        )
    root = Path(given)
    if (root / FOLDER).is_dir():
        return lambda name: _read_batch(root / FOLDER / name, (root / FOLDER / name).open)
    if (root / ARCHIVE).is_file():
        return lambda name: _read_batch(
            root / ARCHIVE / FOLDER / name, lambda _: _member(root / ARCHIVE, name)
        )
    raise DatasetNotFoundError(
        f"No CIFAR-10 in {root.absolute()}: expected {FOLDER}/ or {ARCHIVE} there. Get it from {URL}, or with "
        f"gradflow fetch cifar10 --data {root}."
    )


def _member(archive: Path, name: str) -> IO[bytes]:
    with tarfile.open(archive, "r:gz") as tar:
        member = tar.extractfile(f"{FOLDER}/{name}")
        if member is None:
            raise KeyError(name)
        return io.BytesIO(member.read())


def _read_batch(path: Path, opened: Callable[[str], IO[bytes]]) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels, shape (n, 3072), uint8, and labels, shape (n,), int64."""
    try:
        with opened("rb") as file:
            batch = _OnlyArrays(file, encoding="bytes").load()
    except (FileNotFoundError, KeyError) as error:
        raise DatasetNotFoundError(
            f"CIFAR-10 is incomplete: {path} is missing. Get it again from {URL}."
        ) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, AttributeError, tarfile.TarError,
            OSError) as error:  # fmt: skip
        raise InvalidInputError(f"{path} isn't a CIFAR-10 batch: {error}") from error
    entries = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    pixels, labels = entries.get("data"), entries.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
        raise InvalidInputError(f"{path} isn't a CIFAR-10 batch: expected data of shape (n, 3072) in uint8.")
    if not isinstance(labels, list) or len(labels) != len(pixels) or not set(labels) <= set(range(10)):
        raise InvalidInputError(f"{path} isn't a CIFAR-10 batch: expected {len(pixels)} labels from 0 to 9.")
    return pixels, np.array(labels, np.int64)


def _text(key: object) -> object:
    return key.decode() if isinstance(key, bytes) else key


class _OnlyArrays(pickle.Unpickler):
    """Build dicts, lists, strings, numbers and NumPy arrays, and nothing else."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
        for name in ("_reconstruct", "ndarray", "dtype")
    )

    def find_class(self, module: str, name: str) -> Any:
        """Return the few constructors that a batch needs."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        if name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]  # NumPy's own, wherever it lies in this version
        return np.ndarray if name == "ndarray" else np.dtype


def fetch(directory: str | os.PathLike[str]) -> Path:
    """Download CIFAR-10 into a directory, check it against its SHA-256, and return its path."""
    import pooch

    Path(directory).mkdir(parents=True, exist_ok=True)
    return Path(pooch.retrieve(URL, known_hash=f"sha256:{SHA256}", fname=ARCHIVE, path=directory))
