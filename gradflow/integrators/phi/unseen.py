"""Directions that the gradient has no part in, which a polynomial of the Hessian on it doesn't control."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.integrators.phi.spaces import KrylovSpace
from gradflow.spectrum import SymmetricOperator

#: Lanczos steps of a search.
_STEPS = 10
#: Residual, relative to the eigenvalue, up to which a Ritz pair tells what the gradient has of the eigenvector.
_CONVERGED = 1e-2
#: An eigenvalue that is smaller, relative to the largest, acts like 0, which leaves a direction alone.
_SMALL = 1e-3
#: Part of the gradient below which it is rounding errors, in machine epsilons and at least.
_ROUNDING, _NOTHING = 100, 1e-8


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes
    ----------
    unseen : bool
        An eigenvector has no part in the gradient, but for rounding errors.
    lowest : float
        An upper bound of the smallest eigenvalue.
    """

    unseen: bool
    lowest: float


def search(operator: SymmetricOperator, gradient: Tensor) -> Search:
    """Look for eigenvectors that a gradient, shape (P,), has no part in, by Lanczos steps from a random vector.

    Those with an eigenvalue outside the bulk are found: in ten steps where it is twice the bulk's width away. Where
    an eigenvalue is multiple, it is all of its eigenspace that the gradient must miss. The random vector is always
    the same one.

    Examples
    --------
    >>> H = torch.diag(torch.tensor([9.0, 4.0, 0.1, 0.2], dtype=torch.float64))
    >>> search(H, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)).unseen
    True
    >>> search(H, torch.tensor([1.0, 1e-3, 1.0, 1.0], dtype=torch.float64)).unseen
    False
    """
    P = operator.shape[0]
    start = torch.randn(P, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu")
    space = KrylovSpace(operator, _STEPS)
    space.coordinates(start.to(gradient))
    lowest = float(space.eigenvalues(_STEPS)[0])
    pairs = space.top(_STEPS)
    parts = (pairs.vectors.T @ gradient).abs() / torch.linalg.vector_norm(gradient)
    λ, scale = pairs.values.abs(), pairs.scale
    telling = (pairs.residuals * scale <= _CONVERGED * λ) & (λ > _SMALL * scale)
    nothing = max(_NOTHING, _ROUNDING * torch.finfo(gradient.dtype).eps)
    return Search(bool((telling & (parts.cpu() <= nothing)).any()), lowest)
