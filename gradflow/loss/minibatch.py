"""The loss over some samples of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from gradflow.loss.data import move
from gradflow.loss.empirical import EmpiricalRisk
from gradflow.loss.source import Term


class MiniBatch:
    """The mean over some samples, as a loss source of its own.

    Parameters
    ----------
    risk : EmpiricalRisk
        The loss over all samples.
    rows : Tensor, shape (b,), int64
        Which samples.
    """

    def __init__(self, risk: EmpiricalRisk, rows: Tensor) -> None:
        self._risk = risk
        self._rows = rows
        self.n_parameters = risk.n_parameters
        self.names = risk.names
        self.leaves = risk.leaves
        self.settings = risk.settings
        self.second = risk.second
        self.recomputes = risk.recomputes

    def terms(self, theta: Tensor) -> Iterator[Term]:
        """Return one term per chunk; a mini-batch is usually one."""
        data = self._risk.data
        # Where all samples are one chunk, so is a mini-batch that takes some of them twice.
        parts = self._rows.split(data.chunk_size) if data.n_chunks > 1 else [self._rows]
        chunks = [move(data.rows(part), theta.device, theta.dtype) for part in parts]
        yield from self._risk.terms_of(chunks, [len(part) for part in parts])

    def in_place(self, leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
        """As for all samples."""
        return self._risk.in_place(leaves)

    def keeps_graphs(self, theta: Tensor) -> bool:
        """Whether the graphs of all chunks fit in the memory budget: a chunk's does."""
        return self._risk.data.n_chunks == 1 or len(self._rows) <= self._risk.data.chunk_size

    def batches_products(self, theta: Tensor) -> bool:
        """As for all samples."""
        return self._risk.batches_products(theta)

    def fingerprint(self) -> str:
        """As for all samples."""
        return self._risk.fingerprint()

    def describe(self) -> dict[str, Any]:
        """Say how many samples."""
        return self._risk.describe() | {"n_samples": len(self._rows)}
