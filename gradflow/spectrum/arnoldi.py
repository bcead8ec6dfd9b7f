"""The largest eigenvalue of an operator that isn't symmetric."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradflow.spectrum.eigenpairs import Eigenpairs

#: Steps before the residual is looked at, and at most.
_LEAST, _MOST = 4, 40


def largest_magnitude(multiply: Callable[[Tensor], Tensor], start: Tensor, tol: float) -> Eigenpairs:
    """Estimate max|λ| by Arnoldi's method (Saad 2011, Numerical Methods for Large Eigenvalue Problems, 6.2).

    Parameters
    ----------
    multiply : callable
        Multiplies a vector, shape (P,), by the operator.
    start : Tensor, shape (P,)
        Where to start: the vector of an estimate nearby, or a random one.
    tol : float
        Residual relative to max|λ|.

    Returns
    -------
    Eigenpairs
        One: |λ|, with the real part of its vector, shape (P, 1).
    """
    P = len(start)
    basis = [start / torch.linalg.vector_norm(start)]
    H = np.zeros((_MOST + 1, _MOST))
    for n in range(1, min(_MOST, P) + 1):
        image = multiply(basis[-1])
        for _ in range(2):  # "twice is enough" (Giraud et al. 2005)
            for i, q in enumerate(basis):
                part = torch.dot(q, image)
                H[i, n - 1] += float(part)
                image = image - part * q
        left = float(torch.linalg.vector_norm(image))
        H[n, n - 1] = left
        if not np.isfinite(H[: n + 1, :n]).all():
            return _one(np.nan, basis[0], np.nan, n)
        λ, Y = np.linalg.eig(H[:n, :n])
        i = int(np.argmax(np.abs(λ)))
        scale, residual = float(np.abs(λ[i])), left * float(np.abs(Y[-1, i]))
        exhausted = n == P or left <= torch.finfo(image.dtype).eps * max(scale, left)
        if exhausted or (n >= _LEAST and residual <= tol * scale):
            break
        basis.append(image / left)
    weights = torch.from_numpy(np.ascontiguousarray(Y[:, i].real)).to(start)
    vector = torch.stack(basis[:n]).T @ weights
    length = torch.linalg.vector_norm(vector)
    vector = vector / length if float(length) > 0 else basis[0]
    return _one(scale, vector, 0.0 if scale == 0 else residual / scale, n, tol)


def _one(scale: float, vector: Tensor, residual: float, n: int, tol: float = 0.0) -> Eigenpairs:
    one = torch.tensor([scale, residual], dtype=torch.float64, device="cpu")
    return Eigenpairs(one[:1], vector[:, None], one[1:], n, one[1:] <= tol, scale)
