"""The flow against an implementation of its own: the network written out in NumPy, integrated by SciPy's Radau."""

from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import gradflow
from gradflow import problems

RTOL = 1e-6


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
def reference(degree, t_max):
    """Return the loss, θ₀, θ(T), and λ₁ at both."""
    train, _, theta = problems.load(
        f"chebyshev-{degree}-20", "regression", "mse", seed=3, dtype=torch.float64
    )
    plain, start = Regression(degree), theta.numpy()
    assert np.allclose(plain.minus_gradient(0, start), -train.gradient(theta)[1].numpy(), rtol=0, atol=1e-14)
    H = train.hvp(theta, torch.eye(300, dtype=torch.float64)).numpy()
    assert np.allclose(plain.minus_hessian(0, start), -H, rtol=0, atol=1e-12)
    solution = solve_ivp(
        plain.minus_gradient,
        (0, t_max),
        start,
        method="Radau",
        rtol=1e-10,
        atol=1e-12,
        jac=plain.minus_hessian,
    )
    end = solution.y[:, -1]
    return train, theta, end, [np.linalg.eigvalsh(-plain.minus_hessian(0, θ))[-1] for θ in (start, end)]


def error(degree, t_max, method, **options):
    """Of θ(T), relative to the distance travelled."""
    train, theta, end, _ = reference(degree, t_max)
    run = gradflow.integrate(train, theta, method=method, t_max=t_max, save_every=t_max, **options)
    return np.linalg.norm(run.params.values - end) / np.linalg.norm(end - theta.numpy())


# Errors allowed per step add up, and grow where the flow does: the factors over the tolerance are what is allowed here.
@pytest.mark.parametrize("degree", [3, 4, 5])
@pytest.mark.parametrize(
    ("method", "options", "allowed"),
    [
        ("exprb43", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("rkc", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 500 * RTOL),
        ("scipy:DOP853", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("dopri8", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("rk4", {}, 1e-3),  # no tolerance: h = 1/λ₁
        ("rk4", {"alpha": 0.25}, 1e-6),
    ],
)
def test_flows_agree_with_radau(degree, method, options, allowed):
    assert error(degree, 100.0, method, **options) < allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "allowed"), [("exprb43", 200 * RTOL), ("rkc", 100 * RTOL), ("auto", 100 * RTOL)]
)
def test_flows_agree_with_radau_while_the_sharpness_grows_tenfold(method, allowed):
    _, _, _, (first, last) = reference(3, 2990.0)
    assert last > 10 * first
    assert error(3, 2990.0, method, rtol=RTOL, atol=1e-2 * RTOL) < allowed


def test_the_error_follows_the_tolerance():
    errors = [error(3, 100.0, "exprb43", rtol=rtol, atol=1e-2 * rtol) for rtol in (1e-4, 1e-7)]
    assert 0.7 < np.log10(errors[0] / errors[1]) / 3 < 1.3
