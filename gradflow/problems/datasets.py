"""Named data sets. Nothing is read before it is asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch

from gradflow.errors import InvalidInputError, UnknownNameError, suggest
from gradflow.problems import cifar, sequences
from gradflow.problems.data import Data

#: Names of data sets, for help and for errors.
NAMES = (
    *("digits", "chebyshev-K-N", "linear-50-50", "moons", "circles", "completion-N-R"),
    *("sort-V-T", "copy-V-T", "chars-T"),
    *cifar.SUBSETS,
)
_NUMBERED: dict[str, tuple[int, Callable[..., Data]]] = {
    "chebyshev": (2, lambda degree, n: chebyshev(degree, n)),
    "completion": (2, sequences.completion),
    "sort": (2, sequences.sort),
    "copy": (2, sequences.copy),
    "chars": (1, sequences.chars),
}

_N_DIGITS_TRAIN = 1437


def load_data(name: str, directory: str | os.PathLike[str] | None = None) -> Data:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        ``digits``, ``chebyshev-K-N``, ``linear-50-50``, ``moons``, ``circles``, ``completion-N-R``, ``sort-V-T``,
        ``copy-V-T``, ``chars-T``, ``cifar10`` or ``cifar10-Nk``; see :mod:`gradflow.problems.sequences`.
    directory : path, optional
        Where the data of CIFAR-10 are.

    Returns
    -------
    Data

    Raises
    ------
    UnknownNameError
        The message lists what exists.
    """
    if name == "digits":
        return digits()
    if match := re.fullmatch(r"([a-z]+)((?:-\d+)+)", name):
        numbers = [int(number) for number in match[2].split("-")[1:]]
        n_numbers, make = _NUMBERED.get(match[1], (0, None))
        if make is not None and len(numbers) == n_numbers:
            return make(*numbers)
    plain = {"linear-50-50": linear, "moons": sequences.moons, "circles": sequences.circles}
    if name in plain:
        return plain[name]()
    if name in cifar.SUBSETS:
        return cifar.cifar10(name, directory)
    raise UnknownNameError(f"No data set {name!r}; {suggest(name, NAMES)}")


def chebyshev(degree: int, n: int) -> Data:
    """Return N points evenly spaced in [−1, 1], labelled by a Chebyshev polynomial; test = train.

    The synthetic task of Cohen et al. (2021).
    """
    if n < 2:
        raise InvalidInputError(f"chebyshev-K-N needs at least N = 2 points, got {n}.")
    x = np.linspace(-1.0, 1.0, n)
    y = np.polynomial.chebyshev.Chebyshev.basis(degree)(x)
    inputs, targets = torch.from_numpy(x[:, None]), torch.from_numpy(y[:, None])
    return Data(f"chebyshev-{degree}-{n}", inputs, targets, inputs, targets, None)


def linear() -> Data:
    """Return 50 whitened inputs of 50 numbers, XᵀX/50 = 1, labelled by a Gaussian linear map A; test = train.

    X = Q √50 with Q from the QR decomposition of a Gaussian matrix (R's diagonal positive), targets X Aᵀ. The
    task of Cohen et al. (2021) for deep linear networks; the matrices are those of seed 0.
    """
    n = 50
    generator = torch.Generator("cpu").manual_seed(0)
    gaussian, A = torch.randn(2, n, n, generator=generator, dtype=torch.float64, device="cpu")
    Q, R = torch.linalg.qr(gaussian)
    X = Q * R.diagonal().sign() * n**0.5
    return Data("linear-50-50", X, X @ A.T, X, X @ A.T, None)


def digits() -> Data:
    """Load the 1,797 handwritten digits of the UCI repository, 8×8 pixels, shipped with gradflow.

    Pixels are divided by 16 and centred by the mean training image. The first 1,437 images are for
    training, the last 360, by other writers in part, for testing.

    Alpaydin & Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository,
    doi:10.24432/C50P49 (CC BY 4.0); its test set.
    """
    with resources.files("gradflow.problems").joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        pixels, labels = arrays["images"], arrays["labels"]
    images = torch.from_numpy(pixels.astype(np.float64) / 16).reshape(-1, 1, 8, 8)
    classes = torch.from_numpy(labels.astype(np.int64))
    n = _N_DIGITS_TRAIN
    images = images - images[:n].mean(0)
    return Data("digits", images[:n], classes[:n], images[n:], classes[n:], 10)
