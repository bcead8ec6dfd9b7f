"""The method `auto`: a change between a stiff and an explicit method where the other costs less."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.integrate import solve_ivp

import gradflow
from gradflow import LossFunction
from gradflow.flows import GradientFlow
from gradflow.integrators import METHODS

N = 500


def quadratic(λ, dtype=torch.float64):
    """A bowl that is not quite quadratic, so that all methods have errors, and its start."""
    λ = torch.as_tensor(λ, dtype=dtype)

    def f(x):
        return 0.5 * (λ * x**2).sum() + 0.25 * (torch.tanh(x) ** 2).sum()

    return LossFunction.from_callable(f), torch.linspace(0.5, 1.5, len(λ), dtype=dtype)


def exact(λ, theta, t):
    """The end of the flow, by SciPy's Radau with the diagonal Jacobian."""

    def f(_, x):
        return -λ * x - 0.5 * np.tanh(x) / np.cosh(x) ** 2

    def jacobian(_, x):
        return sparse.diags_array(-λ - 0.5 * (1 - 3 * np.tanh(x) ** 2) / np.cosh(x) ** 2)

    return solve_ivp(f, (0.0, t), theta.numpy(), method="Radau", jac=jacobian, rtol=1e-10, atol=1e-12).y[
        :, -1
    ]


def rates(largest):
    return np.concatenate([[largest, largest / 2], np.linspace(0.0, 1.0, N - 2)])


def cost(run):
    return int(run.n_gradients[-1]) + 1.2 * int(run.n_hvps[-1])


def run(loss, theta, method, t, rtol, **options):
    return gradflow.integrate(
        loss,
        theta,
        method=method,
        t_max=t,
        save_every=options.pop("save_every", t),
        rtol=rtol,
        atol=1e-2 * rtol,
        **options,
    )


def made(rtol, **options):
    loss, _ = quadratic(rates(10.0))
    return METHODS["auto"](rtol=rtol, **options).choose(loss, GradientFlow())


@pytest.mark.parametrize(
    ("largest", "t", "rtol", "last"),
    [
        (0.5, 5.0, 1e-6, "tsit5"),
        (0.5, 5.0, 1e-9, "dop853"),
        (3000.0, 20.0, 1e-5, "exprb54"),
        (3000.0, 20.0, 1e-2, "exprb43"),
    ],
)
def test_the_method_that_ends_a_run_is_the_one_that_the_flow_asks_for(largest, t, rtol, last):
    loss, theta = quadratic(rates(largest))
    auto = run(loss, theta, "auto", t, rtol)
    assert auto.attrs["method_choices"].split("; ")[-1].split()[0] == last
    first = auto.attrs["method_choices"].split()[0]
    assert first == ("exprb43" if rtol > 1e-3 else "dop853" if rtol < 1e-7 else "tsit5")
    error = np.linalg.norm(auto.params.values - exact(rates(largest), theta, t)) / np.linalg.norm(theta)
    assert error < 5 * rtol


@pytest.mark.parametrize(("largest", "t"), [(3.0, 8.0), (100.0, 8.0), (3000.0, 8.0)])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_it_costs_little_more_than_the_better_of_the_two(largest, t, rtol):
    loss, theta = quadratic(rates(largest))
    auto = cost(run(loss, theta, "auto", t, rtol))
    stiff = cost(run(loss, theta, "exprb54", t, rtol))
    # The explicit method, under the tolerance that `auto` gives it; on the stiffest flow it doesn't get far.
    whole = run(loss, theta, "tsit5", t, min(rtol, 1e-4), cap=False, max_steps=200)
    explicit = cost(whole) if float(whole.time[-1]) == t else np.inf
    assert auto < 1.4 * min(stiff, explicit) + 15, (auto, stiff, explicit)


def test_what_is_recorded_says_which_method_took_which_steps_and_why():
    loss, theta = quadratic(rates(300.0))
    auto = run(loss, theta, "auto", 8.0, 1e-5)
    assert auto.attrs["method"] == "auto"
    first, *later = auto.attrs["method_choices"].split("; ")
    assert first == "tsit5 from t = 0"
    for change in later:
        name, _, _, _, t, cheaper, _, other, *_ = change.split()
        assert name in {"tsit5", "exprb54"}
        assert 0 < float(t) <= 8.0
        assert float(cheaper.strip("(")) < float(other)


def test_records_change_no_step():
    loss, theta = quadratic(rates(100.0))
    few = run(loss, theta, "auto", 6.0, 1e-5, params_every=6.0)
    many = run(loss, theta, "auto", 6.0, 1e-5, params_every=6.0, save_every=0.1, n_eigs=2, midpoint=False)
    assert few.attrs["n_steps"] == many.attrs["n_steps"]
    assert "; " in few.attrs["method_choices"]
    assert few.attrs["method_choices"] == many.attrs["method_choices"]
    assert np.array_equal(few.params.values, many.params.values)


@pytest.mark.parametrize("n_steps", [3, 12])
def test_a_run_goes_on_bit_for_bit_over_a_change(tmp_path, n_steps):
    loss, theta = quadratic(rates(100.0))
    options = {"method": "auto", "rtol": 1e-5, "t_max": 6.0, "save_every": 0.5, "params_every": 6.0}
    whole = gradflow.integrate(loss, theta, out=tmp_path / "whole.nc", resume="auto", **options)

    class Stop(Exception):
        pass

    def stop(report):
        if report.step == n_steps:
            raise Stop

    path = tmp_path / "parts.nc"
    with pytest.raises(Stop):
        gradflow.integrate(
            loss, theta, out=path, resume="auto", checkpoint_every=1e-9, callback=stop, **options
        )
    parts = gradflow.integrate(loss, theta, out=path, resume="auto", **options)
    assert np.array_equal(whole.params.values, parts.params.values)
    assert np.array_equal(whole.n_gradients.values, parts.n_gradients.values)
    assert whole.attrs["method_choices"] == parts.attrs["method_choices"]
    assert len(whole.attrs["method_choices"].split("; ")) > 1


def test_an_option_that_one_method_alone_has_chooses_that():
    assert made(1e-5, krylov_tol=0.01) == METHODS["exprb54"](rtol=1e-5, krylov_tol=0.01)
    assert made(1e-5).name == "auto"
    assert (made(1e-5).stiff.name, made(1e-5).explicit.name) == ("exprb54", "tsit5")
    assert made(1e-5, max_step=0.1).explicit.max_step == 0.1
    assert made(1e-2).explicit.rtol == 1e-4
