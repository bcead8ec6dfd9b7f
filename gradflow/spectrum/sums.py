"""Inner products of long vectors, to the last digits of their dtype."""

from __future__ import annotations

import torch
from torch import Tensor

#: Numbers beyond which sums in float32 lose digits that matter: of 10⁷ equal terms, errors of 6e-4.
LONG = 2**20
#: Numbers that are summed in float32 before float64 takes over.
_PIECE = 2**16


def is_long(vectors: Tensor) -> bool:
    """Whether sums over vectors in rows, shape (…, P), lose digits."""
    return vectors.shape[-1] > LONG and vectors.dtype == torch.float32


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Multiply vectors in rows by others, A Bᵀ, in their dtype; sums of long ones are accumulated in float64.

    Parameters
    ----------
    a : Tensor, shape (m, P)
    b : Tensor, shape (n, P)

    Returns
    -------
    Tensor, shape (m, n)
    """
    if not is_long(a):
        return a @ b.T
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(_PIECE, 1), b.split(_PIECE, 1), strict=True):
        total += x @ y.T
    return total.to(a.dtype)


def orthonormal_rows(rows: Tensor, limit: float) -> Tensor:
    """Orthonormalise long vectors in rows, one after another; those left with less than `limit` are dropped."""
    found = rows[:0]
    for row in rows:
        if len(found):
            row = row - inner(found, row[None])[:, 0] @ found
        size = torch.linalg.vector_norm(row, dtype=torch.float64)
        if float(size) > limit:
            found = torch.cat([found, (row / size)[None].to(rows)])
    return found
