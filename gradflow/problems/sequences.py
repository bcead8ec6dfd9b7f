"""Data sets of sequences, and of points of the plane, made by formulas; and a text."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.problems.data import Data

#: The label that doesn't count.
IGNORED = -100

_N_TRAIN, _N_TEST = 512, 128
_N_POINTS, _NOISE = 200, 0.1


def sort(n_symbols: int, length: int) -> Data:
    """Return random sequences of symbols, labelled by the same sequences in order; all places count."""
    sequences = _random(n_symbols, length)
    return _split(f"sort-{n_symbols}-{length}", sequences, sequences.sort(1).values, n_symbols)


def copy(n_symbols: int, length: int) -> Data:
    """Return T random symbols and T blanks, to be answered by the symbols in the places of the blanks.

    The copying task (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016) with a delay of none. The blank is one more
    symbol, so that there are V + 1 classes; the labels of the first T places don't count.
    """
    sequences = _random(n_symbols, length)
    inputs = torch.cat([sequences, torch.full_like(sequences, n_symbols)], 1)
    targets = torch.cat([torch.full_like(sequences, IGNORED), sequences], 1)
    return _split(f"copy-{n_symbols}-{length}", inputs, targets, n_symbols + 1)


def chars(length: int) -> Data:
    """Return the Declaration of Independence (1776) in windows of T characters, labelled by the next characters.

    Windows don't overlap; every fifth is for testing. Characters are numbered in the order of their codes.
    """
    text = resources.files("gradflow.problems").joinpath("declaration.txt").read_text(encoding="ascii")
    if not 2 <= length <= len(text) // 10:
        raise InvalidInputError(f"chars-T needs T from 2 to {len(text) // 10}, got {length}.")
    symbols = sorted(set(text))
    numbers = torch.tensor([symbols.index(c) for c in text], device="cpu")
    n = (len(text) - 1) // length
    inputs, targets = (numbers[k : k + n * length].reshape(n, length) for k in (0, 1))
    test = torch.arange(n, device="cpu") % 5 == 4
    return Data(f"chars-{length}", inputs[~test], targets[~test], inputs[test], targets[test], len(symbols))


def moons() -> Data:
    """Return two half circles of radius 1 that reach into each other, 200 points with Gaussian noise of 0.1."""
    angles = torch.linspace(0, torch.pi, _N_POINTS // 2, dtype=torch.float64, device="cpu")
    outer = torch.stack([angles.cos(), angles.sin()], 1)
    inner = torch.stack([1 - angles.cos(), 0.5 - angles.sin()], 1)
    return _noisy("moons", outer, inner)


def circles() -> Data:
    """Return two circles of radii 1 and ½ around one centre, 200 points with Gaussian noise of 0.1."""
    n = _N_POINTS // 2
    angles = 2 * torch.pi * torch.arange(n, dtype=torch.float64, device="cpu") / n
    outer = torch.stack([angles.cos(), angles.sin()], 1)
    return _noisy("circles", outer, 0.5 * outer)


def completion(n: int, rank: int) -> Data:
    """Return three in ten entries of a random n × n matrix of a rank, (i, j) → Mᵢⱼ; the others are the test set.

    M = A Bᵀ/√r with Gaussian A and B of r columns, so that entries are of size 1 (Arora et al. 2019).
    """
    if not 1 <= rank <= n:
        raise InvalidInputError(f"completion-N-R needs a rank from 1 to N, got {rank} and N = {n}.")
    generator = torch.Generator("cpu").manual_seed(0)
    A, B = torch.randn(2, n, rank, generator=generator, dtype=torch.float64, device="cpu")
    M = A @ B.T / rank**0.5
    order = torch.randperm(n * n, generator=generator, device="cpu")
    cells = torch.stack([order // n, order % n], 1)
    values = M.reshape(-1)[order, None]
    seen = max(1, round(0.3 * n * n))
    return Data(
        f"completion-{n}-{rank}", cells[:seen], values[:seen], cells[seen:], values[seen:], None, n_symbols=n
    )


def _random(n_symbols: int, length: int) -> Tensor:
    if n_symbols < 2 or length < 2:
        raise InvalidInputError(
            f"Sequences have at least two symbols and two places, got V = {n_symbols} and T = {length}."
        )
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(n_symbols, (_N_TRAIN + _N_TEST, length), generator=generator, device="cpu")


def _split(name: str, inputs: Tensor, targets: Tensor, n_classes: int) -> Data:
    n = _N_TRAIN
    return Data(name, inputs[:n], targets[:n], inputs[n:], targets[n:], n_classes)


def _noisy(name: str, one: Tensor, other: Tensor) -> Data:
    generator = torch.Generator("cpu").manual_seed(0)
    points = torch.cat([one, other])
    labels = torch.arange(len(points), device="cpu") // len(one)
    noise = torch.randn(2, *points.shape, generator=generator, dtype=torch.float64, device="cpu")
    train, test = points + _NOISE * noise
    return Data(name, train, labels, test, labels, 2)
