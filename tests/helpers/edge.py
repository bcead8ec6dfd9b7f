"""A problem on which gradient descent reaches the edge of stability, in float64 (Berthier 2026, arXiv:2609.01034)."""

import torch

#: Learning rate, so that 2/η = 6.667, and the start.
LR = 0.3
START = torch.tensor([0.0, 5.5], dtype=torch.float64)


def valley(w):
    """½ (y + x) x² − 0.01 (x + y): its floor goes down slowly along y, and gets sharper, λ₁ ≈ y."""
    x, y = w
    return 0.5 * (y + x) * x**2 - 0.01 * (x + y)
