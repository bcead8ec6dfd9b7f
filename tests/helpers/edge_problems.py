"""Problems on which the central flow has a closed form: losses of flat θ, and θ, Σ and the loss as functions of time.

Time is in optimiser steps here; `time` turns it into that of the flow. Entries of θ that oscillate are 0 in the flow.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch.fx.experimental.proxy_tensor import make_fx

double = torch.float64


@dataclass(frozen=True)
class EdgeProblem:
    """A loss, a start, and what the central flow does.

    `exact(steps)` gives by name, for an array of steps: ``theta`` (n, P), ``sigma_eigenvalue`` (n, modes) descending,
    ``predicted_train_loss`` (n,).
    `entries` and `leaves` are the steps at which directions become critical, and stop being it.
    """

    loss: Callable
    start: torch.Tensor
    options: dict[str, Any]  # of the flow: lr, rule, …
    exact: Callable
    entries: tuple[float, ...] = ()
    leaves: tuple[float, ...] = ()
    n_steps: int = 0
    constants: dict[str, float] = field(default_factory=dict)

    @property
    def lr(self):
        return self.options["lr"]

    def time(self, steps):
        """The flow's time of a number of steps: ∫lr for gradient descent, steps for the RMSProps."""
        if "rule" in self.options:
            return np.asarray(steps, dtype=float)
        if callable(self.lr):
            return self.constants["flow_time"](np.asarray(steps, dtype=float))
        return self.lr * np.asarray(steps, dtype=float)


def tensor(*entries):
    return torch.tensor(entries, dtype=double)


def rows(*columns):
    """Columns of numbers or arrays, broadcast, as rows."""
    return np.stack(np.broadcast_arrays(*columns), axis=-1).astype(float)


# ---------------------------------------------------------------------- T1: one eigenvalue, plateau


def plateau(top=22.0, *, bottom=15.0, c=0.05, lr=0.1, n_steps=800, x=0.0, force=0.0):
    """½yx² + ½c(y − Y)²: y rises to 2/η and stays there, with σ² = 2c(Y − 2/η). θ = (x, y)."""
    edge = 2 / lr
    entry = np.log((top - bottom) / (top - edge)) / (lr * c)

    def loss(w):
        return 0.5 * w[1] * w[0] ** 2 + 0.5 * c * (w[1] - top) ** 2 + force * w[0]

    def exact(steps):
        y = np.where(steps < entry, top - (top - bottom) * np.exp(-lr * c * steps), edge)
        variance = np.where(steps < entry, 0.0, 2 * c * (top - edge))
        return {
            "theta": rows(0.0, y),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": 0.5 * c * (y - top) ** 2 + variance / lr,
        }

    return EdgeProblem(loss, tensor(x, bottom), {"lr": lr}, exact, (entry,), (), n_steps)


# ---------------------------------------------------------------------- T2, T3: curved edges


def _bowl(curvature, slope, damping, radius):
    """½s(r)x² − ay + ½d(r − ρ)² of θ = (x, y, z), r = |(y, z)|."""

    def loss(w):
        square = w[1] ** 2 + w[2] ** 2
        value = 0.5 * curvature(square) * w[0] ** 2 - slope * w[1]
        return value + (0.5 * damping * (square.sqrt() - radius) ** 2 if damping else 0.0)

    return loss


def circle(angle=1.4, *, slope=0.2, damping=1.0, lr=0.1, radius=4.0, n_steps=600, x=0.0):
    """s = ½κr², start on the circle s = 2/η at an angle: y slides to its right end, σ² = ½aηρ tanh u."""
    kappa = 4 / (lr * radius**2)
    u0, rate = np.arctanh(np.cos(angle)), lr * slope / radius

    def exact(steps):
        u = u0 + rate * steps
        variance = 0.5 * slope * lr * radius * np.tanh(u)
        return {
            "theta": rows(0.0, radius * np.tanh(u), radius / np.cosh(u)),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": -0.5 * slope * radius * np.tanh(u),
        }

    start = tensor(x, radius * np.cos(angle), radius * np.sin(angle))
    loss = _bowl(lambda r2: 0.5 * kappa * r2, slope, damping, radius)
    return EdgeProblem(loss, start, {"lr": lr}, exact, (0.0,), (), n_steps)


def circle_from_inside(start=(1.0, 3.0), *, slope=0.02, lr=0.1, radius=4.0, n_steps=4000):
    """The same without damping, from inside: a straight line to the circle first."""
    y0, z0 = start
    y1 = np.sqrt(radius**2 - z0**2)
    entry = (y1 - y0) / (lr * slope)
    on_edge = circle(np.arctan2(z0, y1), slope=slope, damping=0.0, lr=lr, radius=radius)

    def exact(steps):
        late = on_edge.exact(np.maximum(steps - entry, 0.0))
        y, before = y0 + lr * slope * steps, steps < entry
        return {
            "theta": np.where(before[:, None], rows(0.0, y, z0), late["theta"]),
            "sigma_eigenvalue": np.where(before[:, None], 0.0, late["sigma_eigenvalue"]),
            "predicted_train_loss": np.where(before, -slope * y, late["predicted_train_loss"]),
        }

    return EdgeProblem(on_edge.loss, tensor(0.0, y0, z0), {"lr": lr}, exact, (entry,), (), n_steps)


def disc(start=(-5.5, 3.0), *, slope=0.02, lr=0.1, kappa=1.0, radius=4.0, n_steps=4500):
    """s = 2/η + ½κ(ρ² − r²), so that a disc is forbidden: enter at its rim, slide along it, leave at its top."""
    y0, z0 = start
    y1 = -np.sqrt(radius**2 - z0**2)
    rate, u1 = lr * slope / radius, np.arctanh(y1 / radius)
    entry = (y1 - y0) / (lr * slope)
    leave = entry - u1 / rate

    def exact(steps):
        u = u1 + rate * (steps - entry)
        before, after = steps < entry, steps > leave
        y = np.where(
            before,
            y0 + lr * slope * steps,
            np.where(after, lr * slope * (steps - leave), radius * np.tanh(u)),
        )
        z = np.where(before, z0, np.where(after, radius, radius / np.cosh(np.minimum(u, 0.0))))
        variance = np.where(before | after, 0.0, -2 * slope * np.tanh(u) / (kappa * radius))
        return {
            "theta": rows(0.0, y, z),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": -slope * y + variance / lr,
        }

    loss = _bowl(lambda r2: 2 / lr + 0.5 * kappa * (radius**2 - r2), slope, 0.0, radius)
    return EdgeProblem(loss, tensor(0.0, y0, z0), {"lr": lr}, exact, (entry,), (leave,), n_steps)


# ---------------------------------------------------------------------- T4: a matrix at the edge


def matrix_of(w):
    """M, shape (…, 2, 2), of θ = (x₁, x₂, M₁₁, √2 M₁₂, M₂₂)."""
    off = w[..., 3] / np.sqrt(2.0)
    return np.stack([np.stack([w[..., 2], off], -1), np.stack([off, w[..., 4]], -1)], -2)


def _entries(M):
    return [M[0, 0], np.sqrt(2.0) * M[0, 1], M[1, 1]]


def _turned(angle, values):
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return R @ np.diag(values) @ R.T


def _quadratic(w):
    off = w[3] / np.sqrt(2.0)
    return 0.5 * (w[2] * w[0] ** 2 + 2 * off * w[0] * w[1] + w[4] * w[1] ** 2)


def _above(M, edge):
    """(M − edge)₊."""
    values, W = np.linalg.eigh(M)
    return (W * np.maximum(values - edge, 0)) @ W.T


def matrix(*, commuting=False, angle=0.6, targets=(26.0, 23.0), first=(14.0, 11.0), gamma=0.02, lr=0.1,
           n_steps=4000, x=(0.0, 0.0), force=(0.0, 0.0)):  # fmt: skip
    """½xᵀMx + ½γ‖M − M*‖²: M comes to rest below the edge, with Σ = 2γ(M* − 2/η)₊.

    With a start that commutes with M* each eigenvalue rises for itself, and everything is known at all times; else what
    it ends at.
    """
    edge = 2 / lr
    goal = _turned(angle, targets)
    M0 = _turned(angle if commuting else 0.0, first)
    goal_entries = tensor(*_entries(goal))
    entries = tuple(np.log((m - a) / (m - edge)) / (lr * gamma) for m, a in zip(targets, first, strict=True))

    def loss(w):
        return (
            _quadratic(w)
            + 0.5 * gamma * ((w[2:] - goal_entries) ** 2).sum()
            + force[0] * w[0]
            + force[1] * w[1]
        )

    def exact(steps):
        free = [m - (m - a) * np.exp(-lr * gamma * steps) for m, a in zip(targets, first, strict=True)]
        values = [np.minimum(edge, m) for m in free]
        variances = [
            np.where(m > edge, 2 * gamma * (g - edge), 0.0) for m, g in zip(free, targets, strict=True)
        ]
        M = np.array([_turned(angle, pair) for pair in zip(*values, strict=True)])
        excess = sum((m - g) ** 2 for m, g in zip(values, targets, strict=True))
        return {
            "theta": rows(0.0, 0.0, M[:, 0, 0], np.sqrt(2.0) * M[:, 0, 1], M[:, 1, 1]),
            "sigma_eigenvalue": np.sort(rows(*variances))[:, ::-1],
            "predicted_train_loss": 0.5 * gamma * excess + sum(variances) / lr,
        }

    def rest(_):
        above = _above(goal, edge)
        sigma = 2 * gamma * above
        return {
            "theta": rows(0.0, 0.0, *_entries(goal - above))[None],
            "sigma": sigma,
            "sigma_eigenvalue": np.linalg.eigvalsh(sigma)[None, ::-1],
            "predicted_train_loss": np.array([0.5 * gamma * (above**2).sum() + np.trace(sigma) / lr]),
        }

    start = tensor(*x, *_entries(M0))
    return EdgeProblem(
        loss, start, {"lr": lr}, exact if commuting else rest, entries if commuting else (), (), n_steps
    )


def pushed_matrix(A=((0.3, 0.1), (0.1, 0.2)), *, first=(19.0, 18.0), lr=0.1, n_steps=400):
    """½xᵀMx − ⟨A, M⟩: with both eigenvalues at the edge Σ = 2A; with one, the other's gap closes at the rate ηa₂₂."""
    A = np.array(A)
    entries = tensor(*_entries(A))

    def loss(w):
        return _quadratic(w) - (entries * w[2:]).sum()

    def rest(_):
        M = 2 / lr * np.eye(2)
        return {
            "theta": rows(0.0, 0.0, *_entries(M))[None],
            "sigma": 2 * A,
            "sigma_eigenvalue": np.linalg.eigvalsh(2 * A)[None, ::-1],
            "predicted_train_loss": np.array([-np.trace(A @ M) + 2 * np.trace(A) / lr]),
        }

    start = tensor(0.0, 0.0, *_entries(np.diag(first)))
    return EdgeProblem(loss, start, {"lr": lr}, rest, (), (), n_steps)


# ---------------------------------------------------------------------- T5 to T7: RMSProp


def rmsprop_state(x0, S, beta2):
    """ν after the optimiser's first gradient Sx₀."""
    return (1 - beta2) * (S * x0) ** 2


def rmsprop_quadratic(S=10.0, *, x0=2.0, lr=0.02, beta2=0.99, n_steps=1500):
    """½Sx² by scalar RMSProp: ν decays to η²S²/4, then σ² = η²/4. Before, x and ν by SciPy; x is 0 long since."""
    kappa = (1 - beta2) / beta2
    edge = (lr * S / 2) ** 2

    def rate(_, u):
        x, nu = u
        return [-lr * S * x / np.sqrt(nu), kappa * ((S * x) ** 2 - nu)]

    def reached(_, u):
        return u[1] - edge

    reached.terminal, reached.direction = True, -1
    found = solve_ivp(
        rate, (0.0, 1e6), [x0, rmsprop_state(x0, S, beta2)], "LSODA", rtol=1e-12, atol=1e-30, events=reached,
        dense_output=True,
    )  # fmt: skip
    entry = found.t[-1]

    def exact(steps):
        before = steps < entry
        x = np.where(before, found.sol(np.minimum(steps, entry))[0], 0.0)
        variance = np.where(before, 0.0, lr**2 / 4)
        return {
            "theta": rows(x),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": 0.5 * S * (x**2 + variance),
        }

    def loss(w):
        return 0.5 * S * w[0] ** 2

    options = {"rule": "scalar-rmsprop", "lr": lr, "beta2": beta2, "eps": 0.0, "bias_correction": False}
    return EdgeProblem(loss, tensor(x0), options, exact, (entry,), (), n_steps, {"kappa": kappa})


def rmsprop_coupled(a=10.0, b=4.0, d=7.0, *, start=(1.0, -0.7), lr=0.02, beta2=0.99, n_steps=3000):
    """½xᵀHx by RMSProp, H = [[a, b], [b, d]]: it ends with Σ = (η²/4)[[1, s], [s, 1]], s the sign of b."""
    H = tensor(a, b, b, d).reshape(2, 2)

    def loss(w):
        return 0.5 * w @ H @ w

    def rest(_):
        sigma = lr**2 / 4 * np.array([[1.0, np.sign(b)], [np.sign(b), 1.0]])
        return {
            "theta": np.zeros((1, 2)),
            "sigma": sigma,
            "sigma_eigenvalue": np.linalg.eigvalsh(sigma)[None, ::-1],
            "predicted_train_loss": np.array([lr**2 / 8 * (a + d + 2 * abs(b))]),
        }

    options = {"rule": "rmsprop", "lr": lr, "beta2": beta2, "eps": 0.0, "bias_correction": False}
    return EdgeProblem(loss, tensor(*start), options, rest, (), (), n_steps)


def rmsprop_diagonal(values=(10.0, 4.0, 7.0), *, lr=0.02, beta2=0.99, n_steps=3000):
    """½Σλᵢxᵢ² by RMSProp: every direction is critical in the end, Σ = η²/4."""
    curvature = tensor(*values)

    def loss(w):
        return 0.5 * (curvature * w**2).sum()

    def rest(_):
        n = len(values)
        return {
            "theta": np.zeros((1, n)),
            "sigma": lr**2 / 4 * np.eye(n),
            "sigma_eigenvalue": np.full((1, n), lr**2 / 4),
            "predicted_train_loss": np.array([lr**2 / 8 * sum(values)]),
        }

    options = {"rule": "rmsprop", "lr": lr, "beta2": beta2, "eps": 0.0, "bias_correction": False}
    return EdgeProblem(loss, tensor(*[1.0] * len(values)), options, rest, (), (), n_steps)


def rmsprop_sliding(slope=1e-6, *, y0=2.0, lr=0.004, beta2=0.99, kick=0.05, n_steps=4000):
    """½yx² − ay by scalar RMSProp: at the edge q = y² follows dq/dt = 4κ(A − Dq)/(½ + κq/η²).

    The start x₀ = `kick` sets ν, as the optimiser's first gradient does. Before the edge, x, y and ν are by SciPy.
    """
    kappa = (1 - beta2) / beta2
    A, D = slope**2 / (2 * lr**2), 0.125 - slope / lr**2
    squares = (y0 * kick) ** 2 + (0.5 * kick**2 - slope) ** 2

    def gradient(x, y):
        return np.array([y * x, 0.5 * x * x - slope])

    def rate(_, u):
        g = gradient(*u[:2])
        return [*(-lr / np.sqrt(u[2]) * g), kappa * (g @ g - u[2])]

    def reached(_, u):
        return np.log(u[2] / (lr * u[1] / 2) ** 2)

    reached.terminal, reached.direction = True, -1
    found = solve_ivp(
        rate, (0.0, 1e5), [kick, y0, (1 - beta2) * squares], "LSODA", rtol=1e-12, atol=1e-30, events=reached,
        dense_output=True,
    )  # fmt: skip
    entry, q0 = found.t[-1], found.y[1, -1] ** 2
    c = kappa / lr**2

    def elapsed(q):
        """4κ(t − t₁) = ∫ (½ + cq)/(A − Dq) dq."""
        return -(c / D * (q - q0) + (0.5 + c * A / D) / D * np.log((A - D * q) / (A - D * q0))) / (4 * kappa)

    def exact(steps):
        q = np.array([
            brentq(lambda q, t=t: elapsed(q) - (t - entry), 0.5 * q0, q0, xtol=1e-15 * q0) if t > entry else q0
            for t in steps
        ])  # fmt: skip
        before = steps < entry
        start = found.sol(np.minimum(steps, entry))
        x, y = np.where(before, start[0], 0.0), np.where(before, start[1], np.sqrt(q))
        variance = (slope + kappa * (q / 4 - (slope / lr) ** 2)) / (0.5 + kappa * q / lr**2)
        variance = np.where(before, 0.0, np.maximum(variance, 0.0))
        return {
            "theta": rows(x, y),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": 0.5 * y * (x**2 + variance) - slope * y,
        }

    def loss(w):
        return 0.5 * w[1] * w[0] ** 2 - slope * w[1]

    options = {"rule": "scalar-rmsprop", "lr": lr, "beta2": beta2, "eps": 0.0, "bias_correction": False}
    constants = {"q0": q0, "A": A, "D": D, "kappa": kappa}
    return EdgeProblem(loss, tensor(kick, y0), options, exact, (entry,), (), n_steps, constants)


# ---------------------------------------------------------------------- T8: a schedule


def schedule(*, slope=0.3, lr=0.1, T=2000.0, y0=20.0, n_steps=5000, x=0.0, force=0.0):
    """½yx² − ay with η = η₀/(1 + t/T): y follows 2/η, σ² falls to 0, and the flow leaves the edge."""
    leave = T * (slope * lr**2 * T / 2 - 1)

    def rate(t):
        return lr / (1 + t / T)

    def flow_time(t):
        return lr * T * np.log1p(t / T)

    def gap(t):
        return y0 + slope * flow_time(t) - 2 / rate(t)

    entry = brentq(gap, 0.0, leave) if gap(0.0) < 0 else 0.0

    def exact(steps):
        before, after = steps < entry, steps > leave
        edge = 2 / rate(steps)
        y = np.where(before, y0 + slope * flow_time(steps), edge)
        y = np.where(after, 2 / rate(leave) + slope * (flow_time(steps) - flow_time(leave)), y)
        variance = np.where(before | after, 0.0, 2 * slope - 4 * (1 + steps / T) / (lr**2 * T))
        return {
            "theta": rows(0.0, y),
            "sigma_eigenvalue": rows(variance),
            "predicted_train_loss": -slope * y + 0.5 * y * variance,
        }

    def loss(w):
        return 0.5 * w[1] * w[0] ** 2 - slope * w[1] + force * w[0]

    return EdgeProblem(
        loss, tensor(x, y0), {"lr": rate}, exact, (entry,), (leave,), n_steps, {"flow_time": flow_time}
    )


# ---------------------------------------------------------------------- T9: must fail


def quartic(S=10.0, Q=1.0):
    """½Sx² − ¼Qx⁴ at x = 0, where ∇λ₁ = 0: nothing can hold λ₁ at the edge."""
    return lambda w: 0.5 * S * w[0] ** 2 - 0.25 * Q * w[0] ** 4


# ---------------------------------------------------------------------- the optimisers themselves


def discrete(problem, n_steps):
    """θ at every step of the optimiser that the flow stands for, shape (n_steps + 1, P)."""
    o, w = problem.options, problem.start.clone()
    graph = make_fx(torch.func.grad(problem.loss))(w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; nothing else is as fast call by call
        gradient = torch.jit.trace(graph, (w,), check_trace=False)
    path, nu, beta2 = [w], 0.0, o.get("beta2")
    with torch.no_grad():
        for step in range(n_steps):
            g, lr = gradient(w), o["lr"](step) if callable(o["lr"]) else o["lr"]
            if beta2 is not None:
                nu = beta2 * nu + (1 - beta2) * ((g * g).sum() if o["rule"] == "scalar-rmsprop" else g * g)
                g = g / nu**0.5
            w = w - lr * g
            path.append(w)
    return torch.stack(path).numpy()


def midpoints(path):
    """(w₋ + 2w + w₊)/4 of the steps 1 to n − 1."""
    return (path[:-2] + 2 * path[1:-1] + path[2:]) / 4
