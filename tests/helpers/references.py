"""The flow by an implementation of its own: the network written out in NumPy, integrated by SciPy's Radau."""

from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp

from gradflow import problems


class Regression:
    """½ mean (tanh(xw + b)·v − y)² on 20 points, with gradient and Hessian in closed form."""

    def __init__(self, degree):
        self.x = np.linspace(-1, 1, 20)
        self.y = np.cos(degree * np.arccos(self.x))

    def _parts(self, θ):
        w, b, v = θ[:100], θ[100:200], θ[200:]
        a = np.tanh(np.outer(self.x, w) + b)
        return v, a, 1 - a * a, (a @ v - self.y) / 20

    def minus_gradient(self, t, θ):
        v, a, slope, r = self._parts(θ)
        d = r[:, None] * slope * v
        return -np.concatenate([self.x @ d, d.sum(0), r @ a])

    def minus_hessian(self, t, θ):
        x, (v, a, slope, r) = self.x, self._parts(θ)
        J = np.hstack([x[:, None] * slope * v, slope * v, a])
        H = J.T @ J / 20
        c = r[:, None] * slope
        k = -2 * a * c * v
        i = np.arange(100)
        H[i, i] += x**2 @ k
        H[100 + i, 100 + i] += k.sum(0)
        for p, q, value in ((i, 100 + i, x @ k), (i, 200 + i, x @ c), (100 + i, 200 + i, c.sum(0))):
            H[p, q] += value
            H[q, p] += value
        return -H


@cache
def by_radau(degree, times, *, seed=0, rtol=1e-11, atol=1e-13):
    """The flow of ``chebyshev-DEGREE-20``: the loss, θ₀, and θ at the times, shape (n, P)."""
    train, _, theta = problems.load(
        f"chebyshev-{degree}-20", "regression", "mse", seed=seed, dtype=torch.float64
    )
    plain, start = Regression(degree), theta.numpy()
    assert np.allclose(plain.minus_gradient(0, start), -train.gradient(theta)[1].numpy(), rtol=0, atol=1e-14)
    H = train.hvp(theta, torch.eye(300, dtype=torch.float64)).numpy()
    assert np.allclose(plain.minus_hessian(0, start), -H, rtol=0, atol=1e-12)
    solution = solve_ivp(
        plain.minus_gradient, (0.0, times[-1]), start, method="Radau", jac=plain.minus_hessian, t_eval=times,
        rtol=rtol, atol=atol,
    )  # fmt: skip
    assert solution.success
    return train, theta, solution.y.T


def sharpness(degree, θ):
    """λ₁ of the Hessian at θ, shape (P,)."""
    return np.linalg.eigvalsh(-Regression(degree).minus_hessian(0, θ))[-1]
