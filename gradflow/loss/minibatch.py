"""The loss over some samples of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradflow.loss.capture import Captures
from gradflow.loss.data import Chunk, move
from gradflow.loss.network import NetworkLoss


class MiniBatchLoss(NetworkLoss):
    """The mean over some samples, which are collated at every evaluation; made by :meth:`LossFunction.minibatch`.

    Net, criterion, and what is known of them are those of the loss over all samples.

    Parameters
    ----------
    whole : NetworkLoss
        The loss over all samples.
    rows : Tensor, shape (b,), int64
        Which samples.
    """

    def __init__(self, whole: NetworkLoss, rows: Tensor) -> None:
        vars(self).update(vars(whole))
        self.n_samples = len(rows)
        self.rows = rows
        self._rounds = None  # the whole has warned
        self._captures = Captures(False)  # others are next

    def chunks(self, theta: Tensor) -> tuple[Sequence[Chunk], Sequence[float]]:
        """Return the chunks, and how much each has of what the criterion averages over; usually there is one."""
        # Where all samples are one chunk, so is a mini-batch that takes some of them twice.
        parts = self.rows.split(self.data.chunk_size) if self.data.n_chunks > 1 else [self.rows]
        chunks = [move(self.data.rows(part), theta.device, theta.dtype) for part in parts]
        sizes = [len(part) for part in parts]
        if len(chunks) == 1:
            return chunks, [float(sizes[0])]
        pairs = zip(chunks, sizes, strict=True)
        return chunks, [self.chunked.denominator(target, n) for (_, target), n in pairs]

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether the graphs of all chunks fit in the memory budget: a chunk's does."""
        return self.data.n_chunks == 1 or len(self.rows) <= self.data.chunk_size

    def minibatch(self, rows: Tensor) -> MiniBatchLoss:
        """Return the loss over some of these samples, by their numbers among them."""
        return MiniBatchLoss(self, self.rows[rows])

    def subset(self, rows: Sequence[int]) -> NetworkLoss:
        """Return the loss over some of these samples, by their numbers among them."""
        return super().subset(self.rows[list(rows)].tolist())

    def fingerprint(self) -> str:
        """Say which of the samples."""
        digest = hashlib.sha256(self.rows.cpu().numpy().tobytes()).hexdigest()
        return f"{len(self.rows)} of {super().fingerprint()}, rows SHA-256 {digest}"

    def describe(self) -> dict[str, Any]:
        """Say how many samples."""
        return super().describe() | {"n_samples": len(self.rows)}
