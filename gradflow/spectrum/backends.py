"""Other eigensolvers by name, for comparison, behind the same result."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse.linalg as sla
import torch
from torch import Tensor

from gradflow.spectrum.block_krylov import block_krylov
from gradflow.spectrum.eigenpairs import orthonormalize, rayleigh_ritz
from gradflow.spectrum.eigenproblem import EigenProblem, EigenSolution


def dense(problem: EigenProblem) -> EigenSolution:
    """Form the matrix with P products and decompose it."""
    eye = torch.eye(problem.P, device=problem.operator.device, dtype=problem.operator.dtype)
    pairs, rotation = rayleigh_ritz(eye, problem.operator @ eye, problem.k, problem.tol, n_hvp=problem.P)
    return EigenSolution(pairs, rotation[:, : problem.k + 1])


def eigsh(problem: EigenProblem) -> EigenSolution:
    """Run ARPACK's implicitly restarted Lanczos method (SciPy), algebraically largest."""
    k, P = problem.k, problem.P
    if k >= P:  # ARPACK's limit
        return dense(problem)
    products = _Products(problem)
    v0 = products.to_numpy(problem.random(1) if problem.start is None else problem.start).sum(1)
    ncv = min(P, max(2 * k + 1, 20))
    try:
        _, vectors = sla.eigsh(
            products.linear_operator(),
            k=k,
            which="LA",
            v0=v0,
            tol=0.1 * problem.tol,
            ncv=ncv,
            maxiter=max(1, problem.max_hvps // ncv),
        )
    except sla.ArpackNoConvergence as failure:
        vectors = failure.eigenvectors
    except sla.ArpackError:  # H maps its start vector to zero, or to what isn't a number
        vectors = np.zeros((P, 0))
    return products.ritz(vectors)


def lobpcg(problem: EigenProblem) -> EigenSolution:
    """Run the locally optimal block preconditioned conjugate gradient method (SciPy), not preconditioned."""
    k, P = problem.k, problem.P
    if 5 * k > P:  # below that SciPy's implementation turns to a dense solver with a warning
        return dense(problem)
    products = _Products(problem)
    start = problem.empty() if problem.start is None else problem.start[:, :k]
    X = products.to_numpy(torch.cat([start, problem.random(k - start.shape[1])], 1))
    products.matmat(X[:, :1])  # its tolerance is on ‖Hv − λv‖ itself, so a scale is needed before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convergence is measured again below
        try:
            _, vectors = sla.lobpcg(
                products.linear_operator(),
                X,
                largest=True,
                tol=problem.tol * max(products.scale, 1e-30),
                maxiter=max(1, problem.max_hvps // k),
            )
        except ValueError:  # H isn't finite
            vectors = X
    return products.ritz(vectors)


def power(problem: EigenProblem) -> EigenSolution:
    """Iterate a block of k + 2 vectors with H + σI, σ ≥ |λ_min|, so the dominant end is the top.

    Without the shift, the power method finds the largest |λ|.
    """
    k = problem.k
    X = problem.empty() if problem.start is None else problem.start
    X = orthonormalize(torch.cat([X, problem.random(max(0, min(problem.P, k + 2) - X.shape[1]))], 1))
    shift, scale, n_hvp = 0.0, 0.0, 0
    while True:
        HX = problem.operator @ X
        n_hvp += X.shape[1]
        pairs, rotation = rayleigh_ritz(X, HX, k, problem.tol, n_hvp=n_hvp, scale=scale)
        scale = pairs.scale
        if bool(pairs.converged.all()) or n_hvp >= problem.max_hvps or not np.isfinite(scale):
            return EigenSolution(pairs, X @ rotation[:, : k + 1])
        # ‖H X‖ bounds the dominant eigenvalue from below; a tenth more makes the shift safe as X converges.
        shift = max(shift, 1.1 * float(torch.linalg.matrix_norm(HX, 2)))
        X = orthonormalize(HX + shift * X)


class _Products:
    """Present the operator of a problem to SciPy, and count its products."""

    def __init__(self, problem: EigenProblem) -> None:
        self._problem = problem
        self.n_hvp = 0
        self.scale = 0.0  # a lower bound on max|λ|

    def matmat(self, X: np.ndarray) -> np.ndarray:
        columns = X.reshape(len(X), -1)
        image = self.to_numpy(self._problem.operator @ self._to_torch(columns))
        self.n_hvp += columns.shape[1]
        norms = np.linalg.norm(columns, axis=0)
        ratios = np.linalg.norm(image, axis=0)[norms > 0] / norms[norms > 0]
        self.scale = max(self.scale, *ratios.tolist(), 0.0)
        return image.reshape(X.shape)

    def linear_operator(self) -> sla.LinearOperator:
        P = self._problem.P
        return sla.LinearOperator((P, P), matvec=self.matmat, matmat=self.matmat, dtype=np.float64)

    def ritz(self, vectors: np.ndarray) -> EigenSolution:
        """Measure what SciPy returned; fill up with random vectors if it returned fewer than k."""
        problem = self._problem
        block = self._to_torch(np.ascontiguousarray(vectors))
        basis = orthonormalize(torch.cat([block, problem.random(max(0, problem.k - block.shape[1]))], 1))
        basis = torch.cat([basis, orthonormalize(problem.random(problem.k - basis.shape[1]), basis)], 1)
        image = problem.operator @ basis
        self.n_hvp += basis.shape[1]
        pairs, rotation = rayleigh_ritz(
            basis, image, problem.k, problem.tol, n_hvp=self.n_hvp, scale=self.scale
        )
        return EigenSolution(pairs, basis @ rotation)

    def _to_torch(self, block: np.ndarray) -> Tensor:
        return torch.as_tensor(block).to(self._problem.operator.device, self._problem.operator.dtype)

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
