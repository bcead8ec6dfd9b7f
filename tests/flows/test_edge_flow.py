"""Edge flow: a published toy's figures, closed forms, methods that agree, and what is recorded."""

import math

import numpy as np
import pytest
import torch
from helpers.edge import LR, START, valley
from helpers.problems import chebyshev

import gradflow
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.flows import EdgeFlow, Field

double = torch.float64
TIGHT = {"rtol": 1e-8, "atol": 1e-10}
SHARP = torch.tensor([0.0, 6.6], dtype=double)


def follow(start=START, n_steps=2600, every=10, **options):
    """The flow of the valley, recorded every so many optimiser steps."""
    times = {"t_max": LR * n_steps, "save_every": LR * every}
    return gradflow.integrate(valley, start, **{"flow": "edge", "lr": LR} | times | options)


def peak(run):
    """The largest y, and the step at which it is."""
    i = int(run.theta.values[:, 1].argmax())
    return float(run.theta[i, 1]), float(run.time[i]) / LR


def around(step, and_late=False):
    """Times near a step, and some from step 2,000 on."""
    steps = [*range(step - 4, step + 5), *(range(2000, 2601, 20) if and_late else ())]
    return {"save_at": LR * np.array(steps), "save_every": None, "t_max": LR * steps[-1]}


# ---------------------------------------------------------------------- the toy


def test_gradient_descent_overshoots_the_edge_on_the_toy():
    """By 14 %; the step is set by rounding: 688 by torch's gradient, 703 by this one."""
    (x, y), path = START.tolist(), []
    for _ in range(2600):
        gx, gy = (y + x) * x + 0.5 * x * x - 0.01, 0.5 * x * x - 0.01
        x, y = x - LR * gx, y - LR * gy
        path.append(y)
    assert max(path) == pytest.approx(7.584, rel=0.01)
    assert int(np.argmax(path)) == pytest.approx(697, abs=15)
    assert np.mean(path[-600:]) == pytest.approx(6.676, abs=2e-3)


@pytest.mark.parametrize(
    ("floor", "largest", "step"), [(1e-18, 7.584, 697), (1e-17, 7.556, 687), (1e-12, 7.397, 635)]
)
def test_edge_flow_follows_gradient_descent_through_its_cycles(floor, largest, step):
    run = follow(rho_floor=floor, **around(step, and_late=floor == 1e-18))
    y, at = peak(run)
    assert y == pytest.approx(largest, abs=2e-3)
    assert at == pytest.approx(step, abs=1.01)
    if floor == 1e-18:
        assert run.theta.values[-30:, 1].mean() == pytest.approx(6.676, abs=2e-3)
        assert run.attrs["method"] == "rkc"
        assert run.n_gradients[-1] + run.n_hvps[-1] < 2 * 2600


def test_the_linear_rate_without_a_floor_overshoots_further():
    run = follow(rate="linear", rho_floor=0.0, rho_start=1.8e-3, **around(787))
    y, at = peak(run)
    assert y == pytest.approx(7.857, abs=2e-3)
    assert at == pytest.approx(787, abs=1.01)


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("rate", "per_step"), [("log", math.log(1.1)), ("linear", 0.1)])
def test_an_unstable_mode_of_a_quadratic_grows_as_in_gradient_descent(rate, per_step):
    λ = torch.tensor([21.0, 1.0], dtype=double)
    run = gradflow.integrate(
        lambda w: 0.5 * (λ * w**2).sum(), torch.tensor([0.0, 1.0], dtype=double), flow="edge", lr=0.1, rate=rate,
        rho_start=1e-6, t_max=2.0, save_every=1.0, method="dopri5", **TIGHT,
    )  # fmt: skip
    assert np.allclose(np.log(run.rho), math.log(1e-6) + per_step * run.time / 0.1, atol=1e-9)
    assert np.allclose(run.theta[:, 1], np.exp(-run.time), atol=1e-7)
    assert np.allclose(run.edge_residual, 0.1)
    assert np.allclose(run.sigma_trace, run.rho**2)


def test_a_decaying_mode_tends_to_the_floor():
    λ = torch.tensor([15.0, 1.0], dtype=double)
    run = gradflow.integrate(
        lambda w: 0.5 * (λ * w**2).sum(), torch.tensor([0.0, 1.0], dtype=double), flow="edge", lr=0.1,
        rho_floor=1e-6, rho_start=1e-3, t_max=2.0, save_every=0.5, method="dopri5", **TIGHT,
    )  # fmt: skip
    expected = 1e-6 + (1e-3 - 1e-6) * np.exp(math.log(0.5) * run.time / 0.1)
    assert np.allclose(run.rho, expected, rtol=1e-5)
    assert np.all(run.rho_floor == 1e-6)


def test_a_quartic_settles_where_gradient_descent_does():
    S, Q, η = 21.0, 2.0, 0.1
    run = gradflow.integrate(
        lambda w: 0.5 * S * w[0] ** 2 - 0.25 * Q * w[0] ** 4 + 0.5 * w[1] ** 2, torch.tensor([0.0, 1.0], dtype=double),
        flow="edge", lr=η, rho_start=1e-2, t_max=12.0, save_every=12.0, method="dopri5", **TIGHT,
    )  # fmt: skip
    variance = (S - 2 / η) / Q
    assert run.rho[-1] == pytest.approx(math.sqrt(variance), rel=1e-6)
    assert run.quartic_ratio[-1] == pytest.approx(η * variance * 6 * Q / 12, rel=1e-4)
    assert run.predicted_train_loss[-1] == pytest.approx(
        0.5 * S * variance - 0.25 * Q * variance**2, rel=1e-6
    )
    assert run.predicted_gradient_norm[-1] == pytest.approx(2 / η * math.sqrt(variance), rel=1e-6)


def test_decay_is_bounded_where_the_mode_does_not_oscillate():
    flow = EdgeFlow(lr=0.1)
    assert flow.growth(21.0) == pytest.approx(math.log(1.1))
    assert [flow.growth(S) for S in (11.0, 10.0, 5.0, -20.0)] == pytest.approx([-2.0] * 4)
    assert EdgeFlow(lr=0.1, rate="linear").growth(5.0) == pytest.approx(-1.5)


# ---------------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def reference():
    return follow(SHARP, 20, 20, rho_start=0.05, method="dopri8", rtol=1e-11, atol=1e-12).state.values[-1]


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "scipy:RK45", "scipy:LSODA"])
def test_methods_agree(method, reference):
    run = follow(SHARP, 20, 20, rho_start=0.05, method=method, **TIGHT)
    assert np.allclose(run.state.values[-1], reference, rtol=0, atol=1e-6)


def test_the_error_of_rkc_falls_with_its_tolerance(reference):
    errors = [
        np.linalg.norm(
            follow(SHARP, 20, 20, rho_start=0.05, method="rkc", rtol=rtol, atol=0.0).state.values[-1]
            - reference
        )
        for rtol in (1e-4, 1e-8)
    ]
    assert errors[0] < 2e-3
    assert errors[1] < errors[0] / 10


def test_rk4_converges_at_its_order(reference):
    errors = [
        np.linalg.norm(
            follow(SHARP, 20, 20, rho_start=0.05, method="rk4", step_size=LR * h).state.values[-1] - reference
        )
        for h in (0.25, 0.125)
    ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(4, abs=0.35)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_capped_methods_are_stable(method):
    run = follow(SHARP, 60, 60, rho_start=0.01, method=method)
    assert run.attrs["success"]
    assert run.theta[-1, 1] == pytest.approx(6.77, abs=0.01)


# ---------------------------------------------------------------------- the state


def test_theta_is_the_centre_and_the_start_the_top_eigenvector():
    flow, field = EdgeFlow(lr=LR, rho_floor=1e-18), Field(gradflow.LossFunction.from_callable(valley))
    c, v, r, _ = flow.split(flow.begin(field, SHARP))
    assert torch.equal(c, SHARP)
    assert torch.allclose(v.abs(), torch.tensor([1.0, 0.0], dtype=double))
    assert r == pytest.approx(math.log(1e-18))
    assert field.cost.n_gradients == 1
    assert field.cost.n_hvps > 0


def test_the_default_floor_is_that_of_the_dtype_and_recorded():
    for dtype in (torch.float32, double):
        run = follow(SHARP.to(dtype), 20, 10)
        assert run.attrs["dtype"] == str(dtype).removeprefix("torch.")
        assert np.allclose(run.rho_floor, 0.01 * torch.finfo(dtype).eps, rtol=1e-12)
        assert run.rho[0] == pytest.approx(0.01 * torch.finfo(dtype).eps, rel=1e-4)
        assert run.state.shape == (3, 6)
        assert np.array_equal(run.state[:, :2], run.theta)


def test_float32_follows_the_same_flow():
    ends = [
        follow(SHARP.to(dtype), 60, 60, rho_start=0.01, rtol=1e-5).theta.values[-1]
        for dtype in (torch.float32, double)
    ]
    assert np.allclose(*ends, atol=2e-3)


def test_a_network_resumes_bit_for_bit(tmp_path):
    train, _, theta = chebyshev()
    options = {"flow": "edge", "lr": 0.2, "rho_start": 1e-3, "max_steps": 6, "save_every": gradflow.steps(1)}
    whole = gradflow.integrate(train, theta, out=tmp_path / "whole.nc", **options).load()

    def dies(report):
        if report.step > 3:
            raise RuntimeError

    path = tmp_path / "run.nc"
    with pytest.raises(RuntimeError):
        gradflow.integrate(
            train, theta, out=path, checkpoint_every=1e-9, sync_every=0, callback=dies, **options
        )
    resumed = gradflow.integrate(train, theta, resume=path, **options).load()
    for name in whole.variables:
        if name != "wall_time":
            assert np.array_equal(whole[name], resumed[name], equal_nan=whole[name].dtype.kind == "f"), name


# ---------------------------------------------------------------------- options


def test_bad_options_are_refused():
    for options, error, words in (
        ({"lr": 0}, InvalidInputError, "lr > 0"),
        ({"lr": 0.1, "rate": "exact"}, InvalidInputError, '"log" or "linear", got \'exact\''),
        ({"lr": 0.1, "rho_floor": -1e-9}, InvalidInputError, "rho_floor ≥ 0"),
        ({"lr": 0.1, "rho_start": 0}, InvalidInputError, "rho_start > 0"),
        ({"lr": 0.1, "rho_floor": "eps"}, InvalidTypeError, "rho_floor to be a number"),
    ):
        with pytest.raises(error, match=words):
            EdgeFlow(**options)
    with pytest.raises(InvalidTypeError, match="needs lr"):
        gradflow.integrate(valley, START, flow="edge", t_max=1.0)
    with pytest.raises(InvalidInputError, match="exprb43 needs a flow with a symmetric Jacobian"):
        follow(method="exprb43")
