"""Mini-batches of a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradflow.checks import check_count
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss import LossFunction


def minibatches(
    loss: LossFunction, batch_size: int, n_batches: int | None = None, *, seed: int = 0
) -> list[LossFunction]:
    """Cut the data of a loss into random mini-batches, each a loss of its own.

    Samples are shuffled once and dealt out without replacement, as in one epoch of stochastic gradient descent.
    For a criterion that is a plain mean, batches that make up all data have the loss for their mean.

    Parameters
    ----------
    loss : LossFunction
        One with a network.
    batch_size : int
        Samples in each.
    n_batches : int, optional
        Default: as many as there are full ones.
    seed : int, default 0
        Seed of a generator of their own.

    Returns
    -------
    list of LossFunction
        They share the network.

    Examples
    --------
    >>> data = torch.utils.data.TensorDataset(torch.randn(10, 2), torch.randn(10, 1))
    >>> loss = LossFunction(data, torch.nn.MSELoss(), torch.nn.Linear(2, 1))
    >>> [batch.n_samples for batch in minibatches(loss, 3)]
    [3, 3, 3]
    """
    if not isinstance(loss, LossFunction):
        raise InvalidTypeError(f"Expected a gradflow.LossFunction, got {type(loss).__name__}.")
    loss.check_rows("batch_size")
    assert loss.n_samples is not None
    check_count("batch_size", batch_size, least=1)
    check_count("seed", seed)
    N = loss.n_samples
    available = N // batch_size
    n_batches = available if n_batches is None else n_batches
    check_count("n_batches", n_batches, least=1)
    if n_batches > available:
        raise InvalidInputError(
            f"Expected n_batches · batch_size ≤ {N} samples, got {n_batches} · {batch_size}. Take fewer."
        )
    order = torch.randperm(N, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").tolist()
    return [loss.subset(order[i * batch_size : (i + 1) * batch_size]) for i in range(n_batches)]


def as_batches(
    loss: LossFunction,
    batches: Sequence[LossFunction] | None,
    batch_size: int | None,
    n_batches: int | None,
    seed: int,
) -> list[LossFunction]:
    """Return the mini-batches that are asked for: given, made of `loss`, or none."""
    if batch_size is None:
        if n_batches is not None:
            raise InvalidInputError("n_batches needs batch_size. Give both.")
        given = list(batches or ())
        for batch in given:
            if not isinstance(batch, LossFunction):
                raise InvalidTypeError(
                    f"Expected batches of gradflow.LossFunction, got {type(batch).__name__}."
                )
        return given
    if batches is not None:
        raise InvalidInputError("Expected either batches or batch_size, got both. Leave one out.")
    return minibatches(loss, batch_size, n_batches, seed=seed)
