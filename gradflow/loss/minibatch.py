"""The loss over some samples of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradflow.loss.capture import Captures
from gradflow.loss.data import move
from gradflow.loss.data_loss import DataLoss
from gradflow.loss.network import NetworkLoss


class MiniBatch(DataLoss):
    """The mean over some samples, which are collated at every evaluation; made by :meth:`LossFunction.minibatch`.

    The net, what is computed of a chunk, and what is known of both are those of the loss over all samples.

    Parameters
    ----------
    whole : DataLoss
        The loss over all samples.
    rows : Tensor, shape (b,), int64
        Which samples.
    """

    def __init__(self, whole: DataLoss, rows: Tensor) -> None:
        vars(self).update(vars(whole))
        self.n_samples = len(rows)
        self.rows = rows
        self._rounds = None  # the whole has warned

    def chunks(self, theta: Tensor) -> tuple[Sequence[Any], Sequence[float]]:
        """Return the chunks, and how much each has of what the loss averages over; usually there is one."""
        # Where all samples are one chunk, so is a mini-batch that takes some of them twice.
        whole = self.data.n_chunks == 1 and not self.data.of_batches
        parts = [self.rows] if whole else self.rows.split(self.data.chunk_size)
        chunks = [move(self.data.rows(part), theta.device, theta.dtype) for part in parts]
        if len(chunks) == 1:
            return chunks, [float(len(self.rows))]
        return chunks, [self.denominator(chunk, len(part)) for chunk, part in zip(chunks, parts, strict=True)]

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """Whether the graphs of all chunks fit in the memory budget: a chunk's does."""
        return self.data.n_chunks == 1 or len(self.rows) <= self.data.chunk_size

    def minibatch(self, rows: Tensor) -> DataLoss:
        """Return the loss over some of these samples, by their numbers among them."""
        return self.of_rows(self.rows[rows])

    def subset(self, rows: Sequence[int]) -> Any:
        """Return the loss over some of these samples, by their numbers among them."""
        return super().subset(self.rows[list(rows)].tolist())

    def fingerprint(self) -> str:
        """Say which of the samples."""
        digest = hashlib.sha256(self.rows.cpu().numpy().tobytes()).hexdigest()
        return f"{len(self.rows)} of {super().fingerprint()}, rows SHA-256 {digest}"

    def describe(self) -> dict[str, Any]:
        """Say how many samples."""
        return super().describe() | {"n_samples": len(self.rows)}


class MiniBatchLoss(MiniBatch, NetworkLoss):
    """The mean of a criterion over some samples."""

    def __init__(self, whole: NetworkLoss, rows: Tensor) -> None:
        super().__init__(whole, rows)
        self._captures = Captures(False)  # others are next
