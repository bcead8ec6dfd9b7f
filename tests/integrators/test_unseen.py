"""Directions that the gradient has no part in, or hardly any: exponential methods in Krylov spaces leave them alone."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, problems
from gradflow.driver import Stepper
from gradflow.integrators import METHODS, Field, exprb
from gradflow.integrators.phi.unseen import search
from gradflow.loss.criteria import HalfSquaredError
from gradflow.problems.datasets import chebyshev
from gradflow.problems.networks import regression
from gradflow.spectrum import Operator

KRYLOV = ["exprb32", "exprb43"]


def orthogonal(P, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(P, P, generator=g, dtype=torch.float64))[0]


# ---------------------------------------------------------------------- a direction that it has no part in


@cache
def odd_regression(degree, seed):
    """An odd target and a net that is odd where its biases are 0: the gradient of the biases is 0, but for rounding."""
    data = chebyshev(degree, 20)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = regression(1, 1, width=500).double()
    loss = LossFunction(TensorDataset(data.train_inputs, data.train_targets), HalfSquaredError(), net)
    theta = loss.parameters()
    exact = gradflow.integrate(
        loss, theta, method="rkc", rtol=1e-6, atol=1e-8, t_max=3000.0, save_every=3000.0
    )
    return loss, theta, exact.params.values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degree", "seed", "method", "options", "allowed"),
    [
        (3, 0, "auto", {}, 0.02),
        (3, 0, "exprb43", {"rtol": 1e-6, "atol": 1e-8}, 0.002),
        (5, 1, "exprb32", {}, 0.02),
    ],
)
def test_a_symmetric_flow_stays_symmetric(degree, seed, method, options, allowed):
    """Against rkc, whose stability polynomial is bounded on the whole spectrum; the error is of the path."""
    loss, theta, exact = odd_regression(degree, seed)
    run = gradflow.integrate(loss, theta, method=method, t_max=3000.0, save_every=3000.0, **options)
    travelled = np.linalg.norm(exact - theta.numpy())
    assert np.linalg.norm(run.params.values - exact) < allowed * travelled
    assert np.linalg.norm(run.params.values[500:1000]) < 1e-3  # the biases; 1 where the symmetry is lost


def two_worlds(weight):
    """A quartic and a quadratic that don't meet, on 50 directions each, behind a rotation.

    The second is stiffer, and a start has `weight` of each of its directions.
    """
    Q = orthogonal(100)
    λ = torch.as_tensor(np.geomspace(1e-3, 5, 50))
    μ = torch.as_tensor(np.concatenate([[40.0, 30.0, 2.0], np.geomspace(1e-3, 0.1, 47)]))

    def loss(x):
        y = Q.T @ x
        return 0.5 * (λ * y[:50] ** 2).sum() + 0.05 * (y[:50] ** 4).sum() + 0.5 * (μ * y[50:] ** 2).sum()

    start = Q @ torch.cat([torch.full((50,), a, dtype=torch.float64) for a in (1.0, weight)])
    return loss, start, Q[:, 50:], μ


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_rounding_errors_stay_rounding_errors(method, rtol):
    """What the gradient doesn't see decays, or stays as it is, where the tolerance would let it grow to rtol."""
    loss, start, unseen, _ = two_worlds(0.0)
    run = gradflow.integrate(
        loss, start, method=method, dense=False, rtol=rtol, atol=rtol * 1e-2, t_max=40.0, save_every=5.0
    )
    assert np.abs(run.theta.values @ unseen.numpy()).max() < 1e-13


@pytest.mark.parametrize("method", KRYLOV)
def test_what_is_hardly_seen_follows_its_own_flow(method):
    """Each component decays by e^{−μt} of its own 1e-9, six orders below the tolerance."""
    loss, start, unseen, μ = two_worlds(1e-9)
    run = gradflow.integrate(loss, start, method=method, dense=False, t_max=20.0, save_every=5.0)
    for t, θ in zip(run.time.values, run.theta.values, strict=True):
        assert np.abs(θ @ unseen.numpy() - 1e-9 * np.exp(-μ.numpy() * t)).max() < 1e-13


@pytest.mark.parametrize("method", KRYLOV)
def test_what_is_known_survives_a_rejected_step(method):
    """Were it forgotten, the next search might come when rounding errors have grown to something."""
    loss, start, _, _ = two_worlds(0.0)
    integrator = METHODS[method](dense=False)
    stepper = Stepper(integrator, Field(LossFunction.from_callable(loss), keep_graph=True), start)
    stepper.advance()
    state = stepper.result.state
    assert state.exists
    assert integrator.after_rejection(stepper.point, state) == state


def test_forty_steps_lie_between_searches(monkeypatch):
    searches = []
    monkeypatch.setattr(exprb, "search", lambda *args: searches.append(len(ages)) or search(*args))
    loss, start, _, _ = two_worlds(1.0)
    integrator = METHODS["exprb32"](dense=False)
    stepper = Stepper(integrator, Field(LossFunction.from_callable(loss), keep_graph=True), start)
    ages: list[int] = []
    for _ in range(45):
        stepper.advance()
        ages.append(stepper.result.state.age)
    assert searches == [0, 40]
    assert ages == [*range(1, 41), *range(1, 6)]


# ---------------------------------------------------------------------- the search


def parts(eigenvalues, **seen):
    """A rotated diagonal matrix, and a vector with equal parts in all eigenvectors but those that are named."""
    Q = orthogonal(len(eigenvalues), seed=1)
    c = torch.ones(len(eigenvalues), dtype=torch.float64)
    for name, value in seen.items():
        c[int(name[1:])] = value
    H = (Q * torch.as_tensor(eigenvalues, dtype=torch.float64)) @ Q.T
    return H, Q @ c


BULK = np.linspace(-0.1, 0.1, 97)


@pytest.mark.parametrize(
    ("eigenvalues", "seen", "unseen"),
    [
        ([9.0, 4.0, 1.0, *BULK], {}, False),
        ([9.0, 4.0, 1.0, *BULK], {"_0": 0.0}, True),
        ([9.0, 4.0, 1.0, *BULK], {"_1": 0.0}, True),
        ([9.0, 4.0, 1.0, *BULK], {"_1": 1e-3}, False),
        ([9.0, -4.0, 1.0, *BULK], {"_1": 0.0}, True),
        ([9.0, 4.0, 4.0, *BULK], {"_1": 0.0}, False),  # it sees the eigenspace
        ([9.0, 4.0, 4.0, *BULK], {"_1": 0.0, "_2": 0.0}, True),
        (
            [9.0, 4.0, 1.0, *np.zeros(97)],
            {f"_{i}": 0.0 for i in range(3, 100)},
            False,
        ),  # where nothing happens
        ([9.0, 4.0, 1.0, *BULK], {"_50": 0.0}, False),  # in the bulk, where a polynomial is bounded
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvectors_without_a_part_in_the_gradient_are_found(eigenvalues, seen, unseen, dtype):
    H, g = parts(eigenvalues, **seen)
    H, products = H.to(dtype), []

    def multiply(vectors):
        products.append(1 if vectors.dim() == 1 else vectors.shape[1])
        return H @ vectors

    assert search(Operator(multiply, g.to(dtype)), g.to(dtype)).unseen is unseen
    assert 0 < sum(products) <= 10


def test_the_search_bounds_the_smallest_eigenvalue():
    H, g = parts([9.0, -4.0, 1.0, *BULK])
    assert search(H, g).lowest == pytest.approx(-4.0, rel=1e-6)


@pytest.mark.parametrize("criterion", ["mse", "ce"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_without_symmetry_shows_all_to_its_gradient(criterion, dtype):
    train, _, theta = problems.load("digits", "fc-tanh", criterion, dtype=dtype)
    lin = train.first(100).linearize(theta)
    assert not search(lin, lin.gradient).unseen


# ---------------------------------------------------------------------- leaving a saddle


@pytest.mark.parametrize("method", KRYLOV)
@pytest.mark.parametrize(("rtol", "κ"), [(1e-4, 1.0), (1e-4, 0.1), (1e-6, 0.1)])
def test_a_flow_leaves_a_saddle_in_time(method, rtol, κ):
    """a′ = κa − a³ from a = 1e-10, beside 99 decaying directions of length 0.1, up to λ = 100.

    a reaches half its end at t = ln(1e10 √κ/√3)/κ, while the tolerance is 10⁴ to 10⁶ times where it starts.
    """
    P, a0 = 100, 1e-10
    Q = orthogonal(P)
    v, R = Q[:, 0], Q[:, 1:]
    λ = torch.as_tensor(np.concatenate([np.linspace(0, 0.01, P - 11), np.geomspace(1, 100, 10)]))

    def loss(x):
        a = v @ x
        return 0.5 * (λ * (R.T @ x) ** 2).sum() - 0.5 * κ * a**2 + 0.25 * a**4

    start = R @ torch.full((P - 1,), 0.1, dtype=torch.float64) + a0 * v
    leaves = math.log(math.sqrt(κ) / a0 / math.sqrt(3)) / κ
    times = np.linspace(0.8, 1.1, 31) * leaves
    run = gradflow.integrate(
        loss,
        start,
        method=method,
        dense=False,
        rtol=rtol,
        atol=rtol * 1e-2,
        t_max=1.1 * leaves,
        save_at=times,
    )
    a = run.theta.values @ v.numpy()
    met = np.interp(math.sqrt(κ) / 2, a, run.time.values)
    assert met == pytest.approx(leaves, rel=2e-3)
