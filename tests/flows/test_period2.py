"""The period-2 flow, against the discrete optimisers and their 2-cycles."""

import numpy as np
import pytest
import torch

import gradflow
from gradflow.errors import InvalidInputError, UnknownNameError
from gradflow.flows import Field, PeriodTwoFlow

double = torch.float64


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
        assert torch.allclose(flow._parts(z)[3], next(iter(optimiser.state.values()))[
            "square_avg" if rule == "rmsprop" else "exp_avg_sq"], rtol=1e-11)  # fmt: skip


@pytest.mark.parametrize("rule", OPTIMISERS)
@pytest.mark.parametrize("amplitude", [1e-11, 0.1])
def test_its_velocity_is_half_the_sum_and_the_difference_of_two_steps(rule, amplitude):
    """Of the optimiser's map at c ± a, with the mean of ν; at a small a as a derivative."""
    η = 0.05
    flow = PeriodTwoFlow(η, rule, beta1=0.8, beta2=None if rule == "gd" else 0.95, rho_floor=1e-200)
    c, m, q, b, ν = (torch.tensor(x, dtype=double) for x in
                     ([0.7, 0.4], [0.2, -0.1], [0.6, 0.8], [0.3, 0.1], [0.5, 0.2]))  # fmt: skip
    s, powers = torch.tensor([np.log(amplitude)]), torch.tensor([0.3, 0.9], dtype=double)
    z = {"gd": [c, q, s], "rmsprop": [c, q, s, ν], "adam": [c, m, q, b, s, ν, powers]}[rule]
    velocity = Field(gradflow.LossFunction.from_callable(bowl), flow).at(torch.cat(z)).velocity
    found = torch.split(velocity * (η if rule == "gd" else 1), [len(part) for part in z])

    def gradient(w):
        w = w.detach().requires_grad_()
        return torch.autograd.grad(bowl(w), w)[0]

    size = max(amplitude, 1e-5)  # a larger one in its place, where its direction alone counts
    up, down = gradient(c + size * q), gradient(c - size * q)
    ν1 = 0.95 * ν + 0.05 * (up**2 + down**2) / 2

    def step(w, m, g):
        if rule == "gd":
            return w - η * g, m
        if rule == "rmsprop":
            return w - η * g / (ν1.sqrt() + 1e-8), m
        m = 0.8 * m + 0.2 * g
        return w - η * m / (1 - 0.8 * 0.3) / ((ν1 / (1 - 0.95 * 0.9)).sqrt() + 1e-8), m

    (w1, m1), (w2, m2) = step(c + size * q, m + size * b, up), step(c - size * q, m - size * b, down)
    d, e = -(w1 - w2) / 2 / size - q, -(m1 - m2) / 2 / size - b
    expected = {"c": (w1 + w2) / 2 - c, "q": d - (q @ d) * q, "s": (q @ d)[None]}
    if rule == "adam":
        more = {"m": (m1 + m2) / 2 - m, "b": e - (q @ d) * b, "ν": ν1 - ν}
        expected = {name: (expected | more)[name] for name in "cmqbsν"} | {
            "p": powers * torch.tensor([-0.2, -0.05])
        }
    elif rule == "rmsprop":
        expected["ν"] = ν1 - ν
    for part, (name, value) in zip(found, expected.items(), strict=True):
        assert torch.allclose(part, value, rtol=1e-6, atol=1e-9), name


# ---------------------------------------------------------------------- beyond the edge


def test_it_settles_in_the_two_cycle_of_gradient_descent_where_the_central_flow_has_none():
    """L = ½Sx² − ¼Qx⁴ with S > 2/η: x = ±√((S − 2/η)/Q), centre 0."""
    S, Q, η = 21.0, 10.0, 0.1
    run = gradflow.integrate(
        lambda x: (0.5 * S * x**2 - 0.25 * Q * x**4).sum(),
        torch.tensor([1e-3], dtype=double),
        flow="period-2",
        lr=η,
        rho_floor=1e-3,
        t_max=30.0,
        save_every=30.0,
        method="dopri5",
        rtol=1e-6,
        atol=1e-9,
    )
    assert float(run.rho[-1]) == pytest.approx(np.sqrt((S - 2 / η) / Q), rel=1e-5)
    assert abs(float(run.params[0])) < 1e-8
    x2 = (S - 2 / η) / Q
    assert float(run.predicted_train_loss[-1]) == pytest.approx(0.5 * S * x2 - 0.25 * Q * x2**2, rel=1e-5)
    assert float(run.predicted_gradient_norm[-1]) == pytest.approx(2 / η * np.sqrt(x2), rel=1e-5)


def test_rmsprop_oscillates_by_half_a_learning_rate():
    """On ½Sx² the discrete 2-cycle x = ±η/2 is exact, with ν = (ηS/2)²."""
    S, η = 10.0, 0.02
    run = gradflow.integrate(
        lambda x: (0.5 * S * x**2).sum(),
        torch.tensor([0.1], dtype=double),
        flow="period-2",
        rule="rmsprop",
        lr=η,
        beta2=0.9,
        t_max=250.0,
        save_every=250.0,
        method="dopri5",
        rtol=1e-4,
        atol=1e-7,
    )
    assert run.attrs["time_definition"] == "optimiser steps"
    assert float(run.rho[-1]) == pytest.approx(η / 2, rel=1e-4)
    assert float(run.predicted_train_loss[-1]) == pytest.approx(S * η**2 / 8, rel=1e-4)


def test_after_the_crossing_the_sharpness_stays_where_gradient_descents_does():
    η, steps = 0.3, 2000
    start = torch.tensor([0.0, 5.5], dtype=double)
    x, y, ys = 0.0, 5.5, []
    for _ in range(steps):
        x, y = x - η * (y * x + 1.5 * x**2 - 0.01), y - η * (0.5 * x**2 - 0.01)
        ys.append(y)
    flow = gradflow.integrate(
        toy,
        start,
        flow="period-2",
        method="auto",
        lr=η,
        t_max=steps * η,
        save_every=η * 10,
        observe={"y": lambda p: p.theta[1]},
    )
    assert max(ys) > 1.1 * 2 / η  # it overshoots
    assert abs(float(flow.y.max()) - max(ys)) < 0.03 * max(ys)
    late = np.mean(ys[-500:])
    assert abs(float(flow.y[-50:].mean()) - late) < 2e-3 * late
    assert flow.n_gradients[-1] + 3 * flow.n_hvps[-1] < 4 * steps


def test_from_a_floor_of_nearly_nothing_it_starts_late():
    options = {"flow": "period-2", "lr": 0.3, "t_max": 200.0, "save_every": 200.0}
    start = torch.tensor([0.0, 5.5], dtype=double)
    run = gradflow.integrate(toy, start, rho_floor=1e-200, **options)
    assert float(run.rho[-1]) < 1e-50
    assert float(run.params[1]) > 7.2  # beyond 2/η by now, along gradient flow
    assert float(run.predicted_train_loss[-1]) == float(run.train_loss[-1])


# ---------------------------------------------------------------------- as a flow


@pytest.mark.parametrize(
    ("method", "rule"),
    [("rk4", "adam"), ("tsit5", "adam"), ("rkc", "rmsprop"), ("scipy:RK45", "adam"), ("scipy:LSODA", "rmsprop"),
     ("torchdiffeq:dopri5", "gd"), ("dopri8", "gd")],
)  # fmt: skip
def test_every_kind_of_explicit_method_follows_it(rule, method):
    unit = 0.05 if rule == "gd" else 1.0
    runs = []
    for name, tolerances in (("dopri5", (1e-8, 1e-10)), (method, (1e-6, 1e-8))):
        options = (
            {"step_size": unit / 8} if name == "rk4" else dict(zip(("rtol", "atol"), tolerances, strict=True))
        )
        start = torch.tensor([1.0, -0.5], dtype=double)
        options |= {"flow": "period-2", "rule": rule, "lr": 0.05, "warmup_steps": 5, "t_max": 8 * unit}
        runs.append(gradflow.integrate(bowl, start, method=name, save_every=8 * unit, **options))
    assert np.abs(runs[0].params - runs[1].params).max() < 1e-4
    assert runs[1].attrs["n_steps"] > 3


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    start = torch.tensor([1.0, -0.5], dtype=double)
    options = {"flow": "period-2", "rule": "adam", "lr": 0.05, "warmup_steps": 3, "t_max": 10.0}
    options |= {"checkpoint_every": 1e-9, "save_every": 2.0, "method": "dopri5"}

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
        ({"lr": 0.1, "rule": ["gd"]}, UnknownNameError, "No rule"),
        ({"lr": 0.1, "beta2": 1.0}, InvalidInputError, "Expected beta2 < 1, got 1"),
        (
            {"lr": 0.1, "beta2": 0.9},
            InvalidInputError,
            "'gd' has no average of squared gradients, got beta2=0.9",
        ),
        ({"lr": 0.1, "rho_floor": 0.0}, InvalidInputError, "Expected rho_floor > 0"),
        ({"lr": 0.1, "warmup_steps": -1}, InvalidInputError, "Expected warmup_steps ≥ 0"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        PeriodTwoFlow(**options)
