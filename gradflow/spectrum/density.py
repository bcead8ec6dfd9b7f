"""The spectral density by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.spectrum.eigenpairs import orthonormalize
from gradflow.spectrum.eigenproblem import random_vectors
from gradflow.spectrum.operators import SymmetricOperator


@dataclass(frozen=True)
class SpectralDensity:
    """The eigenvalue density of H as Gauss quadrature rules, one per random vector.

    Attributes
    ----------
    nodes, weights : Tensor, shape (n_vectors, n_steps), float64, on the CPU
        Ritz values and their weights; a row's weights sum to 1.
    n_hvp : int
        Products that it took.
    """

    nodes: Tensor
    weights: Tensor
    n_hvp: int

    def smoothed(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Evaluate the density at x, convolved with a Gaussian of standard deviation sigma.

        Parameters
        ----------
        x : Tensor, shape (n,)
        sigma : float

        Returns
        -------
        density, standard_error : Tensor, shape (n,), float64
            Mean over the random vectors, and its standard error (NaN for one vector).
        """
        z = (x.to(torch.float64)[:, None, None] - self.nodes) / sigma
        bumps = torch.exp(-0.5 * z**2) / (sigma * (2 * torch.pi) ** 0.5)
        rows = (bumps * self.weights).sum(-1)
        n = rows.shape[1]
        error = rows.std(1) / n**0.5 if n > 1 else torch.full_like(rows[:, 0], float("nan"))
        return rows.mean(1), error


def lanczos_density(
    operator: SymmetricOperator, n_vectors: int, n_steps: int, generator: torch.Generator
) -> SpectralDensity:
    """Estimate the spectral density by `n_steps` of Lanczos from `n_vectors` random unit vectors.

    Stochastic Lanczos quadrature (Lin, Saad & Yang 2016; Ghorbani, Krishnan & Xiao 2019), with full
    reorthogonalisation. A run that exhausts its Krylov space is shorter; it is filled with weight 0.
    """
    P = operator.shape[0]
    n_steps = min(n_steps, P)
    nodes = torch.zeros(n_vectors, n_steps, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    n_hvp = 0
    for row in range(n_vectors):
        V = orthonormalize(random_vectors(operator, 1, generator))
        HV = torch.empty(P, 0, device=operator.device, dtype=operator.dtype)
        while True:
            HV = torch.cat([HV, operator @ V[:, -1:]], 1)
            n_hvp += 1
            if V.shape[1] == n_steps:
                break
            new = orthonormalize(HV[:, -1:], V)
            if not new.shape[1]:
                break
            V = torch.cat([V, new], 1)
        T = (V.T @ HV).to("cpu", torch.float64)
        if not bool(torch.isfinite(T).all()):
            nodes[row] = weights[row] = torch.nan
            continue
        ritz, rotation = torch.linalg.eigh(0.5 * (T + T.T))
        nodes[row, : len(ritz)] = ritz
        weights[row, : len(ritz)] = rotation[0] ** 2
    return SpectralDensity(nodes, weights, n_hvp)
