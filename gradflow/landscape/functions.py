"""Functions of flat θ whose surface is known, to try methods on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError


def pathological_loss(theta: Tensor) -> Tensor:
    """Evaluate a ravine between two plateaus, of two parameters.

    L(w₀, w₁) = tanh(w₀)² + 0.01|w₁| + σ(w₁), with σ the logistic function. It is flat for large |w₀| and has a
    slope of ±0.01 for large |w₁|. Its one minimum is at w₀ = 0, σ(w₁) = (1 − √0.96)/2, which is w₁ ≈ −4.5849,
    where L ≈ 0.05595.

    The Hessian is diagonal: 2(1 − t²)(1 − 3t²) with t = tanh(w₀), and s(1 − s)(1 − 2s) with s = σ(w₁); at the
    minimum 2 and 0.01√0.96. L has a kink at w₁ = 0, which the Hessian doesn't see.

    Parameters
    ----------
    theta : Tensor, shape (2,)

    Returns
    -------
    Tensor, shape ()

    References
    ----------
    P. Lippe, UvA Deep Learning Tutorials, tutorial 4.

    Examples
    --------
    >>> pathological_loss(torch.zeros(2))
    tensor(0.5000)
    """
    w0, w1 = _two(theta)
    return torch.tanh(w0) ** 2 + 0.01 * w1.abs() + torch.sigmoid(w1)


def rosenbrock(theta: Tensor) -> Tensor:
    """Evaluate Rosenbrock's function: a curved valley with steep walls.

    f(θ) = Σᵢ 100(θᵢ₊₁ − θᵢ²)² + (1 − θᵢ)², i = 1 … n − 1. The global minimum is 0 at (1, …, 1), the only critical
    point for n = 2 and 3; from n = 4 on there is a local minimum near (−1, 1, …, 1) (Shang & Qiu 2006).

    The Hessian is tridiagonal: Hᵢᵢ = 200[i > 1] + (1200θᵢ² − 400θᵢ₊₁ + 2)[i < n] and Hᵢ,ᵢ₊₁ = −400θᵢ. At the
    minimum for n = 2 its eigenvalues are 501 ± √250,601, about 1001.6 and 0.399.

    Parameters
    ----------
    theta : Tensor, shape (n,)
        n ≥ 2.

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> rosenbrock(torch.tensor([-1.0, 1.0, 1.0]))
    tensor(4.)
    """
    if theta.dim() != 1 or len(theta) < 2:
        raise InvalidInputError(f"Expected θ of shape (n,) with n ≥ 2, got {tuple(theta.shape)}.")
    return (100 * (theta[1:] - theta[:-1] ** 2) ** 2 + (1 - theta[:-1]) ** 2).sum()


def saddle(theta: Tensor) -> Tensor:
    """Evaluate a saddle with a minimum on either side, of two parameters.

    L(w₀, w₁) = ½w₀² − ½w₁² + ¼w₁⁴. The saddle is at the origin, where L = 0; the minima are at (0, ±1), where
    L = −¼. The Hessian is diagonal: 1 and 3w₁² − 1; that is 1 and −1 at the saddle, 1 and 2 at the minima.

    Parameters
    ----------
    theta : Tensor, shape (2,)

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> saddle(torch.tensor([0.0, 1.0]))
    tensor(-0.2500)
    """
    w0, w1 = _two(theta)
    return 0.5 * w0**2 - 0.5 * w1**2 + 0.25 * w1**4


def plateau(theta: Tensor) -> Tensor:
    """Evaluate a well in a plateau.

    L(θ) = r²/(1 + r²) with r = ‖θ‖, the loss of Geman & McClure (1987). The one minimum is 0 at the origin. Far
    from it L tends to 1, the gradient 2θ/(1 + r²)² to 0 as 2/r³.

    The Hessian is 2(1 + r²)⁻² I − 8(1 + r²)⁻³ θθᵀ: λ = 2(1 − 3r²)/(1 + r²)³ along θ, which is negative beyond
    r = 1/√3, and 2/(1 + r²)² across it.

    Parameters
    ----------
    theta : Tensor, shape (n,)

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> plateau(torch.tensor([0.0, 3.0]))
    tensor(0.9000)
    """
    r2 = (theta**2).sum()
    return r2 / (1 + r2)


class Quadratic:
    """L(θ) = ½ θᵀHθ, made by :func:`quadratic`.

    Attributes
    ----------
    eigenvalues : Tensor, shape (n,), float64
    basis : Tensor, shape (n, n), float64, or None
        Orthonormal eigenvectors as columns, in the order of `eigenvalues`; None for the unit vectors.
    """

    def __init__(self, eigenvalues: Tensor, basis: Tensor | None) -> None:
        self.eigenvalues = eigenvalues
        self.basis = basis

    def __call__(self, theta: Tensor) -> Tensor:
        """Evaluate ½ θᵀHθ, shape (), at θ, shape (n,)."""
        if theta.shape != self.eigenvalues.shape:
            n = len(self.eigenvalues)
            raise InvalidInputError(f"Expected θ of shape ({n},), got {tuple(theta.shape)}.")
        components = theta if self.basis is None else self.basis.to(theta).T @ theta
        return 0.5 * (self.eigenvalues.to(theta) * components**2).sum()

    @property
    def hessian(self) -> Tensor:
        """H, shape (n, n), float64."""
        if self.basis is None:
            return torch.diag(self.eigenvalues)
        return self.basis * self.eigenvalues @ self.basis.T


def quadratic(spectrum: Sequence[float] | Tensor, seed: int | None = None) -> Quadratic:
    """Make L(θ) = ½ θᵀHθ of a given spectrum.

    The origin is its critical point: a minimum if all eigenvalues are positive. The Hessian is H everywhere.

    Parameters
    ----------
    spectrum : sequence of float, length n
        Eigenvalues of H.
    seed : int, optional
        Of a random orthogonal matrix, from the Haar measure, whose columns are the eigenvectors. Default: H is
        diagonal.

    Returns
    -------
    Quadratic
        A callable of θ, shape (n,), with its ``hessian``.

    Examples
    --------
    >>> bowl = quadratic([4.0, 1.0])
    >>> bowl(torch.tensor([1.0, 2.0]))
    tensor(4.)
    """
    eigenvalues = torch.as_tensor(spectrum, dtype=torch.float64, device="cpu").clone()
    if eigenvalues.dim() != 1 or not len(eigenvalues) or not bool(torch.isfinite(eigenvalues).all()):
        raise InvalidInputError("Expected spectrum as one or more finite eigenvalues in a row.")
    if seed is None:
        return Quadratic(eigenvalues, None)
    n = len(eigenvalues)
    generator = torch.Generator("cpu").manual_seed(seed)
    draw = torch.randn(n, n, generator=generator, dtype=torch.float64, device="cpu")
    basis, triangle = torch.linalg.qr(draw)
    return Quadratic(eigenvalues, basis * triangle.diagonal().sign())


def _two(theta: Tensor) -> tuple[Tensor, Tensor]:
    if theta.shape != (2,):
        raise InvalidInputError(f"Expected θ of shape (2,), got {tuple(theta.shape)}.")
    return theta[0], theta[1]
