"""Other eigensolvers by name, for comparison, behind the same result."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse.linalg as sla
import torch
from torch import Tensor

from gradflow.spectrum.block_krylov import block_krylov
from gradflow.spectrum.eigenpairs import orthonormalize, rayleigh_ritz
from gradflow.spectrum.task import Solution, Task


def dense(task: Task) -> Solution:
    """Form the matrix with P products and decompose it."""
    eye = torch.eye(task.P, device=task.operator.device, dtype=task.operator.dtype)
    pairs, rotation = rayleigh_ritz(eye, task.operator @ eye, task.k, task.tol, n_hvp=task.P)
    return Solution(pairs, rotation[:, : task.k + 1])


def eigsh(task: Task) -> Solution:
    """Run ARPACK's implicitly restarted Lanczos method (SciPy), algebraically largest."""
    k, P = task.k, task.P
    if k >= P:  # ARPACK's limit
        return dense(task)
    products = _Products(task)
    v0 = products.to_numpy(task.random(1) if task.start is None else task.start).sum(1)
    ncv = min(P, max(2 * k + 1, 20))
    try:
        _, vectors = sla.eigsh(
            products.linear_operator(),
            k=k,
            which="LA",
            v0=v0,
            tol=0.1 * task.tol,
            ncv=ncv,
            maxiter=max(1, task.max_hvps // ncv),
        )
    except sla.ArpackNoConvergence as failure:
        vectors = failure.eigenvectors
    except sla.ArpackError:  # H maps its start vector to zero, or to what isn't a number
        vectors = np.zeros((P, 0))
    return products.ritz(vectors)


def lobpcg(task: Task) -> Solution:
    """Run the locally optimal block preconditioned conjugate gradient method (SciPy), not preconditioned."""
    k, P = task.k, task.P
    if 5 * k > P:  # below that SciPy's implementation turns to a dense solver with a warning
        return dense(task)
    products = _Products(task)
    start = task.empty() if task.start is None else task.start[:, :k]
    X = products.to_numpy(torch.cat([start, task.random(k - start.shape[1])], 1))
    products.matmat(X[:, :1])  # its tolerance is on ‖Hv − λv‖ itself, so a scale is needed before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of convergence is measured again below
        try:
            _, vectors = sla.lobpcg(
                products.linear_operator(),
                X,
                largest=True,
                tol=task.tol * max(products.scale, 1e-30),
                maxiter=max(1, task.max_hvps // k),
            )
        except ValueError:  # H isn't finite
            vectors = X
    return products.ritz(vectors)


def power(task: Task) -> Solution:
    """Iterate a block of k + 2 vectors with H + σI, σ ≥ |λ_min|, so that the dominant end is the top.

    Without the shift, the power method finds the largest |λ|.
    """
    k = task.k
    X = task.empty() if task.start is None else task.start
    X = orthonormalize(torch.cat([X, task.random(max(0, min(task.P, k + 2) - X.shape[1]))], 1))
    shift, scale, n_hvp = 0.0, 0.0, 0
    while True:
        HX = task.operator @ X
        n_hvp += X.shape[1]
        pairs, rotation = rayleigh_ritz(X, HX, k, task.tol, n_hvp=n_hvp, scale=scale)
        scale = pairs.scale
        if bool(pairs.converged.all()) or n_hvp >= task.max_hvps or not np.isfinite(scale):
            return Solution(pairs, X @ rotation[:, : k + 1])
        # ‖H X‖ bounds the dominant eigenvalue from below; a tenth more makes the shift safe as X converges.
        shift = max(shift, 1.1 * float(torch.linalg.matrix_norm(HX, 2)))
        X = orthonormalize(HX + shift * X)


class _Products:
    """The operator of a task as SciPy wants it, with its products counted."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.n_hvp = 0
        self.scale = 0.0  # a lower bound on max|λ|

    def matmat(self, X: np.ndarray) -> np.ndarray:
        columns = X.reshape(len(X), -1)
        image = self.to_numpy(self._task.operator @ self._to_torch(columns))
        self.n_hvp += columns.shape[1]
        norms = np.linalg.norm(columns, axis=0)
        ratios = np.linalg.norm(image, axis=0)[norms > 0] / norms[norms > 0]
        self.scale = max(self.scale, *ratios.tolist(), 0.0)
        return image.reshape(X.shape)

    def linear_operator(self) -> sla.LinearOperator:
        P = self._task.P
        return sla.LinearOperator((P, P), matvec=self.matmat, matmat=self.matmat, dtype=np.float64)

    def ritz(self, vectors: np.ndarray) -> Solution:
        """Measure what SciPy returned; fill up with random vectors where it returned fewer than k."""
        task = self._task
        block = self._to_torch(np.ascontiguousarray(vectors))
        basis = orthonormalize(torch.cat([block, task.random(max(0, task.k - block.shape[1]))], 1))
        basis = torch.cat([basis, orthonormalize(task.random(task.k - basis.shape[1]), basis)], 1)
        image = task.operator @ basis
        self.n_hvp += basis.shape[1]
        pairs, rotation = rayleigh_ritz(basis, image, task.k, task.tol, n_hvp=self.n_hvp, scale=self.scale)
        return Solution(pairs, basis @ rotation)

    def _to_torch(self, block: np.ndarray) -> Tensor:
        return torch.as_tensor(block).to(self._task.operator.device, self._task.operator.dtype)

    @staticmethod
    def to_numpy(block: Tensor) -> np.ndarray:
        return block.detach().to("cpu", torch.float64).numpy()


#: The eigensolvers by name.
BACKENDS = {
    "block-krylov": block_krylov,
    "dense": dense,
    "eigsh": eigsh,
    "lobpcg": lobpcg,
    "power": power,
}
