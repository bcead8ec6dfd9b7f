"""The principal flow, against gradient descent on quadratics, dense matrices, and the modified flow."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import gradflow
from gradflow.errors import IntegrationError, IntegrationWarning, InvalidInputError, InvalidTypeError
from gradflow.flows import Field, PrincipalFlow, principal

double = torch.float64
η = 0.1
CURVATURES = torch.tensor([19.0, 13.0, 9.0, 5.0, 0.5, 0.0, -1.0], dtype=double)  # ηλ of 1.9, 1.3, 0.9, …
START = torch.linspace(1.0, 2.0, 7, dtype=double)


def quadratic(x):
    return 0.5 * (CURVATURES * x**2).sum()


def network_loss():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(5, 12), torch.nn.Tanh(), torch.nn.Linear(12, 3)).to(double)
        x, y = torch.randn(40, 5, dtype=double), torch.randn(40, 3, dtype=double)
    return gradflow.LossFunction(torch.utils.data.TensorDataset(x, y), torch.nn.MSELoss(), net)


def point_of(loss, theta, flow):
    return Field(loss, flow).at(theta)


def dense(loss, theta):
    """The Hessian's eigenvalues, smallest first, its eigenvectors, and the gradient."""
    at = loss.linearize(theta)
    return *torch.linalg.eigh(at @ torch.eye(len(theta), dtype=double)), at.gradient


# ---------------------------------------------------------------------- quadratics

TIGHT = {"rtol": 1e-9, "atol": 1e-11}
COARSE = {"rtol": 1e-5, "atol": 1e-7}
ADAPTIVE = ["auto", "rkc", "adaptive_heun", "fehlberg2", "bosh3", "tsit5", "dopri5", "dopri8", "dop853", "scipy:RK45",
            "scipy:DOP853", "scipy:LSODA", *(f"torchdiffeq:{name}" for name in
            ("dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2", "scipy_solver"))]  # fmt: skip
GRIDS = ["rk4", "midpoint", "heun2", "heun3", "explicit_adams", "implicit_adams", *(f"torchdiffeq:{name}" for name in
         ("midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams"))]  # fmt: skip
FINE = {"rtol": 1e-6, "atol": 1e-8}
METHODS = {
    **{name: COARSE for name in ADAPTIVE},
    **{name: FINE for name in ("auto", "rkc", "fehlberg2", "torchdiffeq:fehlberg2")},
    **{name: {"step_size": 0.0025} for name in GRIDS},
    **{name: {"step_size": 0.0025, "options": {"max_order": 4}} for name in GRIDS if "adams" in name},
    **{name: {"method_options": {"lr": 1e-3}} for name in ("gd", "euler")},
    "torchdiffeq:euler": {"step_size": 1e-3},
}


def test_every_method_that_needs_a_velocity_alone_is_tested_here():
    needs = {name: cls.needs for name, cls in gradflow.integrators.METHODS.items() if cls.only_for is None}
    assert set(METHODS) == {name for name, need in needs.items() if need == "velocity"}


@pytest.mark.parametrize("method", METHODS)
def test_on_a_quadratic_it_has_the_sizes_of_gradient_descents_components(method):
    curvatures, start = torch.tensor([16.0, 6.0, 1.0], dtype=double), torch.ones(3, dtype=double)
    run = gradflow.integrate(
        lambda x: 0.5 * (curvatures * x**2).sum(),
        start,
        flow="principal",
        method=method,
        t_max=2 * η,
        save_every=2 * η,
        **{"flow_options": {"lr": η}, **METHODS[method]},
    )
    expected = (1 - η * curvatures).abs() ** 2
    assert np.abs(run.params - expected.numpy()).max() < (
        2e-3 if "euler" in method or method == "gd" else 1e-4
    )
    assert float(run.edge_residual[-1]) == pytest.approx(-0.4)


def test_it_is_exact_to_the_integrators_tolerance():
    gd = gradflow.integrate(quadratic, START, method="gd", lr=η, max_steps=4)
    flow = gradflow.integrate(quadratic, START, flow="principal", lr=η, method="dopri5", t_max=4 * η, **TIGHT)
    assert np.abs(np.abs(flow.params) - np.abs(gd.params)).max() < 1e-8
    assert gd.params[0] > 0 > gradflow.integrate(quadratic, START, method="gd", lr=η, max_steps=3).params[0]


def test_where_gradient_descent_takes_one_step_it_takes_a_thousandth():
    bowl, start = (lambda x: 5 * (x**2).sum()), torch.ones(2, dtype=double)
    run = gradflow.integrate(bowl, start, flow="principal", lr=η, method="dopri5", t_max=η, **TIGHT)
    assert np.allclose(run.params, 1e-3, rtol=1e-5)


def test_its_coefficients_are_smooth_where_they_are_computed_in_two_ways():
    x = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, 1e-3, 0.5 - 1e-9, 0.5 + 1e-9, 1.5, 2.0], dtype=double)
    expected = [
        -np.log(4) / 3,
        -1,
        -1,
        -1,
        np.log1p(-1e-3) / 1e-3,
        -2 * np.log(2),
        -2 * np.log(2),
        -np.log(2) / 1.5,
        0,
    ]
    assert np.allclose(principal.coefficients(x), expected, rtol=1e-8, atol=1e-15)
    assert torch.isfinite(principal.coefficients(torch.ones(1, dtype=double))).all()


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_its_velocity_is_the_formula_with_dense_matrices(k, monkeypatch):
    monkeypatch.setattr(principal, "_TOLERANCE", 1e-10)
    loss = network_loss()
    theta = loss.parameters()
    λ, U, g = dense(loss, theta)
    lr = 1.7 / float(λ[-1])
    x = lr * λ
    c = torch.log(abs(1 - x)) / x
    c[: max(len(x) - k, 0)] = -(1 + x / 2)[: max(len(x) - k, 0)]
    expected = U @ (c * (U.T @ g))
    found = point_of(loss, theta, PrincipalFlow(lr, k)).velocity
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.norm()))


def test_gradient_descent_is_nearer_to_it_than_to_gradient_flow_by_an_order():
    loss = network_loss()
    options = {"t_max": 1.0, "save_every": 1.0, "method": "dopri5", **TIGHT}
    flow = gradflow.integrate(loss, **options).params
    to_gd, to_modified, of_gradient_flow = [], [], []
    for lr in (0.05, 0.025, 0.0125):
        gd = gradflow.integrate(loss, method="gd", lr=lr, t_max=1.0, save_every=1.0).params
        found = gradflow.integrate(loss, flow="principal", lr=lr, n_directions=3, **options).params
        modified = gradflow.integrate(loss, flow="modified", lr=lr, **options).params
        to_gd.append(float(np.linalg.norm(found - gd)))
        to_modified.append(float(np.linalg.norm(found - modified)))
        of_gradient_flow.append(float(np.linalg.norm(flow - gd)))
    slopes = [np.log2(d[-2] / d[-1]) for d in (to_gd, to_modified, of_gradient_flow)]
    assert np.allclose(slopes, [2, 2, 1], atol=0.1), slopes


def test_with_eigenpairs_to_its_tolerance_it_is_as_smooth_as_with_exact_ones(monkeypatch):
    loss = network_loss()
    lr = 1.5 / float(dense(loss, loss.parameters())[0][-1])
    runs = []
    for tol in (1e-8, principal._TOLERANCE):
        monkeypatch.setattr(principal, "_TOLERANCE", tol)
        options = {
            "lr": lr,
            "n_directions": 4,
            "t_max": 5 * lr,
            "method": "dopri5",
            "rtol": 1e-6,
            "atol": 1e-8,
        }
        options["save_every"] = 5 * lr
        runs.append(gradflow.integrate(loss, flow="principal", **options))
    exact, run = runs
    assert (
        np.linalg.norm(run.params - exact.params) < 1e-6 * np.linalg.norm(run.params) * run.attrs["n_steps"]
    )
    assert run.attrs["n_steps"] <= exact.attrs["n_steps"] + 1
    assert run.attrs["n_rejected_steps"] <= exact.attrs["n_rejected_steps"] + 1
    assert run.n_gradients[-1] < 1.1 * exact.n_gradients[-1]
    assert run.n_hvps[-1] < 0.7 * exact.n_hvps[-1]


def test_a_velocity_costs_a_gradient_and_a_warm_eigensolve():
    loss = network_loss()
    field = Field(loss, PrincipalFlow(0.1, 3))
    theta = loss.parameters()
    downhill = -loss.linearize(theta).gradient
    costs = []
    for i in range(12):
        before = field.cost.copy()
        _ = field.at(theta + 1e-2 * i * downhill).velocity
        costs.append((field.cost.n_gradients - before.n_gradients, field.cost.n_hvps - before.n_hvps))
    assert all(gradients == 1 for gradients, _ in costs)
    assert max(products for _, products in costs[2:]) <= 12 < costs[0][1]
    point = field.at(theta)
    spent = field.cost.copy()
    _ = point.velocity, point.loss, point.rates(1, tol=0.01), point.field.flow.refusal(point)
    assert field.cost.n_gradients == spent.n_gradients + 1
    first = field.cost.n_hvps
    _ = point.rates(1, tol=1e-4), point.field.flow.measure(point)
    assert field.cost.n_hvps == first


def test_its_rates_are_bounds_of_those_of_its_jacobian():
    loss = gradflow.LossFunction.from_callable(quadratic)
    for k in (1, 3, 7):
        point = point_of(loss, START, PrincipalFlow(η, k))
        x = (η * CURVATURES).numpy()
        exact = np.where(np.arange(7) < k, -np.log(np.abs(1 - x)), x + x**2 / 2) / η
        by_velocity = -(point.velocity / START).numpy()
        assert np.allclose(by_velocity, exact, atol=1e-9)
        bound = point.rates(1, tol=0.01)
        assert bound.scale >= float(bound.values[0]) >= exact.max() - 1e-9
        if k == 7:
            assert float(bound.values[0]) == pytest.approx(exact.max())
            assert np.allclose(point.rates(3, tol=0.01).values, np.sort(exact)[::-1][:3])


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    loss = network_loss()
    for method, step_size in (
        ("dopri5", None),
        ("scipy:RK45", None),
        ("rk4", "ErrorControl(rtol=1e-4)"),
    ):
        options = {"flow": "principal", "lr": 0.3, "n_directions": 3, "method": method, "t_max": 2.0}
        options |= {"checkpoint_every": 1e-9, "save_every": 0.5}
        if step_size is not None:
            options["step_size"] = step_size

        def dies(report):
            if report.step == 3:
                raise RuntimeError("the machine went down")

        path = tmp_path / f"{method.replace(':', '-')}.nc"
        whole = gradflow.integrate(loss, **options)
        assert whole.attrs["n_steps"] >= 4
        with pytest.raises(RuntimeError, match="went down"):
            gradflow.integrate(loss, out=path, callback=dies, **options)
        resumed = gradflow.integrate(loss, resume=path, **options)
        for name in ("params", "train_loss", "edge_residual", "n_gradients", "n_hvps", "step_size"):
            assert np.array_equal(whole[name], resumed[name], equal_nan=True), (method, name)


# ---------------------------------------------------------------------- refusals


def test_a_start_beyond_the_edge_is_refused_with_advice():
    for lr in (2 / 19, 0.2):
        with pytest.raises(InvalidInputError) as caught:
            gradflow.integrate(quadratic, START, flow="principal", lr=lr, t_max=1.0)
        assert str(caught.value) == (
            f"The flow 'principal' can't start here: lr·λ₁ is {19 * lr:.4g} here, and the principal flow describes "
            "gradient descent below 2 alone. Take a smaller lr, end the run before, or use flow='central' or "
            "flow='edge', which are made for what comes there."
        )


def sharpening(x):
    """A valley whose sharpness grows as y does: λ₁ = y near x = 0."""
    return 0.5 * x[1] * x[0] ** 2 - 0.5 * x[1]


@pytest.mark.parametrize("method", ["dopri5", "rk4", "rkc", "scipy:RK45"])
def test_a_run_that_comes_beyond_the_edge_ends_before(method):
    start = torch.tensor([0.01, 15.0], dtype=double)
    options = {"flow": "principal", "lr": η, "method": method, "t_max": 100.0}
    if method == "rk4":
        options["max_step"] = 0.1
    with pytest.warns(IntegrationWarning, match=r"no model of the optimiser.*lr·λ₁ is 2(\.\d+)? here"):
        run = gradflow.integrate(sharpening, start, **options)
    assert run.attrs["status"] == "left_model"
    assert float(run.edge_residual[-1]) < 0
    assert 15 < run.params[1] < 20
    with pytest.raises(IntegrationError) as caught:
        gradflow.integrate(sharpening, start, on_failure="raise", **options)
    assert caught.value.status == "left_model"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, InvalidTypeError, "Flow 'principal' needs lr"),
        ({"lr": 0.0}, InvalidInputError, "Expected lr > 0, got 0.0."),
        ({"lr": 0.1, "n_directions": 0}, InvalidInputError, "Expected n_directions ≥ 1, got 0."),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        gradflow.integrate(quadratic, START, flow="principal", t_max=1.0, **options)


def test_a_method_that_needs_a_jacobian_is_refused():
    with pytest.raises(InvalidInputError, match=r"'principal' has no Jacobian\. Use rkc, rk4, dopri5"):
        gradflow.integrate(quadratic, START, flow="principal", lr=η, method="exprb43", t_max=1.0)


def test_a_flow_of_ones_own_may_refuse_points():
    @dataclass(frozen=True)
    class Fenced(gradflow.Flow):
        name = "fenced"

        def velocity(self, point):
            return torch.ones_like(point.theta)

        def refusal(self, point):
            return "θ is above 1" if float(point.theta.max()) > 1 else None

    start = torch.zeros(2, dtype=double)
    with pytest.warns(IntegrationWarning, match=r"no model .* led there: θ is above 1\."):
        run = gradflow.integrate(quadratic_of_two, start, flow=Fenced(), method="gd", lr=0.3, t_max=5.0)
    assert np.allclose(run.params, 0.9)
    with pytest.raises(InvalidInputError, match=r"The flow 'fenced' can't start here: θ is above 1\."):
        gradflow.integrate(quadratic_of_two, start + 2, flow=Fenced(), method="gd", lr=0.3, t_max=5.0)


def quadratic_of_two(x):
    return 0.5 * (x**2).sum()
