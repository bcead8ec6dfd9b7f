"""The error of θ that a second run tells, against closed forms."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.cli import invoke
from helpers.problems import chebyshev
from test_resume import differences, run_and_resume

import gradflow
from gradflow import open_run
from gradflow.driver import Stepper
from gradflow.errors import IntegrationWarning
from gradflow.integrators import ErrorControl
from gradflow.integrators.second_run import SecondRun, second_run
from gradflow.status import NumericalFailure, Status

double = torch.float64
C = torch.tensor([0.3, 2.0, 40.0], dtype=double)
START = torch.tensor([1.0, -2.0, 1.5], dtype=double)


def quartic(x):
    """¼ Σ cᵢ xᵢ⁴, whose flow is xᵢ(t) = xᵢ(0) (1 + 2 cᵢ xᵢ(0)² t)^(−½)."""
    return 0.25 * (C * x**4).sum()


def true_errors(run):
    exact = START.numpy() / np.sqrt(1 + 2 * C.numpy() * START.numpy() ** 2 * run.time.values[:, None])
    return np.linalg.norm(run.theta.values - exact, axis=1)


def tolerances(rtol):
    return {"rtol": rtol, "atol": 0.01 * rtol}


CHECKED = [
    ("auto", tolerances(1e-5)),
    ("exprb43", {**tolerances(1e-5), "dense": False}),
    ("exprb32", tolerances(1e-5)),
    ("rkc", tolerances(1e-4)),
    ("rkc", {**tolerances(1e-6), "max_step": 0.2}),
    ("dopri5", tolerances(1e-6)),
    ("tsit5", tolerances(1e-6)),
    ("rk4", {"alpha": 1.5}),
    ("heun3", {"step_size": ErrorControl(rtol=1e-5)}),
]


@pytest.mark.parametrize(("method", "options"), CHECKED, ids=lambda x: x if isinstance(x, str) else "")
def test_the_estimate_is_near_the_true_error(method, options):
    settings = {"method": method, "t_max": 2.0, "save_every": 0.05, **options}
    run = gradflow.integrate(quartic, START, error_estimate=True, **settings)
    estimate, error = run.theta_error_estimate.values, true_errors(run)
    assert estimate[0] == 0
    ratio = estimate[1:] / error[1:]
    assert np.mean((ratio > 0.2) & (ratio < 5)) >= 0.95
    alone = gradflow.integrate(quartic, START, **settings)
    ours = ["n_gradients_observing", "n_hvps_observing", "error_estimate_by", "gradflow_config"]
    assert set(differences(run, alone)) <= {"theta_error_estimate", "theta_error_tolerance", *ours}
    second = run.attrs["n_gradients_observing"] - alone.attrs["n_gradients_observing"]
    assert 0 < second <= 1.15 * alone.n_gradients[-1] + 10
    if "theta_error_tolerance" in run:
        steps, norm = int(run.step[-1]), np.linalg.norm(run.theta.values, axis=1)
        second_method = second_run_of(method, options)
        rule = getattr(second_method, "stiff", second_method).step_rule
        assert rule.rtol == pytest.approx(10 * (options.get("rtol", 1e-5)))
        least, most = (
            steps * (0.1 * rule.atol + 0.1 * rule.rtol * size) for size in (norm.min(), norm.max())
        )
        assert least <= run.theta_error_tolerance[-1] <= most


@pytest.mark.parametrize(("method", "options"), [("exprb43", {"dense": False}), ("rkc", {})])
def test_neither_run_notices_the_other(method, options):
    train, _, theta = chebyshev()
    settings = {"method": method, "t_max": 2.0, "save_every": 0.3, "n_eigs": 2, **options}
    alone = gradflow.integrate(train, theta, **settings)
    run = gradflow.integrate(train, theta, error_estimate=True, **settings)
    costs = ["n_gradients_observing", "n_hvps_observing"]
    added = {"theta_error_estimate", "theta_error_tolerance", "error_estimate_by", "gradflow_config"}
    assert set(differences(run, alone)) == {*added, *costs}
    looser = second_run(gradflow.solver(method, train, theta, **options).integrator, theta.dtype).integrator
    second = gradflow.solver(looser, train, theta)
    while second.t < settings["t_max"]:
        report = second.step()
    assert [run.attrs[name] - alone.attrs[name] for name in costs] == [report.n_gradients, report.n_hvps]


def second_run_of(method, options):
    return second_run(gradflow.solver(method, quartic, START, **options).integrator, double).integrator


def test_the_ratio_of_the_errors_is_that_of_the_steps_to_the_order():
    method = gradflow.solver("exprb43", quartic, START).integrator
    assert SecondRun(method, order=4).error(15.0, 20, 10) == pytest.approx(1.0)
    assert SecondRun(method, order=4).error(15.0, 10, 10) == 15.0  # the least ratio that is believed
    assert SecondRun(method, ratio=10.0).error(9.0, 10, 10) == pytest.approx(1.0)
    assert SecondRun(method).error(9.0, 10, 10) == 9.0
    assert SecondRun(method).describe() == "exprb43(rtol=0.0001, atol=1e-06)"


def test_a_bound_of_the_steps_grows_with_them_and_a_control_that_was_given_is_the_one_to_change():
    looser = second_run_of("exprb43", {"rtol": 1e-5, "max_step": 0.5})
    assert looser.rtol == pytest.approx(1e-4)
    assert looser.max_step == pytest.approx(0.5 * 10**0.25)
    given = second_run_of("rk4", {"step_size": "ErrorControl(rtol=1e-5, atol=0.0)"})
    assert given.step_size.rtol == pytest.approx(1e-4)
    assert "step_size=ErrorControl(rtol=0.0001" in SecondRun(given).describe()
    least = second_run(gradflow.solver("exprb43", quartic, START, rtol=1e-9).integrator, torch.float32)
    assert least.integrator.rtol == pytest.approx(200 * torch.finfo(torch.float32).eps)


@dataclass(frozen=True)
class HeavyBall(gradflow.Flow):
    """θ'' = −3 θ' − ∇L: z = (θ, θ')."""

    name = "heavy ball"

    def initial(self, theta):
        return torch.cat([theta, torch.zeros_like(theta)])

    def theta(self, z):
        return z[: len(z) // 2]

    def velocity(self, point):
        v = point.z[len(point.z) // 2 :]
        return torch.cat([v, -3.0 * v - point.gradient])


def test_of_a_flow_with_a_larger_state_it_is_the_error_of_theta():
    run = gradflow.integrate(
        lambda x: (x**2).sum(), START, flow=HeavyBall(), method="rkc", rtol=1e-5, t_max=3.0, save_every=0.1,
        error_estimate=True,
    )  # fmt: skip
    exact = (2 * np.exp(-run.time.values) - np.exp(-2 * run.time.values))[
        :, None
    ] * START.numpy()  # λ = −1, −2
    error = np.linalg.norm(run.theta.values - exact, axis=1)
    ratio = run.theta_error_estimate.values[1:] / error[1:]
    assert np.mean((ratio > 0.2) & (ratio < 5)) >= 0.9  # the error changes its sign


@pytest.mark.parametrize(
    ("method", "options"),
    [("exprb43", {"dense": False}), ("rkc", {}), ("dopri8", {"max_step": 0.1})],
)
def test_a_resumed_run_goes_on_with_both(method, options, tmp_path):
    whole, resumed = run_and_resume(
        tmp_path / "x.nc", 3, quartic, START, method=method, t_max=1.0, save_every=0.11, error_estimate=True,
        **options,
    )  # fmt: skip
    assert not differences(whole, resumed)
    assert np.all(whole.theta_error_estimate[1:] >= 0)
    again = gradflow.integrate(
        quartic, START, method=method, t_max=1.0, save_every=0.11, error_estimate=True, out=tmp_path / "x.nc",
        resume="auto", **options,
    )  # fmt: skip
    assert not differences(whole, again)
    with pytest.raises(gradflow.errors.ResumeError, match="error_estimate"):
        gradflow.integrate(
            quartic,
            START,
            method=method,
            t_max=1.0,
            save_every=0.11,
            out=tmp_path / "x.nc",
            resume="auto",
            **options,
        )


def test_an_event_that_ends_the_run_has_an_estimate():
    run = gradflow.integrate(
        quartic,
        START,
        method="exprb43",
        rtol=1e-5,
        t_max=3.0,
        save_every=1.0,
        loss_goal=0.3,
        error_estimate=True,
    )
    assert run.attrs["status"] == "loss_goal"
    assert 0.2 < run.theta_error_estimate[-1] / true_errors(run)[-1] < 5


@pytest.mark.parametrize(
    ("method", "options", "text"),
    [
        ("gd", {"lr": 0.01}, "optimiser.*Leave it out.*gradflow.compare"),
        ("scipy:DOP853", {}, "whose tolerance gradflow can't change.*auto, exprb43"),
        ("torchdiffeq:dopri5", {}, "whose tolerance gradflow can't change"),
        ("expeuler", {"stiff_dim": 1}, r"ErrorControl\(rtol=1e-4\)"),
        ("midpoint", {}, r"ErrorControl\(rtol=1e-4\)"),
    ],
)
def test_a_method_without_a_second_run_is_refused(method, options, text):
    with pytest.raises(gradflow.errors.InvalidInputError, match=text):
        gradflow.integrate(quartic, START, method=method, t_max=0.1, error_estimate=True, **options)


def test_steps_that_both_runs_take_tell_nothing():
    run = gradflow.integrate(
        quartic, START, method="dopri8", rtol=1e-2, t_max=0.02, save_every=1e-3, error_estimate=True
    )
    assert np.isnan(run.theta_error_estimate[-1])


def leaves_a_saddle(x):
    """A flow that leaves x₀ = 0, where its errors grow by 2·10³, beside a long component that stays."""
    return 0.25 * (x[0] ** 2 - 1) ** 2 + 0 * x[1]


def test_errors_that_grow_beyond_the_tolerance_are_warned_of(tmp_path):
    start = torch.tensor([1e-4, 10.0], dtype=double)
    settings = {"method": "rkc", "rtol": 1e-4, "t_max": 13.0, "save_every": 0.5, "error_estimate": True}
    for _ in ("it runs", "it has ended, and is opened"):
        with pytest.warns(IntegrationWarning, match="times what the tolerances.*Divide rtol by ten"):
            run = gradflow.integrate(leaves_a_saddle, start, out=tmp_path / "x.nc", resume="auto", **settings)
        with run:
            beyond = run.theta_error_estimate / run.theta_error_tolerance
            worst = int(np.nanargmax(beyond.values))
            assert beyond[worst] > 1
            said = run.attrs["error_estimate_message"]
            assert f"{float(run.theta_error_estimate[worst]):.2g} at t = {float(run.time[worst]):.6g}" in said


def test_a_second_run_that_fails_leaves_the_first_one_alone(monkeypatch):
    class Fails(Stepper):
        def advance(self, target):
            if self.t > 1:
                raise NumericalFailure(Status.NOT_FINITE, "it was to fail")
            return super().advance(target)

    settings = {"method": "rkc", "t_max": 3.0, "save_every": 0.5}
    alone = gradflow.integrate(quartic, START, **settings)
    monkeypatch.setattr("gradflow.observe.error_estimate.Stepper", Fails)
    with pytest.warns(IntegrationWarning, match="second run failed: .*it was to fail"):
        run = gradflow.integrate(quartic, START, error_estimate=True, **settings)
    assert np.array_equal(run.theta, alone.theta)
    assert np.array_equal(np.isnan(run.theta_error_estimate), [False] * 3 + [True] * 4)


def test_a_flag_of_the_command_line(tmp_path):
    problem = ["run", "chebyshev-3-20", "regression", "mse"]
    out = tmp_path / "x.nc"
    result = invoke(*problem, "--t-max", 1, "--save-every", 0.5, "--error-estimate", "--out", out)
    assert result.exit_code == 0, result.output
    with open_run(out) as run:
        assert (run.theta_error_estimate[1:] > 0).all()
    refused = invoke(*problem, "--method", "gd", "--lr", 0.1, "--t-max", 1, "--error-estimate")
    assert "--error-estimate has no second run beside gd" in refused.output
