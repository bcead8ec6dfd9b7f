"""Mini-batches: which samples a step sees, and the loss of those."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from gradflow.flows import Point

Sample = Literal["shuffle", "replacement", "order"]


def draw_rows(n: int, n_samples: int, batch_size: int, sample: Sample, seed: int) -> np.ndarray:
    """Return the samples that step n sees: a function of the arguments and nothing else.

    Parameters
    ----------
    n : int
        Steps taken before.
    n_samples : int
        Samples of the data set.
    batch_size : int
    sample : {"shuffle", "replacement", "order"}
        As in :class:`TorchOptimizer`.
    seed : int

    Returns
    -------
    numpy.ndarray, shape (≤ batch_size,)
        Indices. The last batch of an epoch may be smaller.
    """
    size = min(batch_size, n_samples)
    if sample == "replacement":
        return _generator(seed, n).integers(0, n_samples, size)
    epoch, i = divmod(n, steps_per_epoch(n_samples, batch_size))
    rows = np.arange(n_samples) if sample == "order" else _generator(seed, epoch).permutation(n_samples)
    return rows[i * size : (i + 1) * size]


def steps_per_epoch(n_samples: int | None, batch_size: int | None) -> int:
    """Return the steps that go through the data once; 1 without mini-batches."""
    return 1 if batch_size is None else -(-(n_samples or 1) // batch_size)


def take_rows(point: Point, rows: np.ndarray) -> Point:
    """Return the point of the loss of some samples; its evaluations count as parts of the run's."""
    field = point.field
    return field.part(field.loss.minibatch(torch.from_numpy(rows)), len(rows)).at(point.theta)


def _generator(seed: int, n: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, n]))
