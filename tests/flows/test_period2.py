"""The period-2 flow, against the discrete optimisers and their 2-cycles."""

import numpy as np
import pytest
import torch

import gradflow
from gradflow.errors import InvalidInputError, UnknownNameError
from gradflow.flows import Field, PeriodTwoFlow

double = torch.float64
TIGHT = {"method": "dopri5", "rtol": 1e-8, "atol": 1e-11}


def bowl(x):
    return 0.5 * (torch.tensor([1.0, 8.0], dtype=double) * x**2).sum() + 0.1 * x[0] ** 3 * x[1]


def toy(w):
    """A valley whose sharpness y grows: f(x, y) = ½(y + x)x² − 0.01(x + y)."""
    return 0.5 * (w[1] + w[0]) * w[0] ** 2 - 0.01 * (w[0] + w[1])


# ---------------------------------------------------------------------- the rules

OPTIMISERS = {
    "gd": lambda p: torch.optim.SGD(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, alpha=0.95),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.8, 0.95)),
}


@pytest.mark.parametrize("rule", OPTIMISERS)
def test_its_rules_are_those_of_torch(rule):
    start = torch.tensor([1.0, -0.5], dtype=double)
    w = start.clone().requires_grad_()
    optimiser = OPTIMISERS[rule]([w])
    for _ in range(30):
        optimiser.zero_grad()
        bowl(w).backward()
        optimiser.step()
    beta2 = None if rule == "gd" else 0.95
    flow = PeriodTwoFlow(0.05, rule, beta1=0.8, beta2=beta2, warmup_steps=30)
    field = Field(gradflow.LossFunction.from_callable(bowl), flow)
    z = flow.begin(field, start)
    assert field.cost.n_gradients == 30
    assert torch.allclose(flow.theta(z), w.detach(), rtol=1e-12, atol=1e-14)
    if rule != "gd":
        assert torch.allclose(flow._parts(z)[2], next(iter(optimiser.state.values()))[
            "square_avg" if rule == "rmsprop" else "exp_avg_sq"], rtol=1e-11)  # fmt: skip


@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("amplitude", [1e-11, 0.1])
def test_its_velocity_is_half_the_sum_and_the_difference_of_two_steps(rule, amplitude):
    """Of the optimiser's map at c ± a, with the mean of ν; at a small a as a derivative."""
    flow = PeriodTwoFlow(0.05, rule, beta1=0.8, beta2=0.95, rho_floor=0.0)
    generator = torch.Generator().manual_seed(1)
    parts = {"gd": 2, "rmsprop": 3, "adam": 5}[rule]
    z = torch.rand(2 * parts + (2 if rule == "adam" else 0), generator=generator, dtype=double) * 0.5 + 0.2
    odd = slice(2, 4) if rule != "adam" else slice(4, 8)
    z[odd] *= amplitude
    found = Field(gradflow.LossFunction.from_callable(bowl), flow).at(z).velocity
    if rule == "gd":
        found = found * 0.05  # in steps

    def gradient(w):
        w = w.detach().requires_grad_()
        return torch.autograd.grad(bowl(w), w)[0]

    scale = max(1.0, 1e-5 / amplitude)  # a larger one in its place, where only its direction counts
    c, a = z[:2], z[odd][:2] * scale
    up, down = gradient(c + a), gradient(c - a)

    def step(w, m, g):
        if rule == "gd":
            return w - 0.05 * g, m
        ν = 0.95 * z[-4:-2] if rule == "adam" else 0.95 * z[4:6]
        ν = ν + 0.05 * (up**2 + down**2) / 2
        if rule == "rmsprop":
            return w - 0.05 * g / (ν.sqrt() + 1e-8), m
        m = 0.8 * m + 0.2 * g
        powers = z[-2:] * torch.tensor([0.8, 0.95])
        return w - 0.05 * m / (1 - powers[0]) / ((ν / (1 - powers[1])).sqrt() + 1e-8), m

    m, b = (z[2:4], z[6:8] * scale) if rule == "adam" else (torch.zeros(2), torch.zeros(2))
    (w1, m1), (w2, m2) = step(c + a, m + b, up), step(c - a, m - b, down)
    assert torch.allclose(found[:2], (w1 + w2) / 2 - c, rtol=1e-7, atol=1e-9)
    assert torch.allclose(found[odd][:2] * scale, -(w1 - w2) / 2 - a, rtol=1e-7, atol=1e-9 * float(a.norm()))
    if rule == "adam":
        assert torch.allclose(found[2:4], (m1 + m2) / 2 - m, rtol=1e-7, atol=1e-9)
        assert torch.allclose(found[6:8] * scale, -(m1 - m2) / 2 - b, rtol=1e-7, atol=1e-9 * float(a.norm()))


# ---------------------------------------------------------------------- beyond the edge


def test_it_settles_in_the_two_cycle_of_gradient_descent_where_the_central_flow_has_none():
    """L = ½Sx² − ¼Qx⁴ with S > 2/η: x = ±√((S − 2/η)/Q), centre 0."""
    S, Q, η = 21.0, 10.0, 0.1
    run = gradflow.integrate(
        lambda x: (0.5 * S * x**2 - 0.25 * Q * x**4).sum(),
        torch.tensor([1e-3], dtype=double),
        flow="period-2",
        lr=η,
        t_max=100.0,
        **TIGHT,
    )
    assert float(run.rho[-1]) == pytest.approx(np.sqrt((S - 2 / η) / Q), rel=1e-6)
    assert abs(float(run.params[0])) < 1e-8
    x2 = (S - 2 / η) / Q
    assert float(run.predicted_train_loss[-1]) == pytest.approx(0.5 * S * x2 - 0.25 * Q * x2**2, rel=1e-6)
    assert float(run.predicted_gradient_norm[-1]) == pytest.approx(2 / η * np.sqrt(x2), rel=1e-6)


def test_rmsprop_oscillates_by_half_a_learning_rate():
    """On ½Sx² the discrete 2-cycle x = ±η/2 is exact, with ν = (ηS/2)²."""
    S, η = 10.0, 0.02
    run = gradflow.integrate(
        lambda x: (0.5 * S * x**2).sum(),
        torch.tensor([0.1], dtype=double),
        flow="period-2",
        rule="rmsprop",
        lr=η,
        t_max=3000.0,
        save_every=100.0,
        **TIGHT,
    )
    assert run.attrs["time_definition"] == "optimiser steps"
    assert float(run.rho[-1]) == pytest.approx(η / 2, rel=1e-4)
    assert float(run.predicted_train_loss[-1]) == pytest.approx(S * η**2 / 8, rel=1e-4)


def test_after_the_crossing_the_sharpness_stays_where_gradient_descents_does():
    η, steps = 0.3, 1500
    start = torch.tensor([0.0, 5.5], dtype=double)
    gd = gradflow.integrate(
        toy, start, method="gd", lr=η, max_steps=steps, save_every=gradflow.steps(1), observe={"y": lambda p: p.theta[1]}
    )
    flow = gradflow.integrate(
        toy,
        start,
        flow="period-2",
        method="auto",
        lr=η,
        t_max=steps * η,
        save_every=η * 5,
        observe={"y": lambda p: p.theta[1]},
    )
    top, flow_top = float(gd.y.max()), float(flow.y.max())
    assert top > 1.1 * 2 / η  # it overshoots
    assert abs(flow_top - top) < 0.03 * top
    late, flow_late = float(gd.y[-300:].mean()), float(flow.y[-60:].mean())
    assert abs(flow_late - late) < 2e-3 * late
    assert flow.n_gradients[-1] + 3 * flow.n_hvps[-1] < 4 * steps


def test_without_a_floor_nothing_ever_oscillates():
    options = {"flow": "period-2", "lr": 0.3, "t_max": 200.0, "save_every": 200.0}
    start = torch.tensor([0.0, 5.5], dtype=double)
    run = gradflow.integrate(toy, start, rho_floor=0.0, **options)
    assert float(run.rho[-1]) == 0
    assert float(run.params[1]) > 7.2  # beyond 2/η by now, along gradient flow
    assert run.predicted_train_loss[-1] == run.train_loss[-1]


# ---------------------------------------------------------------------- as a flow


@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("method", ["rk4", "tsit5", "rkc", "scipy:RK45", "scipy:LSODA", "torchdiffeq:dopri5", "dopri8"])
def test_every_kind_of_explicit_method_follows_it(rule, method):
    unit = 0.05 if rule == "gd" else 1.0
    runs = []
    for name, tolerances in (("dopri5", (1e-10, 1e-12)), (method, (1e-6, 1e-8))):
        options = {"step_size": unit / 8} if name == "rk4" else dict(zip(("rtol", "atol"), tolerances, strict=True))
        start = torch.tensor([1.0, -0.5], dtype=double)
        options |= {"flow": "period-2", "rule": rule, "lr": 0.05, "warmup_steps": 5, "t_max": 20 * unit}
        runs.append(gradflow.integrate(bowl, start, method=name, save_every=20 * unit, **options))
    assert np.abs(runs[0].params - runs[1].params).max() < 1e-3
    assert runs[1].attrs["n_steps"] > 3


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    start = torch.tensor([1.0, -0.5], dtype=double)
    options = {"flow": "period-2", "rule": "adam", "lr": 0.05, "warmup_steps": 3, "t_max": 30.0}
    options |= {"checkpoint_every": 1e-9, "method": "dopri5"}

    def dies(report):
        if report.step == 4:
            raise RuntimeError("the machine went down")

    whole = gradflow.integrate(bowl, start, **options)
    with pytest.raises(RuntimeError, match="went down"):
        gradflow.integrate(bowl, start, out=tmp_path / "a.nc", callback=dies, **options)
    resumed = gradflow.integrate(bowl, start, resume=tmp_path / "a.nc", **options)
    for name in ("params", "rho", "predicted_train_loss", "n_gradients", "n_hvps"):
        assert np.array_equal(whole[name], resumed[name]), name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, InvalidInputError, "Expected lr > 0, got -1.0"),
        ({"lr": 0.1, "rule": "rmsprob"}, UnknownNameError, "did you mean 'rmsprop'"),
        ({"lr": 0.1, "rule": "polyak"}, UnknownNameError, "No rule 'polyak' for the flow 'period-2'"),
        ({"lr": 0.1, "beta2": 1.0}, InvalidInputError, "Expected beta2 < 1, got 1"),
        ({"lr": 0.1, "rho_floor": -1.0}, InvalidInputError, "Expected rho_floor ≥ 0"),
        ({"lr": 0.1, "warmup_steps": -1}, InvalidInputError, "Expected warmup_steps ≥ 0"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        PeriodTwoFlow(**options)
