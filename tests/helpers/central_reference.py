"""The central flow by the authors' explicit Euler scheme, dense, and by nothing of gradflow's.

Time is in optimiser steps. Hessians and third derivatives are whole arrays, by torch.func in float64, so P ≤ 12 or so.
Source: Cohen, Damian, Talwalkar, Kolter, Lee, arXiv 2410.24206; the scheme is that of their code.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad, hessian, jacrev
from torch.fx.experimental.proxy_tensor import make_fx

double = torch.float64


@dataclass
class Path:
    """One row for each time in `t`; Σ is `sigma`, shape (n, P, P), of the substep that starts there."""

    t: np.ndarray
    theta: np.ndarray
    state: np.ndarray  # ν of the RMSProps; empty for gradient descent
    loss: np.ndarray
    predicted_loss: np.ndarray
    sigma: np.ndarray

    @property
    def sigma_trace(self):
        return np.trace(self.sigma, axis1=1, axis2=2)

    @property
    def sigma_eigenvalue(self):
        """Descending, shape (n, P)."""
        return np.linalg.eigvalsh(self.sigma)[:, ::-1]


class _Derivatives:
    """L, ∇L, H and ∇³L of a function of flat θ, as NumPy arrays; traced once, since torch.func is slow call by call."""

    def __init__(self, loss, w):
        functions = {
            "loss": loss,
            "gradient": grad(loss),
            "hessian": hessian(loss),
            "third": jacrev(hessian(loss)),
        }
        at = torch.as_tensor(w, dtype=double)
        self._graphs = {name: _traced(function, at) for name, function in functions.items()}

    def __getattr__(self, name):
        graph = self._graphs[name]

        def evaluate(w):
            with torch.no_grad():
                return graph(torch.as_tensor(w, dtype=double)).numpy()

        return evaluate


def _traced(function, at):
    graph = make_fx(function)(at)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; nothing else is as fast call by call
        return torch.jit.trace(graph, (at,), check_trace=False)


class GradientDescent:
    """P = 1/η(t), without a state. `lr` is a number, or a function of the step."""

    def __init__(self, lr):
        self._lr = lr if callable(lr) else lambda t: lr

    def start(self, g):
        return np.empty(0)

    def P(self, t, nu, n):
        return np.full(n, 1.0 / self._lr(t))

    def P_rate(self, t, nu, rate, n):
        """d/dt of P along the flow, for ν's rate; the clock runs with t."""
        e = 1e-4
        return np.full(n, (1 / self._lr(t + e) - 1 / self._lr(t - e)) / (2 * e))

    def rate(self, nu, g, HSH):
        return np.empty(0)

    def response(self, nu, HSH):
        """What diag(HΣH) adds to ν's rate."""
        return np.empty(0)


class RMSProp:
    """P = √ν/η (or with ε: (√ν̂ + ε)/η), dν/dt = κ[g² + diag(HΣH) − ν]; one ν for all entries where `scalar`."""

    def __init__(self, lr, beta2, *, scalar=False, eps=0.0, bias_correction=False, nu=None):
        self.lr, self.beta2, self.scalar, self.eps, self.bias, self.nu = (
            lr,
            beta2,
            scalar,
            eps,
            bias_correction,
            nu,
        )
        self.kappa = (1 - beta2) / beta2

    def _sum(self, squares):
        return squares.sum(keepdims=True) if self.scalar else squares

    def start(self, g):
        """The optimiser's ν after its first gradient, from 0, unless it was given."""
        return (
            (1 - self.beta2) * self._sum(g * g)
            if self.nu is None
            else np.atleast_1d(np.asarray(self.nu, float))
        )

    def P(self, t, nu, n):
        corrected = nu / (1 - self.beta2 ** (t + 1)) if self.bias else nu
        return np.broadcast_to((np.sqrt(corrected) + self.eps) / self.lr, (n,)).copy()

    def P_rate(self, t, nu, rate, n):
        e = 1e-6
        return (self.P(t + e, nu + e * rate, n) - self.P(t - e, nu - e * rate, n)) / (2 * e)

    def rate(self, nu, g, HSH):
        return self.kappa * (self._sum(g * g) + self._sum(HSH) - nu)

    def response(self, nu, HSH):
        return self.kappa * self._sum(HSH)


# ---------------------------------------------------------------------- its own complementarity problem

_ROOT = np.sqrt(2.0)


def _vec(M):
    i, j = np.triu_indices(len(M))
    return np.where(i == j, 1.0, _ROOT) * M[i, j]


def _mat(v, k):
    i, j = np.triu_indices(k)
    M = np.zeros((k, k))
    M[i, j] = M[j, i] = v / np.where(i == j, 1.0, _ROOT)
    return M


def complementarity(a, B, k, x=None, tol=1e-13):
    """X of 0 ⪯ X ⟂ a + B[X] ⪰ 0: linear where that is positive, else by accelerated projected gradient steps."""
    if np.linalg.eigvalsh(_mat(a, k))[0] >= 0:
        return np.zeros_like(a)
    if np.linalg.cond(B) < 1e12:
        y = np.linalg.solve(B, -a)
        if np.linalg.eigvalsh(_mat(y, k))[0] >= 0:
            return y
    if k == 1:
        return np.maximum(-a / B[0], 0.0)
    step = 1.0 / np.linalg.norm(B, 2)
    x = np.zeros_like(a) if x is None or len(x) != len(a) else x
    y, s = x, 1.0
    for _ in range(200_000):
        values, W = np.linalg.eigh(_mat(y - step * (B @ y + a), k))
        new = _vec((W * np.maximum(values, 0.0)) @ W.T)
        if np.linalg.norm(new - y) <= tol * np.linalg.norm(new):
            return new
        if (y - new) @ (new - x) > 0:
            s = 1.0
        grown = 0.5 + np.sqrt(0.25 + s * s)
        y, x, s = new + (s - 1) / grown * (new - x), new, grown
    raise RuntimeError("the reference's projected gradient steps did not converge")


# ---------------------------------------------------------------------- the scheme


def euler(loss, theta, rule, n_steps, *, substeps=4, threshold=1.95, save=None):
    """Follow the central flow of a rule for so many optimiser steps; rows at the steps `save`, default all."""
    D, w, dt = _Derivatives(loss, theta), np.array(theta, dtype=float), 1.0 / substeps
    nu, n = rule.start(D.gradient(w)), len(w)
    keep = set(range(n_steps + 1) if save is None else save)
    rows, x = [], None
    for i in range(n_steps * substeps + 1):
        t = i * dt
        g, H, P = D.gradient(w), D.hessian(w), rule.P(t, nu, n)
        root = 1 / np.sqrt(P)
        effective, V = np.linalg.eigh(root[:, None] * H * root)
        critical = effective > threshold
        U, k = root[:, None] * V[:, critical], int(critical.sum())  # UᵀPU = 1
        Σ, drift, HSH = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        if k:
            T3 = D.third(w)
            pairs = list(zip(*np.triu_indices(k), strict=True))
            weight = np.array([1.0 if p == q else _ROOT for p, q in pairs])
            T = weight[:, None] * np.array([np.einsum("abc,a,b->c", T3, U[:, p], U[:, q]) for p, q in pairs])
            HU = P[:, None] * U * effective[critical]
            HUU = weight[:, None] * np.array([HU[:, p] * HU[:, q] for p, q in pairs])  # diag(HΣH) = Xᵀ HUU
            UU = weight[:, None] * np.array([U[:, p] * U[:, q] for p, q in pairs])

            def P_change(rate, t=t, nu=nu, UU=UU):
                """d/dt of 2 uᵢᵀPuⱼ where ν changes at a rate, the clock standing still."""
                return 2 * UU @ (_moved_P(rule, t, nu, rate, n))

            alpha = T @ (g / P) + 2 * UU @ rule.P_rate(t, nu, rule.rate(nu, g, np.zeros(n)), n)
            beta = 0.5 * T @ (T / P).T
            if len(nu):
                beta = beta + np.array([P_change(rule.response(nu, row)) for row in HUU]).T
                beta = 0.5 * (beta + beta.T)
            A = _vec(np.diag(2.0 - effective[critical]))
            x = complementarity(A + dt * alpha, dt * beta, k, x)
            X = _mat(x, k)
            Σ, drift, HSH = U @ X @ U.T, 0.5 * x @ T, x @ HUU
        if i % substeps == 0 and i // substeps in keep:
            value = float(D.loss(w))
            predicted = value + 0.5 * np.sum(H * Σ)
            rows.append((t, w.copy(), nu.copy(), value, predicted, Σ))
        w, nu = w - dt * (g + drift) / P, nu + dt * rule.rate(nu, g, HSH)
    return Path(*(np.array(column) for column in zip(*rows, strict=True)))


def _moved_P(rule, t, nu, rate, n):
    scale = np.abs(nu).max() / max(np.abs(rate).max(), 1e-300)
    e = 1e-6 * scale
    return (rule.P(t, nu + e * rate, n) - rule.P(t, nu - e * rate, n)) / (2 * e)
