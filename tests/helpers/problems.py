"""Losses in closed form, and the linear algebra of their updates."""

import numpy as np
import torch

from gradflow import problems


def bowl(x):
    """½‖x‖²: the Hessian is the identity."""
    return 0.5 * (x**2).sum()


def ellipse(eigenvalues):
    """½ Σ λᵢ xᵢ²."""
    λ = torch.as_tensor(eigenvalues, dtype=torch.float64)
    return lambda x: 0.5 * (λ * x**2).sum()


def stretched_bowl(x):
    """½ Σ λᵢ xᵢ² in any dimension, λ from 1 to 4."""
    scale = torch.linspace(1.0, 4.0, len(x), dtype=x.dtype, device=x.device)
    return 0.5 * (scale * x**2).sum()


def quadratic(eigenvalues, seed=0):
    """A rotated quadratic: the loss, θ₀, and the flow from there, t ↦ θ(t)."""
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    λ = torch.as_tensor(eigenvalues, dtype=torch.float64)
    H = (Q * λ) @ Q.T
    theta0 = torch.randn(n, generator=g, dtype=torch.float64)
    return (lambda x: 0.5 * x @ H @ x), theta0, lambda t: Q @ (torch.exp(-λ * t) * (Q.T @ theta0))


def chebyshev():
    """The regression that most tests run: 300 parameters, float64; train, test and θ₀."""
    return problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)


def spectral_radius(*rows):
    """Of the linear map with these rows: an optimiser's update on ½λθ² is stable where it is below 1."""
    return np.abs(np.linalg.eigvals(np.stack(rows))).max()
