"""Every method: order, exactness, agreement with a second implementation, and the shared contract."""

import dataclasses
import math
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import classification
from helpers.methods import FLOWS, METHODS
from helpers.problems import chebyshev, quadratic
from helpers.references import by_radau
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, SpectrumService, problems
from gradflow.integrators import METHODS as REGISTRY
from gradflow.integrators import Field, make_integrator
from gradflow.loss import Linearization

IDS = [m.name for m in METHODS]


def log_cosh():
    """L = Σ log cosh (Qᵀθ)ᵢ, whose flow is known: ẋ = −tanh x gives sinh x(t) = e^{−t} sinh x(0)."""
    g = torch.Generator().manual_seed(3)
    Q = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    x0 = torch.tensor([2.0, 1.0, -1.5], dtype=torch.float64)

    def loss(theta):
        return torch.log(torch.cosh(Q.T @ theta)).sum()

    def exact(t):
        return Q @ torch.asinh(math.exp(-t) * torch.sinh(x0))

    return loss, Q @ x0, exact


@pytest.mark.parametrize("method", [m for m in METHODS if m.orders], ids=str)
def test_measured_order(method):
    loss, theta0, exact = log_cosh()
    errors = []
    for h in method.hs:
        ds = gradflow.integrate(
            loss, theta0, method=method.name, t_max=1.0, save_every=1.0, **method.fixed(h)
        )
        assert ds.attrs["n_steps"] == round(1 / h)
        assert float(ds.time[-1]) == 1.0
        errors.append(float((torch.from_numpy(ds.params.values) - exact(1.0)).norm()))
    slope = np.polyfit(np.log(method.hs), np.log(errors), 1)[0]
    low, high = method.orders
    assert low < slope < high, (slope, errors)
    order = REGISTRY[method.name].order
    assert low < order < high


@pytest.mark.parametrize("method", [m for m in METHODS if m.tolerances], ids=str)
def test_errors_follow_the_tolerance(method):
    loss, theta0, exact = log_cosh()
    rtols = [1e-3, 1e-4, 1e-5] if REGISTRY[method.name].order <= 2 else [1e-3, 1e-5, 1e-7]
    errors = []
    for rtol in rtols:
        ds = gradflow.integrate(
            loss, theta0, method=method.name, t_max=3.0, save_every=3.0, **method.tolerances(rtol)
        )
        errors.append(float((torch.from_numpy(ds.params.values) - exact(3.0)).norm() / exact(0.0).norm()))
        assert errors[-1] < 100 * rtol
    slope = np.polyfit(np.log(rtols), np.log(errors), 1)[0]
    assert 0.5 < slope < 1.5, errors


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_documented_defaults_are_the_defaults(name):
    cls = REGISTRY[name]
    fields = {field.name: field.default for field in dataclasses.fields(cls)}
    documented = {}
    for base in reversed(cls.__mro__):  # the nearest counts
        documented |= dict(re.findall(r"^ +(\w+) : .*?, default (\S+)$", base.__doc__ or "", re.MULTILINE))
    for option, text in documented.items():
        if option in fields:
            assert str(fields[option]) == text or float(fields[option]) == float(text), option


def test_a_point_solves_once_for_what_it_is_asked_whether_or_not_that_converges():
    field = Field(LossFunction.from_callable(lambda x: (x**2).sum()))
    asked = []

    def top(k, at, *, tol):
        pairs = SpectrumService(at).top(k)
        asked.append((k, tol, pairs.n_hvp))
        return dataclasses.replace(pairs, converged=torch.zeros(k, dtype=torch.bool))

    field.spectrum = SimpleNamespace(top=top)
    point = field.at(torch.ones(3))
    for k, tol in [(2, 1e-3), (2, 1e-3), (1, 1e-3), (2, 1e-2), (3, 1e-3), (3, 1e-4)]:
        assert len(point.top(k, tol=tol)) == k
    assert [each[:2] for each in asked] == [(2, 1e-3), (3, 1e-3), (3, 1e-4)]
    assert field.cost.n_hvps == sum(each[2] for each in asked) > 0


def test_every_method_is_tested():
    """Those of the central flow in tests/flows."""
    general = {cls.name for cls in REGISTRY.values() if cls.only_for is None}
    assert general == {m.name for m in METHODS} | set(classification.TORCH)


def test_expeuler_is_exact_on_a_quadratic_that_is_all_stiff():
    loss, theta0, exact = quadratic([400.0, 30.0, 2.0, 0.0])
    for stiff_dim in (4, 7):
        ds = gradflow.integrate(
            loss, theta0, method="expeuler", stiff_dim=stiff_dim, max_step=0.5, t_max=2.0, save_at=[0.3, 1.1]
        )
        assert ds.attrs["n_steps"] == 4
        for t, theta in zip(ds.time.values, ds.theta.values, strict=True):
            assert float((torch.from_numpy(theta) - exact(t)).norm()) < 1e-13


def test_expeuler_caps_growth_along_negative_curvature():
    loss, theta0, exact = quadratic([5.0, 1.0, -2.0])
    options = {"method": "expeuler", "stiff_dim": 3, "max_step": 0.25, "t_max": 1.0, "save_every": 1.0}
    free = gradflow.integrate(loss, theta0, cap_growth=False, **options)
    assert np.allclose(free.params, exact(1.0), atol=1e-12)
    capped = gradflow.integrate(loss, theta0, **options)
    # Euler's growth (1 + 2h)ⁿ in the place of e^{2t} along the one direction
    lin = LossFunction.from_callable(loss).linearize(theta0)
    λ, V = torch.linalg.eigh(lin @ torch.eye(3, dtype=torch.float64))
    c = V.T @ theta0
    expected = V @ (torch.stack([torch.tensor(1.5**4).double(), *torch.exp(-λ[1:])]) * c)
    assert np.allclose(capped.params, expected, atol=1e-12)


def test_expeuler_step_is_limited_by_the_first_eigenvalue_outside():
    loss, theta0, _ = quadratic([400.0, 30.0, 8.0, 1.0])
    report = gradflow.solver("expeuler", loss, theta0, stiff_dim=2).step()
    assert report.dt == pytest.approx(1 / 8)
    assert report.sharpness == pytest.approx(400)
    assert torch.allclose(report.eigenvalues, torch.tensor([400.0, 30.0, 8.0]).double())
    by_hand = gradflow.solver(
        "expeuler", loss, theta0, stiff_dim=2, max_step=0.1, warmup_iters=2, warmup_factor=0.5
    )
    assert [by_hand.step().dt for _ in range(4)] == pytest.approx([0.05, 0.05, 0.1, 0.1])


def test_adaptive_gd_steps_are_one_over_sharpness_at_most_lr():
    loss, theta0, _ = quadratic([40.0, 3.0, 1.0])
    assert gradflow.solver("adaptive-gd", loss, theta0, lr=1.0).step().dt == pytest.approx(1 / 40)
    by_hand = gradflow.solver("adaptive-gd", loss, theta0, lr=0.01, warmup_iters=2, warmup_factor=0.5)
    assert [by_hand.step().dt for _ in range(4)] == pytest.approx([0.005, 0.005, 0.01, 0.01])
    down, theta0, _ = quadratic([-4.0, -1.0])
    assert gradflow.solver("adaptive-gd", down, theta0, lr=5.0).step().dt == pytest.approx(1.0)
    ds = gradflow.integrate(loss, torch.ones(3).double(), method="adaptive-gd", lr=1.0, t_max=0.06)
    assert ds.time.values == pytest.approx([0, 0.025, 0.05, 0.075])  # it doesn't land


def test_rk4_step_is_alpha_over_sharpness_and_at_most_max_step():
    loss, theta0, _ = quadratic([40.0, 3.0, 1.0])
    assert gradflow.solver("rk4", loss, theta0).step().dt == pytest.approx(1 / 40)
    assert gradflow.solver("rk4", loss, theta0, alpha=2.0).step().dt == pytest.approx(2 / 40)
    assert gradflow.solver("rk4", loss, theta0, max_step=0.01).step().dt == 0.01


@pytest.mark.parametrize(
    ("eigenvalues", "h"), [([-3.0, -1.0], 1 / 3), ([0.0, -2.0], 1 / 2), ([0.5, -4.0], 2.0)]
)
def test_rk4_without_positive_curvature_still_advances(eigenvalues, h):
    """Neither backwards nor for ever: max|λ| takes the place of a λ₁ ≤ 0."""
    loss, theta0, exact = quadratic(eigenvalues)
    assert gradflow.solver("rk4", loss, theta0).step().dt == pytest.approx(h)
    ds = gradflow.integrate(loss, theta0, method="rk4", alpha=0.05, t_max=0.5)
    assert np.allclose(ds.params, exact(0.5), rtol=1e-6)


@pytest.mark.parametrize("method", FLOWS, ids=[m.name for m in FLOWS])
def test_a_flat_loss_is_integrated_to_the_end(method):
    ds = gradflow.integrate(
        lambda x: x.sum() * 2.0,
        torch.ones(3, dtype=torch.float64),
        method=method.name,
        t_max=3.0,
        **method.options,
    )
    assert np.allclose(ds.params, 1.0 - 2.0 * 3.0)


def test_sharpness_is_measured_again_after_ten_steps_or_when_asked():
    train, _, theta = chebyshev()
    measured = []
    by_hand = gradflow.solver("rk4", train, theta)
    reports = [by_hand.step() for _ in range(31)]
    for before, after in pairwise(reports):
        measured.append(after.n_hvps > before.n_hvps)
    assert [i + 1 for i, m in enumerate(measured) if m] == [10, 20, 30]
    every = 0.6
    by_hand = gradflow.solver("rk4", train, theta, sharpness_every=every)
    last, n_hvps = 0.0, 0
    for _ in range(20):
        t = by_hand.t
        report = by_hand.step()
        if report.n_hvps > n_hvps:
            last, n_hvps = t, report.n_hvps
        assert report.t - last <= every + 1e-9


def test_a_loss_that_rises_is_rejected_and_the_sharpness_measured_again():
    """The curvature jumps to 5 times what was measured: the stale step would overshoot."""

    def loss(x):
        return torch.where(x > 0, 0.5 * 5 * x**2, 0.5 * x**2).sum()

    theta0 = torch.tensor([-1.0], dtype=torch.float64)

    def tilted(x):
        return loss(x) - 2.0 * x.sum()

    by_hand = gradflow.solver("rk4", tilted, theta0, alpha=2.7)
    losses = []
    for _ in range(250):
        report = by_hand.step()
        losses.append(report.loss)
    assert report.n_rejected >= 1
    assert (np.diff(losses) <= 1e-12).all()
    assert by_hand.params.item() == pytest.approx(0.4, abs=1e-9)


def test_a_rise_that_three_rejections_cannot_avoid_is_recorded():
    class Wrong(gradflow.Euler):
        """Steps uphill, so that no step size helps."""

    @dataclasses.dataclass(frozen=True)
    class Uphill(Wrong):
        name = "uphill"
        discrete = False

        def step(self, point, h, state):
            return gradflow.integrators.StepResult(point.z - h * point.velocity)

    ds = gradflow.integrate(
        lambda x: (x**2).sum(), torch.ones(2), method=Uphill(0.1), max_steps=2, t_max=10.0, save_every=5.0
    )
    assert ds.attrs["n_loss_increases"] == 2
    assert ds.attrs["n_rejected_steps"] == 6
    assert float(ds.step_size[-1]) == pytest.approx(0.1 / 8)


# ---------------------------------------------------------------------- against a second implementation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "order", "hs", "bound"),
    [("rk4", 4, (0.2, 0.1, 0.05), 1e-6), ("expeuler", 1, (0.1, 0.05, 0.025), 1e-2)],
)
def test_flow_errors_against_radau_fall_with_the_order(name, order, hs, bound):
    train, theta, expected = by_radau(3, (0.0, 5.0, 10.0, 20.0))
    method = next(m for m in METHODS if m.name == name)
    travelled = np.linalg.norm(expected[-1] - theta.numpy())
    errors = []
    for h in hs:
        ds = gradflow.integrate(
            train, theta, method=name, t_max=20.0, save_at=[5.0, 10.0, 20.0], **method.fixed(h)
        )
        assert np.allclose(ds.time, [0, 5, 10, 20])
        errors.append(np.linalg.norm(ds.theta.values - expected, axis=1) / travelled)
    final = np.array(errors)[:, -1]
    slope = np.polyfit(np.log(hs), np.log(final), 1)[0]
    assert abs(slope - order) < 0.15 * order, (slope, final)
    assert final[-1] < bound
    # and at every save time: error = C hᵖ with the same p
    ratios = np.array(errors)[:-1, 1:] / np.array(errors)[1:, 1:]
    assert np.allclose(np.log2(ratios), order, atol=0.3 * order)


@pytest.mark.slow
@pytest.mark.parametrize("method", [m for m in METHODS if m.tolerances or m.orders], ids=str)
def test_every_method_agrees_with_radau(method):
    """In proportion to its tolerance, or to its step to the power of its order."""
    train, theta, expected = by_radau(3, (0.0, 5.0, 10.0, 20.0))
    travelled = np.linalg.norm(expected[2] - theta.numpy())
    tolerances, hs = (1e-4, 1e-6), (0.05, 0.025)
    if method.tolerances:
        settings = [method.tolerances(rtol) for rtol in tolerances]
    else:
        settings = [method.fixed(h) for h in hs]
    errors = []
    for options in settings:
        ds = gradflow.integrate(train, theta, method=method.name, t_max=10.0, save_every=5.0, **options)
        errors.append(np.linalg.norm(ds.theta.values[1:] - expected[1:3]) / travelled)
    if method.tolerances:
        # At the loose one it is the stability limit that sets the step, and the error is smaller than allowed.
        assert errors[0] < method.constant * tolerances[0]
        assert errors[1] < method.constant * tolerances[1]
        assert errors[1] < max(0.3 * errors[0], 3 * tolerances[1])
    else:
        assert errors[0] < 0.02
        assert np.log2(errors[0] / errors[1]) > REGISTRY[method.name].order - 0.4


@pytest.mark.slow
def test_expeuler_stays_on_the_flow_on_digits():
    """64-32-10 tanh, cross-entropy, max_step 1, 60 steps: within 2 % of the loss, at a fifth of the products."""
    data = problems.datasets.load_data("digits")
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).double()
    loss = LossFunction(TensorDataset(data.train_inputs, data.train_targets), nn.CrossEntropyLoss(), net)
    theta = loss.initialize_parameters(seed=0)
    run = gradflow.integrate(
        loss, theta, method="expeuler", max_step=1.0, max_steps=60, save_every=gradflow.steps(1)
    )
    times = run.time.values[1:]
    fine = gradflow.integrate(loss, theta, method="rk4", alpha=0.5, t_max=float(times[-1]), save_at=times)
    late = times > 5
    ratio = run.train_loss.values[1:][late] / fine.train_loss.values[1:][late]
    assert late.sum() > 30
    assert abs(ratio - 1).max() < 0.02
    assert int(run.n_hvps[-1]) / 60 < 394 / 5


def test_rk4_with_its_default_step_is_accurate():
    train, theta, expected = by_radau(3, (0.0, 5.0, 10.0, 20.0))
    ds = gradflow.integrate(train, theta, method="rk4", t_max=20.0, save_every=20.0)
    travelled = np.linalg.norm(expected[-1] - theta.numpy())
    assert np.linalg.norm(ds.params - expected[-1]) < 1e-4 * travelled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("criterion", "classes"),
    [(nn.MSELoss(), None), (nn.CrossEntropyLoss(), 3), (nn.BCEWithLogitsLoss(), None)],
)
def test_gd_equals_torch_sgd_bit_for_bit(criterion, classes, dtype, generator):
    X = torch.randn(31, 4, generator=generator, dtype=dtype)
    y = (
        torch.randint(0, 3, (31,), generator=generator)
        if classes
        else torch.rand(31, 3, generator=generator, dtype=dtype)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3)).to(dtype)
    loss = LossFunction(TensorDataset(X, y), criterion, net)
    ds = gradflow.integrate(loss, method="gd", lr=0.3, max_steps=25, params_every=gradflow.steps(1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for step in range(25):
        optimizer.zero_grad()
        value = criterion(net(X), y)
        assert value.item() == float(ds.train_loss[step])
        value.backward()
        optimizer.step()
        assert np.array_equal(ds.theta.values[step + 1], loss.parameters().numpy())


# ---------------------------------------------------------------------- the contract


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_a_step_changes_nothing_it_was_given(method, dtype):
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=dtype)
    before = theta.clone()
    integrator = make_integrator(method.name, method.options).resolve(train)
    with pytest.raises(dataclasses.FrozenInstanceError):
        integrator.order = 7

    def attempt():
        point = Field(train, keep_graph=integrator.keep_graph).at(theta)
        gradient = point.gradient.clone()
        rule, state = integrator.step_rule, integrator.init(point)
        control = rule.init(point, lambda: integrator.first_size(point, state))
        result = integrator.step(point, rule.propose(point, 0.0, 0, control).h, state)
        assert torch.equal(point.gradient, gradient)
        return result

    first, second = attempt(), attempt()
    assert torch.equal(theta, before)
    assert torch.equal(first.z, second.z)
    assert first.z.dtype == dtype
    assert (first.interpolant is not None) == integrator.interpolates
    if first.interpolant is not None:
        rounding = 100 * torch.finfo(dtype).eps
        assert torch.allclose(first.interpolant(1.0), first.z, atol=rounding)
        assert torch.allclose(first.interpolant(0.0), theta, atol=rounding)


@pytest.mark.parametrize("method", [m for m in METHODS if m.float32], ids=str)
def test_float32_follows_float64(method, device):
    runs = []
    for dtype in (torch.float32, torch.float64):
        train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=dtype, device=device)
        runs.append(
            gradflow.integrate(train, theta, method=method.name, t_max=5.0, save_every=5.0, **method.options)
        )
    assert runs[0].params.dtype == np.float32
    assert np.linalg.norm(runs[0].params - runs[1].params) < 1e-4 * np.linalg.norm(runs[1].params)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_costs_are_counted(method, monkeypatch):
    train, _, theta = chebyshev()
    calls = {"gradients": 0, "hvps": 0}
    evaluated, linearize, product = LossFunction.evaluated, LossFunction.linearize, Linearization.__matmul__

    def counted_evaluated(self, x, **options):
        calls["gradients"] += 1
        return evaluated(self, x, **options)

    def counted_linearize(self, x, *args, **options):
        calls["gradients"] += 1
        return linearize(self, x, *args, **options)

    def counted_product(self, V):
        calls["hvps"] += 1 if V.dim() == 1 else V.shape[1]
        return product(self, V)

    monkeypatch.setattr(LossFunction, "evaluated", counted_evaluated)
    monkeypatch.setattr(LossFunction, "linearize", counted_linearize)
    monkeypatch.setattr(Linearization, "__matmul__", counted_product)
    by_hand = gradflow.solver(method.name, train, theta, **method.options)
    reports = [by_hand.step() for _ in range(12)]
    assert reports[-1].n_gradients == calls["gradients"]
    assert reports[-1].n_hvps == calls["hvps"]
    assert [r.step for r in reports] == list(range(1, 13))
    assert by_hand.t == pytest.approx(sum(r.dt for r in reports))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_unknown_options_are_a_type_error_that_lists_the_valid_ones(method):
    with pytest.raises(TypeError, match=f"'{method.name}' has no option 'learning_rat'") as error:
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(2), method=method.name, t_max=1.0, learning_rat=1
        )
    for field in dataclasses.fields(REGISTRY[method.name]):
        assert field.name in str(error.value)


def test_unknown_methods_are_refused_with_the_valid_ones():
    with pytest.raises(
        ValueError,
        match=r"No method 'rk44'; did you mean 'rk4'\? Valid: adadelta, adafactor, adagrad, adam",
    ):
        gradflow.integrate(lambda x: (x**2).sum(), torch.ones(2), method="rk44", t_max=1.0)


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (gradflow.Euler, {"lr": 0}, "lr > 0, got 0"),
        (gradflow.Euler, {"lr": -0.1}, "lr > 0"),
        (gradflow.Euler, {"lr": math.nan}, "lr to be finite"),
        (gradflow.Euler, {"lr": "0.1"}, "lr to be a number, got str"),
        (gradflow.RK4, {"alpha": 0.0}, "alpha > 0"),
        (gradflow.RK4, {"max_step": -1.0}, "max_step > 0"),
        (gradflow.RK4, {"sharpness_every": 0.0}, "sharpness_every > 0"),
        (gradflow.RK4, {"loss_rtol": -1.0}, "loss_rtol ≥ 0"),
        (gradflow.ExponentialEuler, {"stiff_dim": 0}, "stiff_dim ≥ 1"),
        (gradflow.ExponentialEuler, {"stiff_dim": 2.5}, "stiff_dim to be an int"),
        (gradflow.ExponentialEuler, {"max_step": math.inf}, "max_step to be finite"),
        (gradflow.ExponentialEuler, {"warmup_iters": -1}, "warmup_iters ≥ 0"),
        (gradflow.ExponentialEuler, {"warmup_factor": 0.0}, "warmup_factor > 0"),
        (gradflow.ExponentialEuler, {"eigs_rtol": 0.0}, "eigs_rtol > 0"),
    ],
)
def test_options_are_checked_at_construction(cls, options, text):
    with pytest.raises((ValueError, TypeError), match=text):
        cls(**options)


def test_stiff_dim_is_that_of_the_problem_and_required_for_a_callable():
    with pytest.raises(ValueError, match="expeuler needs stiff_dim"):
        gradflow.solver("expeuler", lambda x: (x**2).sum(), torch.ones(3))
    for loss, expected in (("mse", 10), ("ce", 9)):
        train, _, theta = problems.load("digits", "fc-tanh-depth1", loss)
        assert gradflow.solver("expeuler", train, theta).integrator.stiff_dim == expected


def test_an_integrator_may_be_given_as_an_instance():
    loss, theta0, _ = log_cosh()
    a = gradflow.integrate(loss, theta0, method=gradflow.RK4(max_step=0.1), t_max=1.0)
    b = gradflow.integrate(loss, theta0, method="rk4", max_step=0.1, t_max=1.0)
    c = gradflow.integrate(loss, theta0, method="rk4", method_options={"max_step": 0.1}, t_max=1.0)
    assert np.array_equal(a.params, b.params)
    assert np.array_equal(a.params, c.params)
    with pytest.raises(TypeError, match="takes no options"):
        gradflow.integrate(loss, theta0, method=gradflow.RK4(), t_max=1.0, max_step=0.1)
    with pytest.raises(TypeError, match="given twice"):
        gradflow.integrate(
            loss, theta0, method="rk4", max_step=0.1, method_options={"max_step": 1.0}, t_max=1.0
        )


def test_euler_is_an_alias_of_gd():
    loss, theta0, _ = log_cosh()
    a = gradflow.integrate(loss, theta0, method="gd", lr=0.1, t_max=1.0)
    b = gradflow.integrate(loss, theta0, method="euler", lr=0.1, t_max=1.0)
    assert np.array_equal(a.theta, b.theta)


# ---------------------------------------------------------------------- by hand


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_stepping_by_hand_is_the_run(method):
    train, _, theta = chebyshev()
    by_hand = gradflow.solver(
        method.name, train, theta, report_gradient=True, report_eigenvectors=True, **method.options
    )
    run = gradflow.integrate(
        train, theta, method=method.name, max_steps=5, save_every=gradflow.steps(1), **method.options
    )
    for n in range(5):
        before, t = by_hand.params, by_hand.t
        report = by_hand.step()
        assert by_hand.params is not before
        assert np.array_equal(by_hand.params.numpy(), run.theta.values[n + 1])
        assert report.loss == float(run.train_loss[n])
        assert by_hand.loss == float(run.train_loss[n + 1])
        assert torch.equal(report.gradient, train.gradient(before)[1]) or not method.exact_gradient
        assert torch.allclose(report.gradient, train.gradient(before)[1], rtol=1e-12)
        assert report.t == pytest.approx(t + report.dt)
        assert report.t == float(run.time[n + 1])
        assert report.n_gradients == int(run.n_gradients[n + 1])
        assert math.isnan(report.sharpness) != method.sharpness
        assert report.eigenvalues.dtype == torch.float64
        if report.eigenvectors is not None:
            H = train.hvp(before, report.eigenvectors)
            assert torch.allclose(H, report.eigenvectors * report.eigenvalues, atol=0.02 * report.sharpness)
    assert (report.eigenvectors is not None) == (
        method.name in {"expeuler", "adaptive-gd", "exprb32", "exprb43", "exprb54"}
    )


def test_by_hand_a_numerical_failure_raises_with_the_state():
    by_hand = gradflow.solver("gd", lambda x: (x**4).sum(), torch.full((1,), 10.0), lr=10.0)
    by_hand.step()
    with pytest.raises(gradflow.IntegrationError, match="stopped being finite") as error:
        by_hand.step()
    assert error.value.status == "not_finite"
    assert math.isfinite(by_hand.loss)
    assert error.value.step == by_hand._stepper.n_steps


def test_by_hand_an_unstable_step_is_an_error_on_request():
    loss, theta0, _ = quadratic([10.0, 1.0])
    by_hand = gradflow.solver("gd", loss, theta0, lr=0.25, error_if_unstable=True)
    with pytest.raises(gradflow.IntegrationError, match="The loss rose") as error:
        by_hand.step()
    assert error.value.status == "unstable"
    assert torch.equal(by_hand.params, theta0)
    calm = gradflow.solver("gd", loss, theta0, lr=0.1, error_if_unstable=True)
    assert [calm.step().step for _ in range(5)] == [1, 2, 3, 4, 5]
    gradflow.solver("gd", loss, theta0, lr=0.25).step()


def test_stability_intervals_are_those_of_the_literature():
    for name, expected in (
        ("rk4", 2.7853),
        ("midpoint", 2.0),
        ("heun2", 2.0),
        ("heun3", 2.5127),
        ("bosh3", 2.5127),
        ("dopri5", 3.3066),
        ("adaptive_heun", 2.0),
    ):
        assert REGISTRY[name]().stability_interval == pytest.approx(expected, abs=5e-5)
    for name in ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"):
        reference = REGISTRY[f"torchdiffeq:{name}"]().stability_interval
        assert REGISTRY[name]().stability_interval == pytest.approx(reference, rel=1e-9)
    assert REGISTRY["scipy:RK45"]().stability_interval == pytest.approx(3.3066, abs=5e-5)


def test_the_cap_keeps_steps_within_the_stability_interval_and_can_be_switched_off():
    train, _, theta = problems.load("chebyshev-5-20", "regression", "mse", dtype=torch.float64)
    for method, limit in (("dopri5", 3.31), ("scipy:RK45", 3.31), ("bosh3", 2.51)):
        runs = [
            gradflow.integrate(
                train,
                theta,
                method=method,
                t_max=60.0,
                rtol=1e-3,
                cap=cap,
                save_every=gradflow.steps(1),
                n_eigs=1,
            )
            for cap in (True, False)
        ]
        products = [
            (run.step_size.values[1:] * run.eigenvalue.values[:-1, 0]).max() for run in runs
        ]  # h λ₁ at the beginning of each step
        assert products[0] < limit
        assert products[1] > limit
        assert (np.diff(runs[0].train_loss) <= 1e-12).all()


def test_frequent_records_do_not_shorten_the_steps_of_what_interpolates():
    train, _, theta = chebyshev()
    for method in FLOWS:
        if REGISTRY[method.name].interpolates:
            rare, often = (
                gradflow.integrate(
                    train, theta, method=method.name, t_max=1.0, save_every=every, **method.options
                )
                for every in (1.0, 0.01)
            )
            assert rare.attrs["n_steps"] == often.attrs["n_steps"]
            assert np.array_equal(rare.params, often.params)
            assert int(rare.n_gradients[-1]) == int(often.n_gradients[-1])


def test_large_problems_are_refused_by_dense_references():
    train, _, theta = problems.load("digits", "fc-tanh-depth1", "mse")
    for name in ("BDF", "Radau", "LSODA"):
        with pytest.raises(ValueError, match=r"dense 15,010 × 15,010 matrices.*Use rk4"):
            gradflow.integrate(train, theta, method=f"scipy:{name}", t_max=1.0)


def test_unknown_options_of_a_library_are_refused():
    loss, theta0, _ = quadratic([10.0, 1.0])
    for method, options in (("torchdiffeq:dopri5", {}), ("torchdiffeq:rk4", {"step_size": 0.1})):
        with pytest.raises(TypeError, match="safty"):
            gradflow.solver(method, loss, theta0, options={"safty": 0.5}, **options)
        with pytest.raises(TypeError, match="the driver decides where steps end"):
            gradflow.solver(method, loss, theta0, options={"step_t": [0.5]}, **options)
    with pytest.raises(TypeError, match="needs step_size"):
        gradflow.solver("torchdiffeq:midpoint", loss, theta0)
