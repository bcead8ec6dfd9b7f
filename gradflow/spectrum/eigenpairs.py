"""The result of an eigensolver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.plain import restorable
from gradflow.spectrum.sums import inner, is_long, orthonormal_rows

#: Rows that are summed in float64 at a time.
_ROWS = 1 << 16


@restorable
@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues with their eigenvectors, and how far each can be trusted.

    Attributes
    ----------
    values : Tensor, shape (k,), float64, on the CPU
        Algebraically largest first (:meth:`SpectrumService.bottom`: smallest first). Never absolute values.
    vectors : Tensor, shape (P, k)
        Orthonormal columns, in the operator's dtype and on its device.
    residuals : Tensor, shape (k,), float64, on the CPU
        ‖Hv − λv‖ / max|λ|; 0 for H = 0. The distance from λ to the nearest eigenvalue is at most
        residual · max|λ|.
    n_hvp : int
        Products that this call took; 0 if it was answered from the cache.
    converged : Tensor, shape (k,), bool
        Whether the residual is within the tolerance asked for.
    scale : float
        max|λ| as far as it is known: the largest |Ritz value| or ‖H v‖ of a unit vector met.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    n_hvp: int
    converged: Tensor
    scale: float

    def __len__(self) -> int:
        return len(self.values)

    def first(self, k: int) -> Eigenpairs:
        """Return only the first k pairs, at no cost."""
        return Eigenpairs(
            self.values[:k], self.vectors[:, :k], self.residuals[:k], 0, self.converged[:k], self.scale
        )


def rayleigh_ritz(
    basis: Tensor, image: Tensor, k: int, tol: float, *, n_hvp: int, scale: float = 0.0
) -> tuple[Eigenpairs, Tensor]:
    """Extract the top k Ritz pairs of a symmetric H from a subspace.

    Parameters
    ----------
    basis, image : Tensor, shape (P, m)
        Orthonormal V, and H V.
    k : int
        At most m.
    tol : float
        Residual at which a pair counts as converged.
    n_hvp : int
        To be reported.
    scale : float
        A lower bound on max|λ| that is known from elsewhere.

    Returns
    -------
    pairs : Eigenpairs
    rotation : Tensor, shape (m, m)
        All Ritz vectors in terms of `basis`, largest Ritz value first, in its dtype.
    """
    projected = (basis.T @ image).to("cpu", torch.float64)
    if not bool(torch.isfinite(projected).all()):
        nan = torch.full((k,), torch.nan, dtype=torch.float64, device="cpu")
        pairs = Eigenpairs(
            nan, basis[:, :k], nan, n_hvp, torch.zeros(k, dtype=torch.bool, device="cpu"), torch.nan
        )
        eye = torch.eye(basis.shape[1], device=basis.device, dtype=basis.dtype)
        return pairs, eye
    ritz, rotation = torch.linalg.eigh(0.5 * (projected + projected.T))
    ritz, rotation = ritz.flip(0), rotation.flip(1)
    # Both bound max|λ| from below: Ritz values, and ‖H v‖ of unit vectors.
    scale = max(scale, float(ritz.abs().max()), float(_norms(image).max()))
    local = rotation.to(basis)
    vectors, images = basis @ local[:, :k], image @ local[:, :k]
    values = ritz[:k]
    if basis.dtype != torch.float64:
        values, vectors, images = _in_float64(vectors, images)
    defects = images - vectors * values.to(basis)
    norms = _norms(defects)
    residuals = norms / scale if scale > 0 else norms
    pairs = Eigenpairs(values, vectors, residuals, n_hvp, residuals <= tol, scale)
    return pairs, local


def _in_float64(vectors: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Solve the Rayleigh–Ritz problem of k vectors and their images again, with sums in float64.

    In float32, sums over 10⁵ to 10⁶ parameters leave errors of 1e-5 of the largest in Ritz values.
    """
    A, G = _sums(vectors, images), _sums(vectors, vectors)
    L = torch.linalg.cholesky(G)
    A = torch.linalg.solve_triangular(L, 0.5 * (A + A.T), upper=False)
    values, turn = torch.linalg.eigh(torch.linalg.solve_triangular(L, A.T, upper=False))
    turn = torch.linalg.solve_triangular(L.T, turn.flip(1), upper=True).to(vectors)
    return values.flip(0), vectors @ turn, images @ turn


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀ b on the CPU, with sums in float64, in pieces that take little memory."""
    return sum(
        (
            x.to(torch.float64).T @ y.to(torch.float64)
            for x, y in zip(a.split(_ROWS), b.split(_ROWS), strict=True)
        ),
        torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device),
    ).cpu()


def _norms(block: Tensor) -> Tensor:
    """Return the 2-norms of columns on the CPU; in float64, in which squares neither under- nor overflow."""
    return torch.linalg.vector_norm(block, dim=0, dtype=torch.float64).cpu()


def orthonormalize(block: Tensor, against: Tensor | None = None) -> Tensor:
    """Orthonormalise columns, shape (P, b), against each other and a basis; dependent ones are dropped.

    Projection and QR, done twice ("twice is enough", Giraud et al. 2005).
    """
    keep = torch.isfinite(block).all(0) & (block != 0).any(0)
    block = block[:, keep]
    if not block.shape[1]:
        return block
    block = block / block.abs().amax(0)  # before the norm, which may underflow
    block = block / torch.linalg.vector_norm(block, dim=0)
    limit = 1e3 * torch.finfo(block.dtype).eps
    for _ in range(2):
        if against is not None:
            block = block - against @ inner(against.T, block.T)
        if is_long(block.T):
            block = orthonormal_rows(block.T, limit).T
        else:
            block, triangle = torch.linalg.qr(block)
            block = block[:, triangle.diagonal().abs() > limit]
        limit = 0.5  # the second pass starts from unit vectors: what shrinks there was rounding
        if not block.shape[1]:
            break
    return block
