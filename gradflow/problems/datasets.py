"""Named data sets. Nothing is read before it is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from gradflow.errors import InvalidInputError, UnknownNameError, suggest

_N_DIGITS_TRAIN = 1437


@dataclass(frozen=True)
class Data:
    """Training and test set in float64, on the CPU.

    Attributes
    ----------
    name : str
    train_inputs, test_inputs : Tensor, shape (n, …)
    train_targets, test_targets : Tensor
        Class labels, shape (n,), int64; or values, shape (n, m), float64.
    n_classes : int or None
        None: the targets are values.
    """

    name: str
    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    n_classes: int | None

    @property
    def n_inputs(self) -> int:
        """Numbers in one input."""
        return self.train_inputs[0].numel()

    @property
    def n_outputs(self) -> int:
        """Outputs that a network for it has."""
        return self.n_classes if self.n_classes is not None else self.train_targets[0].numel()


def load_data(name: str) -> Data:
    """Load a data set by name: ``digits``, or ``chebyshev-K-N``.

    Raises
    ------
    UnknownNameError
        The message lists what exists.
    """
    if name == "digits":
        return digits()
    if match := re.fullmatch(r"chebyshev-(\d+)-(\d+)", name):
        return chebyshev(int(match[1]), int(match[2]))
    raise UnknownNameError(f"No data set {name!r}; {suggest(name, ['digits', 'chebyshev-K-N'])}")


def chebyshev(degree: int, n: int) -> Data:
    """N points evenly spaced in [−1, 1], labelled by the Chebyshev polynomial of a degree; test = train.

    The synthetic task of Cohen et al. (2021).
    """
    if n < 2:
        raise InvalidInputError(f"chebyshev-K-N needs at least N = 2 points, got {n}.")
    x = np.linspace(-1.0, 1.0, n)
    y = np.polynomial.chebyshev.Chebyshev.basis(degree)(x)
    inputs, targets = torch.from_numpy(x[:, None]), torch.from_numpy(y[:, None])
    return Data(f"chebyshev-{degree}-{n}", inputs, targets, inputs, targets, None)


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
