"""The φ-functions of exponential integrators."""

from __future__ import annotations

import torch
from torch import Tensor


def phi1(z: Tensor) -> Tensor:
    """φ₁(z) = (eᶻ − 1)/z, with φ₁(0) = 1; accurate to rounding for every finite z.

    Examples
    --------
    >>> phi1(torch.tensor([0.0, 1e-12, -50.0], dtype=torch.float64))
    tensor([1.0000, 1.0000, 0.0200], dtype=torch.float64)
    """
    safe = torch.where(z == 0, torch.ones_like(z), z)
    return torch.where(z == 0, torch.ones_like(z), torch.expm1(safe) / safe)
