"""The stiff integrators: φ-functions, Krylov spaces, exponential Rosenbrock and Runge–Kutta–Chebyshev methods."""

import dataclasses
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch
from helpers.references import by_radau
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicHermiteSpline
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, SpectrumService, problems
from gradflow.driver import Stepper
from gradflow.errors import IntegrationWarning, InvalidInputError
from gradflow.flows import GradientFlow
from gradflow.integrators import METHODS, Field
from gradflow.integrators.phi.functions import phi
from gradflow.integrators.phi.spaces import DenseSpace, KrylovSpace, Term
from gradflow.integrators.rkc import chebyshev, stages_for
from gradflow.spectrum import Eigenpairs

KRYLOV = [(name, {"dense": False}) for name in ("exprb32", "exprb43", "exprb54")]
STIFF = [*KRYLOV, ("exprb43", {"dense": True}), ("rkc", {})]


def symmetric(eigenvalues, seed=0):
    λ = torch.as_tensor(eigenvalues, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(len(λ), len(λ), generator=g, dtype=torch.float64))[0]
    return (Q * λ) @ Q.T, λ, Q


def network_like(P=200):
    """A few outliers above a bulk that decays over many decades, and some negative eigenvalues."""
    return np.concatenate(
        [[300.0, 80.0, 40.0, 15.0], np.geomspace(5, 1e-6, P - 14), -np.geomspace(1e-4, 0.3, 10)]
    )


# ---------------------------------------------------------------------- φ


@pytest.mark.parametrize("k", range(6))
def test_phi_is_accurate_to_rounding(k):
    """Against the confluent hypergeometric function, φₖ(z) = ₁F₁(1; k+1; z)/k!, in 50 digits."""
    mpmath.mp.dps = 50
    z = np.array(
        [
            0.0,
            1e-300,
            -1e-12,
            1e-8,
            -0.3,
            0.999,
            -0.999,
            1.0,
            -1.0,
            1.001,
            -1.001,
            3.0,
            -7.5,
            50.0,
            -700.0,
            -1e6,
        ]
    )
    expected = [float(mpmath.hyp1f1(1, k + 1, mpmath.mpf(x)) / mpmath.factorial(k)) for x in z]
    assert np.allclose(phi(k, z), expected, rtol=2e-14, atol=0 if k else 1e-300)


# ---------------------------------------------------------------------- the space


def exact(H, h, k, b):
    λ, V = torch.linalg.eigh(H)
    return V @ (h * torch.from_numpy(phi(k, (-h * λ).numpy())) * (V.T @ b))


@pytest.mark.parametrize("k", [1, 3, 4])
@pytest.mark.parametrize("h", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_a_krylov_space_meets_its_tolerance(k, h, tol):
    H, _, _ = symmetric(network_like())
    b = torch.randn(len(H), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = KrylovSpace(H, capacity=len(H))
    term = Term(k, h, space.coordinates(b))
    reported = space.resolve([term], tol)
    error = float((space.vector(space.evaluate(term)) - exact(H, h, k, b)).norm())
    growth = math.exp(0.3 * h)  # of the error along the negative eigenvalues, which the report leaves out
    assert reported <= tol
    assert error <= growth * tol + 1e-12 * h


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("h", [0.05, 2.0])
def test_the_error_is_the_integral_of_what_leaves_the_space(k, h):
    """In closed form, where one vector of two is multiplied: h² c φₖ₊₁(−ha) for H = [[a, c], [c, d]] and b = e₁."""
    a, c = 4.0, 3.0
    H = torch.tensor([[a, c], [c, 1.0]], dtype=torch.float64)
    e1, e2 = torch.eye(2, dtype=torch.float64)
    space = KrylovSpace(H, capacity=2)
    b = space.coordinates(e1)
    space.eigenvalues(1)
    leaving = h**2 * c * float(mpmath.hyp1f1(1, k + 2, -h * a) / mpmath.factorial(k + 1))
    assert space.resolve([Term(k, h, b)], math.inf) == pytest.approx(leaving, rel=1e-12)
    # and (h/k!) b where b itself was not multiplied; of several terms, the largest error
    outside = Term(k, h, space.coordinates(e1 + 10 * e2))
    expected = leaving + 10 * h / math.factorial(k)
    assert space.resolve([Term(k, h, b), outside], math.inf) == pytest.approx(expected, rel=1e-12)


def test_the_reported_error_is_near_the_true_one():
    """While it falls over seven decades, it is never too small by more than 2, nor too large by more than 100."""
    H, _, _ = symmetric(np.geomspace(100, 1e-4, 150))
    b = torch.randn(150, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    space = KrylovSpace(H, capacity=150)
    term = Term(1, 2.0, space.coordinates(b))
    reference, ratios = exact(H, 2.0, 1, b), []
    for m in range(3, 40):
        space.eigenvalues(m)
        reported = space.resolve([term], math.inf)
        error = float((space.vector(space.evaluate(term)) - reference).norm())
        if error > 1e-7:
            ratios.append(reported / error)
    assert len(ratios) > 15
    assert min(ratios) > 0.5
    assert max(ratios) < 100


def test_a_second_vector_shares_what_was_built_for_the_first():
    H, _, _ = symmetric(network_like())
    g = torch.Generator().manual_seed(1)
    b = torch.randn(len(H), generator=g, dtype=torch.float64)
    space = KrylovSpace(H, capacity=100)
    first = space.coordinates(b)
    space.resolve([Term(1, 1.0, first)], 1e-8)
    n = space.n_hvp
    within = space.coordinates(H @ b - 2 * b)
    space.resolve([Term(3, 1.0, within)], 1e-6)
    assert space.n_hvp == n
    other = torch.randn(len(H), generator=g, dtype=torch.float64)
    term = Term(3, 1.0, space.coordinates(other))
    assert space.resolve([term], 1e-7) <= 1e-7
    error = space.vector(space.evaluate(term)) - exact(H, 1.0, 3, other)
    assert float(error.norm()) < 2e-7
    fresh = KrylovSpace(H, capacity=100)
    fresh.resolve([Term(3, 1.0, fresh.coordinates(other))], 1e-7)
    assert space.n_hvp - n <= fresh.n_hvp + 5


def test_products_with_what_is_resolved_are_known():
    H, _, _ = symmetric(network_like())
    space = KrylovSpace(H, capacity=30)
    b = space.coordinates(torch.ones(len(H), dtype=torch.float64))
    space.resolve([Term(1, 1.0, b)], 1e-3)
    n, z = space.n_hvp, space.resolved(space.evaluate(Term(1, 1.0, b)))
    assert torch.allclose(space.vector(space.times_H(z)), H @ space.vector(z), atol=1e-10)
    assert space.n_hvp == n


@pytest.mark.parametrize("start", ["zero", "eigenvector", "everything"])
def test_an_invariant_space_is_exact(start):
    H, _, Q = symmetric([5.0, 2.0, 0.0, -1.0])
    b = {"zero": 0 * Q[:, 0], "eigenvector": Q[:, 1], "everything": Q.sum(1)}[start]
    space = KrylovSpace(H, capacity=4)
    term = Term(1, 3.0, space.coordinates(b))
    assert space.resolve([term], 1e-10) <= 1e-10
    assert space.n_hvp == {"zero": 0, "eigenvector": 1, "everything": 4}[start]
    assert torch.allclose(space.vector(space.evaluate(term)), exact(H, 3.0, 1, b), atol=1e-12)


def test_ritz_pairs_carry_true_residuals():
    H, λ, _ = symmetric(network_like())
    space = KrylovSpace(H, capacity=60)
    space.coordinates(torch.ones(len(H), dtype=torch.float64))
    space.eigenvalues(25)
    pairs = space.top(5)
    residuals = (H @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0) / pairs.scale
    assert torch.allclose(pairs.residuals, residuals, atol=1e-12)
    assert torch.allclose(pairs.values[:4], λ[:4], rtol=1e-6)
    assert pairs.n_hvp == 0
    dense = DenseSpace(H).top(4)
    assert torch.allclose(dense.values, λ[:4])
    assert torch.allclose(H @ dense.vectors, dense.vectors * dense.values, atol=1e-9)


# ---------------------------------------------------------------------- exponential Rosenbrock methods


@pytest.mark.parametrize("name", ["exprb32", "exprb43", "exprb54"])
def test_a_step_is_the_formula_of_the_paper(name):
    """With dense φ-functions and every stage written out; θ, the error, and θ at a fraction of the step."""
    loss = LossFunction.from_callable(lambda x: (x**4).sum() / 4 + x[0] * x[1] ** 2 + 3 * x[2] ** 2)
    start, h = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64), 0.3
    method = METHODS[name](dense=True)
    point = Field(loss, keep_graph=True).at(start)
    attempt = method.step(point, h, None)

    F = -loss.gradient(start)[1].numpy()
    H = loss.hvp(start, torch.eye(3, dtype=torch.float64)).numpy()
    λ, V = np.linalg.eigh(H)

    def φ(k, t, b):
        return V @ (
            np.array([float(mpmath.hyp1f1(1, k + 1, -t * x) / mpmath.factorial(k)) for x in λ]) * (V.T @ b)
        )

    def D(u):
        return -loss.gradient(start + torch.from_numpy(u))[1].numpy() - F + H @ u

    if name == "exprb32":
        terms = {1: F, 3: 2 * D(h * φ(1, h, F))}
        lower = {1: F}
    elif name == "exprb43":
        D2 = D(h / 2 * φ(1, h / 2, F))
        D3 = D(h * φ(1, h, F + D2))
        terms = {1: F, 3: 16 * D2 - 2 * D3, 4: -48 * D2 + 12 * D3}
        lower = {1: F, 3: terms[3]}
    else:
        D2 = D(h / 4 * φ(1, h / 4, F))
        D3 = D(h / 2 * φ(1, h / 2, F) + 4 * h * φ(3, h / 2, D2))
        D4 = D(0.9 * h * φ(1, 0.9 * h, F) + 729 / 125 * h * φ(3, 0.9 * h, D3))
        terms = {1: F, 3: 18 * D3 - 250 / 81 * D4, 4: -60 * D3 + 500 / 27 * D4}
        lower = {1: F, 3: 64 * D2 - 8 * D3, 4: -384 * D2 + 96 * D3}
    for s in (1.0, 0.4):
        expected = start.numpy() + sum(s ** (k - 1) * s * h * φ(k, s * h, b) for k, b in terms.items())
        assert attempt.interpolant(s).numpy() == pytest.approx(expected, abs=1e-13)
    assert torch.equal(attempt.z, attempt.interpolant(1.0))
    error = sum(h * φ(k, h, b - lower.get(k, 0 * b)) for k, b in terms.items())
    assert attempt.error == pytest.approx(np.linalg.norm(error), rel=1e-10)


@pytest.fixture(scope="module")
def coupled():
    """A stiff linear part and a nonlinear one that couples its directions: the loss, θ₀, and θ(1) by SciPy."""
    H, _, Q = symmetric([1e6, 3e3, 100.0, 4.0, 0.5])
    start = Q @ torch.tensor([1e-7, 3e-4, 0.01, 0.5, 1.0], dtype=torch.float64)
    A = H.numpy()

    def loss(x):
        return 0.5 * x @ H @ x + torch.cos(2 * x).sum() + x.sum() ** 4 / 8

    def velocity(t, x):
        return -A @ x + 2 * np.sin(2 * x) - x.sum() ** 3 / 2

    def jacobian(t, x):
        return -A + np.diag(4 * np.cos(2 * x)) - 1.5 * x.sum() ** 2

    fine = solve_ivp(velocity, (0, 1), start.numpy(), "Radau", jac=jacobian, rtol=1e-10, atol=1e-12)
    return loss, start, fine.y[:, -1]


@pytest.mark.parametrize(("name", "order"), [("exprb43", 4), ("exprb54", 5)])
def test_the_order_holds_however_stiff(coupled, name, order):
    """In steps of up to 2.5·10⁵/λ₁."""
    loss, start, fine = coupled
    hs, errors = (1 / 4, 1 / 6, 1 / 8, 1 / 12), []
    for h in hs:
        ds = gradflow.integrate(
            loss, start, method=name, t_max=1.0, save_every=1.0, rtol=1e3, max_step=h, dense=True
        )
        errors.append(np.linalg.norm(ds.params.values - fine))
    slope = np.polyfit(np.log(hs), np.log(errors), 1)[0]
    assert order - 0.3 < slope < order + 0.7, (slope, errors)


@pytest.mark.parametrize(("name", "options"), STIFF[:3])
def test_a_quadratic_is_exact_in_steps_of_any_size_however_stiff(name, options):
    H, λ, Q = symmetric([1e6, 300.0, 2.0, 1e-3, 0.0, -0.05])
    center = torch.arange(6, dtype=torch.float64)
    theta = center + Q.sum(1)
    ds = gradflow.integrate(
        lambda x: 0.5 * (x - center) @ H @ (x - center),
        theta,
        method=name,
        t_max=40.0,
        rtol=1e-9,
        save_at=[0.1, 7.0],
        **options,
    )
    for t, θ in zip(ds.time.values, ds.theta.values, strict=True):
        expected = center + Q @ (torch.exp(-λ * t) * (Q.T @ (theta - center)))
        assert np.allclose(θ, expected, rtol=1e-8, atol=1e-7)
    # The first step is found by trial, and the next is five times longer at most.
    assert ds.attrs["n_steps"] <= 12


@pytest.fixture(scope="module")
def cheb():
    return by_radau(3, (7.3, 20.0), atol=1e-12)


@pytest.mark.parametrize(("name", "options"), STIFF)
def test_errors_follow_the_tolerance_over_three_decades(cheb, name, options):
    train, theta, reference = cheb
    rtols = [1e-4, 1e-5, 1e-6, 1e-7]
    errors = []
    for rtol in rtols:
        ds = gradflow.integrate(
            train, theta, method=name, rtol=rtol, atol=1e-2 * rtol, t_max=20.0, save_at=[7.3], **options
        )
        within, at_end = np.linalg.norm(ds.theta.values[1:] - reference, axis=1) / np.linalg.norm(
            reference[1] - theta.numpy()
        )
        assert within < 20 * rtol ** (2 / 3 if name == "rkc" else 1)
        errors.append(at_end)
    slope = np.polyfit(np.log(rtols), np.log(errors), 1)[0]
    # The estimate of rkc is of the local error of its own order 2: a global error of order rtol^(2/3).
    low, high = (0.5, 0.9) if name == "rkc" else (0.7, 1.3)
    assert low < slope < high, errors


@pytest.mark.parametrize(("name", "options"), STIFF)
def test_the_interpolant_is_of_the_methods_order(name, options):
    """The error half way through one step falls as that of the method's local error: one order higher.

    That of exprb54, whose stages are of a lower order, falls as its error over a run.
    """
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    order, errors = METHODS[name].order, []
    tight = {"krylov_tol": 1e-12} if name != "rkc" else {}
    hs = [0.2, 0.1, 0.05, 0.025]
    for h in hs:
        run = gradflow.integrate(
            train, theta, method=name, rtol=1.0, max_step=h, t_max=h, save_at=[0.5 * h], **tight, **options
        )
        assert run.attrs["n_steps"] == 1
        reference = gradflow.integrate(
            train, theta, method="scipy:DOP853", rtol=1e-12, atol=1e-14, t_max=h / 2
        )
        errors.append(np.linalg.norm(run.theta.values[1] - reference.params.values))
    slope = np.polyfit(np.log(hs), np.log(errors), 1)[0]
    local = order if name == "exprb54" else order + 1
    assert local - 0.4 < slope < local + 0.6, errors


@pytest.mark.parametrize(("name", "options"), KRYLOV)
def test_krylov_and_dense_agree(cheb, name, options):
    train, theta, _ = cheb
    runs = [
        gradflow.integrate(train, theta, method=name, t_max=20.0, rtol=1e-5, krylov_tol=1e-6, dense=dense)
        for dense in (False, True)
    ]
    assert runs[0].attrs["n_steps"] == runs[1].attrs["n_steps"]
    assert np.allclose(runs[0].params, runs[1].params, atol=1e-6)
    assert int(runs[1].n_hvps[-1]) == 300 * runs[1].attrs["n_steps"]


@pytest.mark.parametrize(("name", "options"), KRYLOV)
def test_records_do_not_shorten_steps(name, options):
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    few, many = (
        gradflow.integrate(train, theta, method=name, t_max=10.0, save_every=every, **options)
        for every in (10.0, 0.01)
    )
    assert few.attrs["n_steps"] == many.attrs["n_steps"] < 30
    assert np.array_equal(few.params, many.params)
    assert int(few.n_hvps[-1]) == int(many.n_hvps[-1])
    assert np.all(np.diff(many.train_loss.values) < 0)


@pytest.mark.parametrize(("name", "options"), KRYLOV)
@pytest.mark.parametrize("basis", [4, 6])
def test_what_the_space_leaves_out_counts_in_the_error_of_a_step(name, options, basis):
    """The gradient is an eigenvector, the remainder D is not: a full space follows φₖ D in part alone."""
    H, _, Q = symmetric(np.concatenate([[1.0], np.linspace(0.1, 5, 59)]))
    start, aside = Q[:, 0], Q[:, 1:].sum(1) / math.sqrt(59)

    def loss(x):
        return 0.5 * x @ H @ x + (start @ x - 1) ** 2 * (aside @ x)

    def attempt(**kwargs):
        method = METHODS[name](**kwargs)
        point = Field(LossFunction.from_callable(loss), keep_graph=True).at(start.clone())
        return method.step(point, 0.5, None)

    krylov, dense = attempt(max_basis=basis, **options), attempt(dense=True)
    assert krylov.h == dense.h == 0.5
    missing = float((krylov.z - dense.z).norm())
    assert missing > 1e-5
    # The estimate of exprb54 has three remainders in place of two, of each of which the space leaves out a part.
    assert missing < krylov.error - dense.error < (4 if name == "exprb54" else 2) * missing


@pytest.mark.parametrize(("name", "options"), KRYLOV)
def test_a_space_without_room_shortens_the_step(name, options):
    H, λ, Q = symmetric(network_like())
    theta = Q.sum(1)
    expected = (Q @ torch.exp(-2.0 * λ)).numpy()
    free, tight = (
        gradflow.integrate(lambda x: 0.5 * x @ H @ x, theta, method=name, t_max=2.0, max_basis=m, **options)
        for m in (None, 8)
    )
    assert tight.attrs["n_steps"] > 2 * free.attrs["n_steps"]
    for run in (free, tight):
        assert np.linalg.norm(run.params.values - expected) < 1e-3 * float(theta.norm())


def test_the_basis_is_bounded_by_the_memory_budget():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(20, 200), nn.Tanh(), nn.Linear(200, 1))
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(30, 20, generator=g), torch.randn(30, 1, generator=g))
    P = sum(p.numel() for p in net.parameters())
    sizes = {}
    for budget in (4 * 8 * P * 50, 2**33):
        loss = LossFunction(data, nn.MSELoss(), net, memory_budget=budget)
        sizes[budget] = METHODS["exprb43"]().resolve(loss)
    small, large = sizes.values()
    assert (small.max_basis, large.max_basis) == (50, 200)
    assert small.dense is False
    assert METHODS["exprb43"](max_basis=7, dense=True).resolve(loss).settings()["max_basis"] == 7


@pytest.mark.parametrize(("name", "gradients"), [("exprb32", 2), ("exprb43", 3), ("exprb54", 4)])
def test_a_step_costs_its_stages(name, gradients):
    H, _, Q = symmetric([50.0, 3.0, 1.0])
    by_hand = gradflow.solver(name, lambda x: torch.log(torch.cosh(H @ x)).sum() / 50, Q.sum(1), dense=False)
    reports = [by_hand.step() for _ in range(6)]
    for before, after in pairwise(reports[1:]):
        attempts = 1 + after.n_rejected - before.n_rejected
        assert after.n_gradients - before.n_gradients == 1 + (gradients - 1) * attempts


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_no_mode_grows_unseen_in_steps_of_many_stages(rtol):
    """A hidden mode of rate λ₁ = 10 e^{t/5}, in steps that are exact otherwise and so grow as long as they may."""
    start = torch.tensor([0.0, 1e-12], dtype=torch.float64)
    ds = gradflow.integrate(
        lambda z: -z[0] + 5 * torch.exp(z[0] / 5) * z[1] ** 2,
        start,
        method="rkc",
        rtol=rtol,
        atol=1e-2 * rtol,
        t_max=30.0,
        save_every=gradflow.steps(1),
    )
    assert np.abs(ds.theta.values[:, 1]).max() == start[1]
    assert ds.theta.values[-1, 0] == pytest.approx(30.0)
    assert ds.attrs["n_steps"] < 20
    assert ds.n_gradients[-1] < 1700


@pytest.mark.parametrize(("name", "options"), STIFF)
def test_the_step_reports_the_sharpness_it_met(cheb, name, options):
    train, theta, _ = cheb
    by_hand = gradflow.solver(name, train, theta, report_eigenvectors=True, **options)
    for _ in range(3):
        before = by_hand.params
        report = by_hand.step()
    dense = torch.linalg.eigvalsh(train.linearize(before) @ torch.eye(300, dtype=torch.float64))
    assert report.sharpness == pytest.approx(float(dense[-1]), rel=0.06)


@pytest.mark.parametrize(("name", "options"), KRYLOV)
def test_ritz_pairs_are_handed_to_the_spectrum_service(cheb, name, options):
    """A free λ₁ at the step's start, and vectors for the next solve to start from."""
    train, theta, _ = cheb
    field = Field(train, keep_graph=True)
    stepper = Stepper(METHODS[name](rtol=1e-5, **options), field, theta)
    for _ in range(6):
        before = stepper.point.theta
        report = stepper.advance()
    n = field.spectrum.n_hvps
    dense = torch.linalg.eigvalsh(train.linearize(before) @ torch.eye(300, dtype=torch.float64))
    assert report.sharpness == pytest.approx(float(dense[-1]), rel=1e-2)
    assert field.spectrum.known(1, before, tol=1e-2) is None  # the solver's answers look further
    warm = field.spectrum.top(1, stepper.point.linearization, tol=1e-4)
    assert warm.converged.all()
    assert n == 0 < warm.n_hvp < SpectrumService(train).top(1, stepper.point.theta, tol=1e-4).n_hvp


@pytest.mark.parametrize(("name", "options"), STIFF)
def test_growth_along_negative_curvature_stays_finite(name, options):
    """A maximum as the start of the way down."""
    theta = torch.tensor([1e-3, 1e-4], dtype=torch.float64)
    λ = torch.tensor([-8.0, -1.0], dtype=torch.float64)

    def loss(x):
        return 0.5 * (λ * x**2).sum() + (x**4).sum()

    with np.errstate(over="raise"):
        ds = gradflow.integrate(loss, theta, method=name, t_max=30.0, rtol=1e-6, atol=1e-9, **options)
    assert ds.attrs["success"]
    assert np.allclose(np.abs(ds.params), np.sqrt([2.0, 0.25]), atol=1e-4)


@pytest.mark.parametrize(("name", "options"), STIFF)
@pytest.mark.parametrize("case", ["quadratic", "linear", "stationary", "at the origin"])
def test_nothing_to_limit_a_step_is_no_failure(name, options, case):
    """No t_max, no error, no curvature, no gradient, no tolerance: steps stay finite, and the run ends well."""
    λ = torch.tensor([9.0, 1.0, 0.5], dtype=torch.float64)
    loss, theta = {
        "quadratic": (lambda x: 0.5 * (λ * x**2).sum(), torch.ones(3)),
        "linear": (lambda x: 2.0 * x.sum() + 0.0 * (x**2).sum(), torch.ones(3)),
        "stationary": (lambda x: 0.5 * (λ * x**2).sum() + (x**4).sum(), torch.zeros(3)),
        "at the origin": (lambda x: 0.5 * (λ * x**2).sum(), 1e-9 * torch.ones(3)),
    }[case]
    atol = 1e-12 if case in {"stationary", "at the origin"} and name == "rkc" else 0.0
    ds = gradflow.integrate(
        loss, theta.double(), method=name, max_steps=6, atol=atol, save_every=gradflow.steps(1), **options
    )
    assert ds.attrs["success"], ds.attrs["message"]
    assert ds.attrs["n_steps"] == 6
    assert np.isfinite(ds.theta).all()
    assert np.all(np.diff(ds.time) > 0)


def test_a_refused_step_makes_rkc_measure_again():
    """The curvature jumps: what was measured before is not trusted after the loss has risen."""

    def loss(x):
        return (torch.where(x > 0, 0.5 * 400 * x**2, 0.5 * x**2) - 2.0 * x).sum()

    theta = torch.tensor([-1.0], dtype=torch.float64)
    ds = gradflow.integrate(loss, theta, method="rkc", rtol=10.0, t_max=3.0, save_every=gradflow.steps(1))
    assert ds.attrs["n_rejected_steps"] >= 1
    assert np.all(np.diff(ds.train_loss) <= 1e-12)
    assert float(ds.params[0]) == pytest.approx(2 / 400, rel=1e-3)


def test_the_first_step_is_found_by_trial():
    """From far too small a guess, without a step of that size."""
    H, _, Q = symmetric([1e4, 1.0, 0.5])
    by_hand = gradflow.solver(
        "exprb32", lambda x: 0.5 * x @ H @ x + 1e-3 * (x**4).sum(), Q.sum(1), dense=False
    )
    report = by_hand.step()
    assert report.dt > 100 * 1e-4
    assert 1 <= report.n_rejected <= 4


@pytest.mark.parametrize(("name", "options"), STIFF)
def test_a_tolerance_below_the_dtype_is_raised_with_a_warning(name, options):
    loss = LossFunction.from_callable(lambda x: torch.log(torch.cosh(x)).sum())
    with pytest.warns(IntegrationWarning, match="rtol = 1e-09 is below what torch.float32 resolves"):
        ds = gradflow.integrate(loss, torch.ones(3), method=name, rtol=1e-9, atol=0.0, t_max=0.5, **options)
    exact = math.asinh(math.exp(-0.5) * math.sinh(1.0))
    assert np.allclose(ds.params, exact, rtol=1e-4)


def test_a_hessian_that_is_not_finite_ends_the_run_with_a_status():
    def loss(x):
        return x[0].abs() ** 1.5 + x[1]  # H = ∞ at 0

    for options in ({"dense": False}, {"dense": True}):
        with pytest.warns(IntegrationWarning, match="Hessian is not finite"):
            ds = gradflow.integrate(
                loss, torch.tensor([0.0, 1.0], dtype=torch.float64), method="exprb43", t_max=1.0, **options
            )
        assert not ds.attrs["success"]


# ---------------------------------------------------------------------- Runge–Kutta–Chebyshev


def stability_polynomial(s, damping, z):
    """Run the recurrence of a step on ẏ = z y with h = 1."""
    c = chebyshev(s, damping)
    before, now = 1.0, 1 + c.first * z
    for μ, ν, μ_, γ_ in c.coefficients:
        before, now = now, (1 - μ - ν) + μ * now + ν * before + μ_ * z * now + γ_ * z
    return now


@pytest.mark.parametrize("damping", [2 / 13, 1.0, 5.0])
@pytest.mark.parametrize("s", [2, 3, 5, 20, 100])
def test_rkc_is_stable_on_its_interval_and_no_further(s, damping):
    β = chebyshev(s, damping).interval
    inside = np.abs(stability_polynomial(s, damping, -np.linspace(0, β, 20001)))
    assert inside.max() <= 1 + 1e-9
    assert abs(stability_polynomial(s, damping, -1.5 * β)) > 1


@pytest.mark.parametrize("s", [2, 7, 30])
def test_rkc_is_of_order_two_at_zero(s):
    ε = 1e-4
    derivative = (stability_polynomial(s, 5.0, ε) - stability_polynomial(s, 5.0, -ε)) / (2 * ε)
    second = (stability_polynomial(s, 5.0, ε) - 2 + stability_polynomial(s, 5.0, -ε)) / ε**2
    assert derivative == pytest.approx(1, abs=1e-6)
    assert second == pytest.approx(1, abs=1e-4)


def test_rkc_has_the_published_interval_and_the_documented_damping():
    """β ≈ 0.653 (s² − 1) for ε = 2/13 (Sommeijer et al., eq. 2.10); 0.44 (s² − 1) and 0.38 for ε = 5."""
    for damping, factor, most in ((2 / 13, 0.653, 0.96), (5.0, 0.44, 0.39)):
        for s in (10, 50):
            β = chebyshev(s, damping).interval
            assert β == pytest.approx(factor * (s**2 - 1), rel=0.02)
            stiff = np.abs(stability_polynomial(s, damping, -np.linspace(0.1 * β, 0.99 * β, 4001)))
            assert most - 0.03 < stiff.max() < most


def test_the_fewest_stable_stages_are_taken():
    for z in (0.0, 1.0, 7.0, 500.0):
        s = stages_for(z, 5.0, 200)
        assert chebyshev(s, 5.0).interval >= z
        assert s == 2 or chebyshev(s - 1, 5.0).interval < z
    assert stages_for(1e9, 5.0, 200) == 200


def test_rkc_shortens_a_step_that_needs_too_many_stages():
    H, _, Q = symmetric([1e5, 1.0, 0.5])
    shared = {"method": "rkc", "t_max": 2.0, "rtol": 1e-3}
    free = gradflow.integrate(lambda x: 0.5 * x @ H @ x, Q.sum(1), **shared)
    few = gradflow.integrate(lambda x: 0.5 * x @ H @ x, Q.sum(1), max_stages=20, **shared)
    limit = chebyshev(20, 5.0).interval / 1e5
    assert float(few.step_size[1:].max()) < limit < float(free.step_size[1:].max())
    assert few.attrs["success"]


@pytest.mark.parametrize(
    ("before", "now", "every", "expected", "growth"),
    [
        (
            10.0,
            10.4,
            4,
            5,
            2 * 5 * 0.1,
        ),  # 0.1 a step: 5 % of 10.4 in 5.2 steps; twice that is allowed for
        (10.0, 7.6, 4, 3, 0.05 * 7.6),  # six times as fast where it falls
        (10.0, 10.0, 4, 12, 0.5),  # three times as seldom at most,
        (10.0, 10.0, 10, 20, 0.5),  # and never more than twenty steps
        (10.0, 90.0, 4, 1, 2 * 20.0),
    ],
)
def test_rkc_measures_again_when_the_sharpness_may_have_grown_by_a_twentieth(
    before, now, every, expected, growth
):
    def pairs(λ):
        λ = torch.tensor([λ], dtype=torch.float64)
        return Eigenpairs(λ, torch.ones(2, 1, dtype=torch.float64), 0 * λ, 0, λ > 0, float(λ))

    class Point:
        def rates(self, k, *, tol):
            return pairs(now)

        def work(self, key, make):
            return make()

    method = METHODS["rkc"]()
    sharpness = method._sharpness(Point(), None)
    assert (sharpness.age, sharpness.every, sharpness.growth) == (0, 1, 0.05 * now)
    sharpness = dataclasses.replace(sharpness, pairs=pairs(before), every=every, age=3, stages=21)
    if every > 4:
        later = method._look(Point(), sharpness, 20)
        assert later == dataclasses.replace(sharpness, age=4, stages=1)
        sharpness = dataclasses.replace(sharpness, age=every - 1)
    again = method._look(Point(), sharpness, 20)
    assert float(again.pairs.values) == now
    assert (again.age, again.every) == (0, expected)
    assert again.growth == pytest.approx(growth)
    # many stages are enough to measure again
    assert float(method._look(Point(), sharpness, 21).pairs.values) == now


def test_rkc_interpolates_by_the_cubic_of_both_ends():
    """SciPy's Hermite spline through θ and −∇L at both ends; the error is 0.8 (θₙ − θₙ₊₁) + 0.4 h (F₀ + F₁)."""
    loss = LossFunction.from_callable(lambda x: (x**4).sum() / 4 + x[0] * x[1])
    start, h = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.1
    method = METHODS["rkc"]()
    point = Field(loss).at(start)
    attempt = method.step(point, h, None)
    value, slope = loss.gradient(attempt.z)
    assert attempt.h == h
    assert torch.equal(attempt.end.value, value)
    assert torch.equal(attempt.end.gradient, slope)
    ends = np.stack([start, attempt.z])
    slopes = -np.stack([point.gradient, slope])
    spline = CubicHermiteSpline([0.0, h], ends, slopes)
    for s in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert attempt.interpolant(s).numpy() == pytest.approx(spline(s * h), abs=1e-14)
    expected = 0.8 * (ends[0] - ends[1]) + 0.4 * h * slopes.sum(0)
    assert attempt.error == pytest.approx(np.linalg.norm(expected), rel=1e-9)


def test_rkc_measures_a_rising_sharpness_often_and_a_steady_one_seldom():
    H, _, Q = symmetric([40.0, 3.0] + [1.0] * 40)
    counts = {}
    for name, loss in (
        ("steady", lambda x: 0.5 * x @ H @ x),
        ("rising", lambda x: 0.5 * x @ H @ x * (1 + 5 * torch.exp(-(x @ x)))),
    ):
        by_hand = gradflow.solver("rkc", loss, 0.2 * Q.sum(1), rtol=1e-4, max_step=0.05)
        n, measured = 0, 0
        for _ in range(40):
            report = by_hand.step()
            measured, n = measured + (report.n_hvps > n), report.n_hvps
        counts[name] = measured
    assert counts["steady"] < 8 < counts["rising"]


# ---------------------------------------------------------------------- what they are for


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "fewer"), [("exprb43", {"dense": False}, 15), ("rkc", {}, 10)])
def test_a_sharpening_flow_costs_a_fraction_of_rk4(name, options, fewer):
    """Chebyshev-4, which has no symmetry to keep, to t = 300, λ₁ from 4 to 8, at an error of 3e-3 of the way."""
    train, _, theta = problems.load("chebyshev-4-20", "regression", "mse", dtype=torch.float64)
    shared = {"t_max": 300.0, "save_every": 300.0}
    reference = gradflow.integrate(
        train, theta, method="scipy:BDF", rtol=1e-9, atol=1e-11, **shared
    ).params.values
    rk4 = gradflow.integrate(train, theta, method="rk4", **shared)
    run = gradflow.integrate(train, theta, method=name, rtol=1e-4, **shared, **options)
    error = np.linalg.norm(run.params.values - reference) / np.linalg.norm(reference - theta.numpy())
    assert error < 5e-3
    cost = [float(ds.n_gradients[-1] + ds.n_hvps[-1]) for ds in (rk4, run)]
    assert cost[0] > fewer * cost[1], cost


def test_options_are_checked():
    for cls in (METHODS["exprb43"], METHODS["rkc"]):
        with pytest.raises(InvalidInputError, match="rtol > 0"):
            cls(rtol=0.0)
        with pytest.raises(InvalidInputError, match="max_step > 0"):
            cls(max_step=-1.0)
    with pytest.raises(InvalidInputError, match="max_basis ≥ 4"):
        METHODS["exprb32"](max_basis=2)
    with pytest.raises(InvalidInputError, match="max_stages ≥ 2"):
        METHODS["rkc"](max_stages=1)
    with pytest.raises(InvalidInputError, match="damping > 0"):
        METHODS["rkc"](damping=0.0)


# ---------------------------------------------------------------------- auto


def test_auto_chooses_by_size_and_memory_and_says_so():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 1))
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(64, 20, generator=g), torch.randn(64, 1, generator=g))
    roomy = LossFunction(data, nn.MSELoss(), net, batch_size=16)
    tight = LossFunction(data, nn.MSELoss(), net, batch_size=16, memory_budget=1)
    small, _, _ = problems.load("chebyshev-3-20", "regression", "mse")
    callable_ = LossFunction.from_callable(torch.sum)
    assert (roomy.dtype, roomy.device) == (torch.float32, torch.device("cpu"))
    assert (callable_.dtype, callable_.device) == (None, None)
    for loss, rtol, expected in (
        (roomy, 1e-3, "exprb43"),
        (roomy, 1e-4, "exprb54"),
        (tight, 1e-3, "rkc"),
        (small, 1e-3, "rkc"),
        (lambda x: (x**2).sum(), 1e-3, "exprb43"),
    ):
        theta = torch.ones(3) if not isinstance(loss, LossFunction) else None
        ds = gradflow.integrate(loss, theta, method="auto", rtol=rtol, max_step=0.1, t_max=0.2)
        assert ds.attrs["method"] == "auto"
        stored = json.loads(ds.attrs["gradflow_config"])["options"]
        assert (stored["rtol"], stored["max_step"]) == (rtol, 0.1)
        assert (stored["stiff"]["method"], stored["stiff"]["max_step"]) == (expected, 0.1)
        assert stored["stiff"]["rtol"] == pytest.approx(rtol if expected != "rkc" else 15 * rtol**1.5)
        assert (stored["explicit"]["method"], stored["explicit"]["cap"]) == ("tsit5", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None])
def test_auto_asks_for_graphs_in_the_dtype_of_the_loss(dtype):
    """A callable has none; float64 stands for it."""
    asked = []
    loss = SimpleNamespace(
        has_exact_products=True,
        n_parameters=1000,
        dtype=dtype,
        memory_budget=2**30,
        keeps_graphs=lambda dtype: asked.append(dtype) or True,
    )
    assert METHODS["auto"]().choose(loss, GradientFlow()).stiff.name == "exprb54"
    assert asked == [dtype or torch.float64]


def test_top_pairs_have_residuals_relative_to_the_largest_eigenvalue():
    λ = torch.tensor([50.0, 20.0, 1.0, 0.5, -80.0], dtype=torch.float64)
    space = KrylovSpace(torch.diag(λ), 3)
    space.coordinates(torch.ones(5, dtype=torch.float64))
    largest = np.abs(space.eigenvalues(3)).max()
    pairs = space.top(2)
    assert pairs.scale == largest
    off = torch.linalg.vector_norm(λ[:, None] * pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert torch.allclose(pairs.residuals, off / largest, rtol=1e-10)
    assert off.min() > 0.1
