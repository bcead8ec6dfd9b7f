"""Mini-batches: which samples a step sees, and the loss of those."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gradflow.flows.field import Flow, Point

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


def take_rows(point: Point, rows: np.ndarray) -> Batch:
    """Return the loss of some samples at a point; its evaluations count as parts of the point's flow."""
    part = Flow(point.flow.loss.minibatch(torch.from_numpy(rows)))
    return Batch(part, part.at(point.theta), counted=(point.flow, len(rows)))


class Batch:
    """The loss that a step sees, at the step's start: of all data, or of a mini-batch.

    Parameters
    ----------
    flow : Flow
    point : Point
        A point of that flow.
    counted : (Flow, int), optional
        The run's flow, which counts the samples of each evaluation.
    """

    def __init__(self, flow: Flow, point: Point, counted: tuple[Flow, int] | None = None) -> None:
        self._flow = flow
        self._point = point
        self._counted = counted

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor]:
        if self._counted is None:
            return self._point.value, self._point.gradient
        return self.evaluate(self._point.theta)

    @property
    def value(self) -> Tensor:
        """The loss at the start, shape ()."""
        return self._known[0]

    @property
    def gradient(self) -> Tensor:
        """Its gradient, shape (P,)."""
        return self._known[1]

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient elsewhere."""
        if self._counted is not None:
            self._counted[0].count_samples(self._counted[1], gradients=True)
        return self._flow.evaluate(theta)

    def hvp(self, vector: Tensor) -> Tensor:
        """Multiply a vector, shape (P,), by the Hessian at the start."""
        if self._counted is None:
            self._flow.cost.n_hvps += 1
        else:
            self._counted[0].count_samples(self._counted[1], gradients=False)
        return self._point.linearization.hvp(vector)


def _generator(seed: int, n: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, n]))
