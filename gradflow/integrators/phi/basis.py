"""An orthonormal basis that grows by a vector at a time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gradflow.spectrum.sums import inner, is_long

#: Rows that are reserved first; their number doubles.
_FIRST_ROWS = 16
#: A pass of Gram–Schmidt was the last one if what it took away is smaller than this part of what it left.
_SETTLED = 0.5
#: Passes over the whole basis at most: "twice is enough" (Giraud et al. 2005).
_PASSES = 2


class Basis:
    """Orthonormal vectors q₀, q₁, … in the rows of one block.

    A vector is written to the next row, and orthogonalised there. A pass of classical Gram–Schmidt leaves errors of
    rounding relative to what it was given, so that another one follows a pass that took away more than half of what
    it left (Kahan's and Parlett's test; Daniel, Gragg, Kaufman & Stewart, Math. Comp. 30 (1976) 772–795).

    Parameters
    ----------
    size : int
        Number P of components of a vector.
    capacity : int
        Number of vectors that are expected at most.
    like : Tensor
        Dtype and device.

    Examples
    --------
    >>> basis = Basis(2, 2, like=torch.empty(0))
    >>> basis.take(torch.tensor([0.0, 2.0])), basis.take(torch.tensor([3.0, 4.0]))
    (array([2.]), array([4., 3.]))
    >>> basis.rows
    tensor([[0., 1.],
            [1., 0.]])
    """

    def __init__(self, size: int, capacity: int, like: Tensor) -> None:
        self._capacity = capacity
        self._block = like.new_empty(min(_FIRST_ROWS, capacity), size)
        self._n = 0

    def __len__(self) -> int:
        return self._n

    @property
    def rows(self) -> Tensor:
        """The vectors, shape (n, P)."""
        return self._block[: self._n]

    def take(self, vector: Tensor, known_from: int = 0) -> np.ndarray:
        """Take a vector in, and return its coordinates.

        Parameters
        ----------
        vector : Tensor, shape (P,)
        known_from : int
            But for rounding, the vector is known to have no part in the first so many vectors of the basis: a pass
            over the others comes first, which leaves little for the one over all.

        Returns
        -------
        ndarray, shape (n,), or (n + 1,) if what is new of it, more than rounding, has become qₙ
        """
        n = self._n
        self._reserve(n + 1)
        row = self._block[n].copy_(vector)
        z = np.zeros(n + 1)
        early = self._take_away(row, known_from) if known_from else row[:0]
        for _ in range(_PASSES):
            parts = self._take_away(row, 0)
            size = torch.linalg.vector_norm(row, dtype=torch.float64)
            told = torch.cat([early.double(), parts.double(), size[None]]).cpu().numpy()  # the only wait
            z[n - len(early) : n] += told[: len(early)]
            z[:n] += told[len(early) : -1]
            z[n] = told[-1]
            if np.linalg.norm(told[len(early) : -1]) <= _SETTLED * z[n]:
                break
            early = row[:0]
        if not z[n] > 10 * torch.finfo(row.dtype).eps * float(np.linalg.norm(z)):
            return z[:n]
        row.div_(z[n])
        self._n += 1
        return z

    def _take_away(self, row: Tensor, first: int) -> Tensor:
        """Take from a row its parts in the vectors from the first on, and return them."""
        Q = self._block[first : self._n]
        parts = inner(Q, row[None])[:, 0] if is_long(row) else Q @ row
        row.addmv_(Q.T, parts, alpha=-1)
        return parts

    def combine(self, z: np.ndarray) -> Tensor:
        """Return the vectors, shape (…, P), of coordinates, shape (…, n)."""
        return torch.from_numpy(z).to(self._block) @ self.rows

    def _reserve(self, n: int) -> None:
        if n > len(self._block):
            size = min(2 * n, self._capacity) if n <= self._capacity else n + 8
            larger = self._block.new_empty(size, self._block.shape[1])
            larger[: self._n] = self.rows
            self._block = larger
