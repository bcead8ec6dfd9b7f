"""Third derivatives of the loss along pairs of directions."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from gradflow.flows.point import Point

#: How third derivatives are computed.
Third = Literal["reverse", "difference"]


def third_derivatives(point: Point, U: Tensor, how: Third) -> Tensor:
    """Return ∇³L[u_i, u_j] for each pair i ≤ j, off the diagonal times √2.

    Parameters
    ----------
    point : Point
    U : Tensor, shape (P, k)
    how : {"reverse", "difference"}
        By reverse mode through the products with the Hessian, exact to rounding; or by central differences of those
        products, 2k gradients and 2k² products.

    Returns
    -------
    Tensor, shape (P, k(k + 1)/2)
    """
    k = U.shape[1]
    if how == "difference":
        return _differences(point, U)
    lin, columns = point.linearization, []
    for i in range(k):
        T = lin.third(U[:, i].contiguous()) @ U[:, i:]
        columns += [T[:, :1], math.sqrt(2) * T[:, 1:]]
    return torch.cat(columns, 1) if columns else U.new_zeros(len(U), 0)


def _differences(point: Point, U: Tensor) -> Tensor:
    """Return them by (H(θ + εu_i) u_j − H(θ − εu_i) u_j)/2ε, averaged over the order of i and j."""
    θ, k = point.theta, U.shape[1]
    scale = 1 + float(torch.linalg.vector_norm(θ)) / math.sqrt(len(θ))
    rows = []
    for i in range(k):
        length = float(torch.linalg.vector_norm(U[:, i]))
        ε = torch.finfo(θ.dtype).eps ** (1 / 3) * scale / length
        ahead, behind = (point.field.linearize(θ + sign * ε * U[:, i]) for sign in (1, -1))
        rows.append((ahead @ U - behind @ U) / (2 * ε))
    columns = [
        rows[i][:, i : i + 1] if i == j else math.sqrt(0.5) * (rows[i][:, j] + rows[j][:, i])[:, None]
        for i in range(k)
        for j in range(i, k)
    ]
    return torch.cat(columns, 1) if columns else U.new_zeros(len(U), 0)
