"""Effective sharpness, and the thresholds of optimisers: where the spectral radius of their update is one."""

import math

import numpy as np
import pytest
import torch
from helpers.problems import spectral_radius

import gradflow
from gradflow.integrators import METHODS

double = torch.float64
NESTEROV = {"polyak": False, "nesterov": True}
H = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, 1.0]], dtype=double)


def coupled(x):
    return 0.5 * x @ H @ x


PRECONDITIONED = [
    ("rmsprop", {}), ("rmsprop", {"centered": True, "momentum": 0.5}), ("adam", {}), ("adam", {"amsgrad": True}),
    ("adamw", {"lr": 0.01}), ("adamax", {}), ("adagrad", {"lr_decay": 0.1}),
    ("adam", {"eps": 0.1, "betas": (0.5, 0.9)}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "options"), PRECONDITIONED)
def test_the_preconditioner_is_what_the_optimiser_divides_by(method, options):
    """P from the state gives the very update of the last step: θ' = θ − η P⁻¹ m, m the momentum as it is stored."""
    integrator = METHODS[method](**({"lr": 0.02} | options))
    flow = gradflow.flows.Field(gradflow.LossFunction.from_callable(coupled))
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=double)
    state = integrator.init(flow.at(theta))
    assert integrator.preconditioner(state) is None
    for _ in range(7):
        before, theta_before = state, theta
        result = integrator.step(flow.at(theta), 0.02, state)
        theta, state = result.theta, result.state
    P, s = integrator.preconditioner(state), state.saved["state"]["theta"]
    lr, decay = integrator.lr, options.get("weight_decay", 0.01 if method == "adamw" else 0.0)
    if method == "rmsprop":
        g = H @ theta_before
        β = integrator.momentum
        m = g if not β else s["momentum_buffer"] * P  # the buffer holds updates
        if β:
            old = before.saved["state"]["theta"]["momentum_buffer"]
            assert torch.allclose(s["momentum_buffer"], β * old + g / P, rtol=1e-12)
    elif method == "adagrad":
        m = H @ theta_before
    else:
        m = s["exp_avg"]
    expected = theta_before * (1 - lr * decay) - lr * m / P
    assert torch.allclose(theta, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("method", "options"), PRECONDITIONED)
def test_effective_eigenvalues_are_those_of_the_preconditioned_hessian(method, options):
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=double)
    kwargs = {"lr": 0.02} | options
    run = gradflow.integrate(coupled, theta, method=method, max_steps=8, n_eigs=2, eigs_tol=1e-10, **kwargs)
    assert np.isnan(run.effective_eigenvalue[0]).all()
    integrator = METHODS[method](**kwargs)
    flow = gradflow.flows.Field(gradflow.LossFunction.from_callable(coupled))
    state = integrator.init(flow.at(theta))
    for k in range(8):
        result = integrator.step(flow.at(theta), 0.02, state)
        theta, state = result.theta, result.state
        P = integrator.preconditioner(state)
        λ = torch.linalg.eigvals(H / P[:, None]).real.sort(descending=True).values
        assert np.allclose(run.effective_eigenvalue[k + 1], λ[:2], rtol=1e-8)
    assert (run.effective_eigenvalue_residual.values[1:] < 1e-10).all()
    assert np.allclose(run.eigenvalue, torch.linalg.eigvalsh(H).flip(0)[:2])


def iteration_radius(method, λ, lr, β):
    """Spectral radius of (θ, m) ↦ (θ', m') on ½λθ² with P = 1, frozen."""
    if method == "rmsprop":  # b = βb + g, θ = θ − ηb
        m = np.array([λ, β])
    else:  # an average: m = βm + (1 − β)g
        m = np.array([(1 - β) * λ, β])
    return spectral_radius(np.array([1.0, 0.0]) - lr * m, m)


@pytest.mark.parametrize("β", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("method", ["rmsprop", "adam", "adamw", "adamax", "adagrad"])
def test_thresholds_of_preconditioned_methods_are_where_the_spectral_radius_is_one(method, β):
    if method == "adagrad" and β:
        pytest.skip("Adagrad has no momentum")
    lr = 0.1
    options = {"rmsprop": {"momentum": β}, "adagrad": {}}.get(method, {"betas": (β, 0.99)})
    threshold = METHODS[method](lr=lr, **options).stability_threshold
    assert iteration_radius(method, threshold, lr, β) == pytest.approx(1.0, abs=1e-12)
    assert (
        iteration_radius(method, 0.99 * threshold, lr, β)
        < 1
        < iteration_radius(method, 1.01 * threshold, lr, β)
    )


def momentum_radius(method, λ, lr, β):
    """Spectral radius of the linear map (θ, v) ↦ (θ', v') on ½λθ²."""
    v = np.array([λ, β])  # v' = λθ + βv
    θ = np.array([1.0, 0.0]) - lr * (np.array([λ, 0.0]) + β * v if NESTEROV[method] else v)
    return spectral_radius(θ, v)


@pytest.mark.parametrize("method", NESTEROV)
@pytest.mark.parametrize("β", [0.0, 0.5, 0.9, 0.99])
def test_thresholds_with_momentum_are_where_the_spectral_radius_is_one(method, β):
    lr = 0.1
    threshold = METHODS[method](lr=lr, momentum=β).stability_threshold
    assert momentum_radius(method, threshold, lr, β) == pytest.approx(1.0, abs=1e-12)
    assert momentum_radius(method, 0.999 * threshold, lr, β) < 1
    assert momentum_radius(method, 1.001 * threshold, lr, β) > 1
    # and so it is for the method as it runs
    ends = []
    for λ in (0.98 * threshold, 1.02 * threshold):
        run = gradflow.integrate(
            lambda x, λ=λ: 0.5 * λ * (x**2).sum(), torch.ones(1, dtype=double), method=method, lr=lr, momentum=β,
            max_steps=1000, save_every=gradflow.steps(1000),
        )  # fmt: skip
        ends.append(float(run.train_loss[-1] / run.train_loss[0]))
        assert run.attrs["stability_threshold"] == threshold
    assert ends[0] < 1e-2
    assert ends[1] > 1e2


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.5, False), (0.5, 0.0, True)]
)
def test_thresholds_of_sgd(momentum, dampening, nesterov):
    lr = 0.1
    sgd = METHODS["sgd"](lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov)
    threshold = sgd.stability_threshold

    def radius(λ):
        v = np.array([λ * (1 - (dampening if momentum else 0)), momentum])
        step = np.array([λ, 0.0]) + momentum * v if nesterov else v
        return spectral_radius(np.array([1.0, 0.0]) - lr * step, v)

    assert radius(threshold) == pytest.approx(1.0, abs=1e-12)
    assert radius(0.99 * threshold) < 1 < radius(1.01 * threshold)


def test_pictures_and_crossings_go_by_the_effective_sharpness():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    run = gradflow.integrate(
        coupled,
        torch.tensor([1.0, -2.0, 0.5], dtype=double),
        method="rmsprop",
        lr=0.5,
        max_steps=60,
        n_eigs=1,
    )
    effective = run.effective_eigenvalue.values[:, 0]
    first = run.time.values[np.flatnonzero(effective > run.attrs["stability_threshold"])]
    assert gradflow.summary(run).get("crossing_time", math.nan) == pytest.approx(
        float(first[0]) if len(first) else math.nan, nan_ok=True
    )
    ax = gradflow.plot.sharpness(run)
    assert np.array_equal(ax.lines[0].get_ydata(), effective[1:])
    assert "effective" in ax.get_ylabel()
    plt.close("all")
