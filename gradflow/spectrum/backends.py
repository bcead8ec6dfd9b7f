"""Other eigensolvers by name, for comparison, behind the same result."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse.linalg as sla
import torch
from torch import Tensor

from gradflow.spectrum.block_krylov import Solution, block_krylov
from gradflow.spectrum.eigenpairs import orthonormalize, rayleigh_ritz
from gradflow.spectrum.operators import SymmetricOperator


def dense(
    operator: SymmetricOperator,
    k: int,
    start: Tensor | None,
    *,
    tol: float,
    max_hvps: int,
    generator: torch.Generator,
) -> Solution:
    """Form the matrix with P products and decompose it."""
    P = operator.shape[0]
    eye = torch.eye(P, device=operator.device, dtype=operator.dtype)
    pairs, rotation, _ = rayleigh_ritz(eye, operator @ eye, k, tol, n_hvp=P)
    return Solution(pairs, rotation[:, : k + 1])


def eigsh(
    operator: SymmetricOperator,
    k: int,
    start: Tensor | None,
    *,
    tol: float,
    max_hvps: int,
    generator: torch.Generator,
) -> Solution:
    """Run ARPACK's implicitly restarted Lanczos method (SciPy), algebraically largest."""
    P = operator.shape[0]
    if k >= P:  # ARPACK's limit
        return dense(operator, k, start, tol=tol, max_hvps=max_hvps, generator=generator)
    counted = _Counted(operator)
    v0 = counted.to_numpy(start).sum(1) if start is not None else _random(P, generator)
    ncv = min(P, max(2 * k + 1, 20))
    try:
        _, vectors = sla.eigsh(
            counted.linear_operator(), k=k, which="LA", v0=v0, tol=0.1 * tol, ncv=ncv,
            maxiter=max(1, max_hvps // ncv),
        )  # fmt: skip
    except sla.ArpackNoConvergence as failure:
        vectors = failure.eigenvectors
    except sla.ArpackError:  # H maps its start vector to zero
        vectors = np.zeros((P, 0))
    return counted.ritz(vectors, k, tol, generator)


def lobpcg(
    operator: SymmetricOperator,
    k: int,
    start: Tensor | None,
    *,
    tol: float,
    max_hvps: int,
    generator: torch.Generator,
) -> Solution:
    """Run the locally optimal block preconditioned conjugate gradient method (SciPy), not preconditioned."""
    P = operator.shape[0]
    if 5 * k > P:  # below that SciPy's implementation turns to a dense solver with a warning
        return dense(operator, k, start, tol=tol, max_hvps=max_hvps, generator=generator)
    counted = _Counted(operator)
    X = np.zeros((P, 0)) if start is None else counted.to_numpy(start)[:, :k]
    X = np.concatenate([X, _random(P, generator, k - X.shape[1])], 1)
    counted.matmat(X[:, :1])  # its tolerance is on ‖Hv − λv‖ itself, so a scale is needed before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of convergence is measured again below
        _, vectors = sla.lobpcg(
            counted.linear_operator(), X, largest=True, tol=tol * max(counted.scale, 1e-30),
            maxiter=max(1, max_hvps // k),
        )  # fmt: skip
    return counted.ritz(vectors, k, tol, generator)


def power(
    operator: SymmetricOperator,
    k: int,
    start: Tensor | None,
    *,
    tol: float,
    max_hvps: int,
    generator: torch.Generator,
) -> Solution:
    """Iterate a block of k + 2 vectors with H + σI, σ ≥ |λ_min|, so that the dominant end is the top.

    Without the shift, the power method finds the largest |λ|.
    """
    P = operator.shape[0]
    X = torch.empty(P, 0, device=operator.device, dtype=operator.dtype) if start is None else start
    fill = torch.randn(P, max(0, min(P, k + 2) - X.shape[1]), generator=generator, dtype=torch.float64)
    X = orthonormalize(torch.cat([X, fill.to(operator.device, operator.dtype)], 1))
    shift, scale, n_hvp = 0.0, 0.0, 0
    while True:
        HX = operator @ X
        n_hvp += X.shape[1]
        pairs, rotation, _ = rayleigh_ritz(X, HX, k, tol, n_hvp=n_hvp, scale=scale)
        scale = pairs.scale
        if bool(pairs.converged.all()) or n_hvp >= max_hvps or not np.isfinite(pairs.scale):
            return Solution(pairs, X @ rotation[:, : k + 1])
        # ‖H X‖ bounds the dominant eigenvalue from below; a tenth more makes the shift safe as X converges.
        shift = max(shift, 1.1 * float(torch.linalg.matrix_norm(HX, 2)))
        X = orthonormalize(HX + shift * X)


class _Counted:
    """A symmetric operator as SciPy wants it, with its products counted."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self._operator = operator
        self.n_hvp = 0
        self.scale = 0.0

    def matmat(self, X: np.ndarray) -> np.ndarray:
        block = torch.as_tensor(X.reshape(len(X), -1)).to(self._operator.device, self._operator.dtype)
        image = self.to_numpy(self._operator @ block)
        self.n_hvp += block.shape[1]
        norms = np.linalg.norm(X.reshape(len(X), -1), axis=0)
        ratios = np.linalg.norm(image, axis=0)[norms > 0] / norms[norms > 0]
        self.scale = max(self.scale, *ratios.tolist(), 0.0)  # a lower bound on max|λ|
        return image.reshape(X.shape)

    def linear_operator(self) -> sla.LinearOperator:
        return sla.LinearOperator(
            tuple(self._operator.shape), matvec=self.matmat, matmat=self.matmat, dtype=np.float64
        )

    @staticmethod
    def to_numpy(block: Tensor) -> np.ndarray:
        return block.detach().to("cpu", torch.float64).numpy()

    def ritz(self, vectors: np.ndarray, k: int, tol: float, generator: torch.Generator) -> Solution:
        """Measure what SciPy returned; fill up with random vectors where it returned fewer than k."""
        block = torch.as_tensor(np.ascontiguousarray(vectors)).to(self._operator.device, self._operator.dtype)
        missing = k - block.shape[1]
        if missing > 0:
            fill = torch.as_tensor(_random(len(block), generator, missing)).to(block)
            block = torch.cat([block, fill], 1)
        basis = orthonormalize(block)
        image = self._operator @ basis
        self.n_hvp += basis.shape[1]
        pairs, rotation, _ = rayleigh_ritz(basis, image, k, tol, n_hvp=self.n_hvp, scale=self.scale)
        return Solution(pairs, basis @ rotation)


def _random(P: int, generator: torch.Generator, n: int | None = None) -> np.ndarray:
    shape = (P,) if n is None else (P, n)
    return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()


BACKENDS = {
    "block-krylov": block_krylov,
    "dense": dense,
    "eigsh": eigsh,
    "lobpcg": lobpcg,
    "power": power,
}
