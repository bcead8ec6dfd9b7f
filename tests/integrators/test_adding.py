"""The examples of docs/adding-an-integrator.md run, and do what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest

import gradflow

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-integrator.md"


def example(name):
    """Run the example that defines a name; return what it leaves behind."""
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if name in block
    )
    namespace = {"__name__": "example"}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace


@pytest.fixture(scope="module")
def reference():
    train, _, theta = gradflow.problems.load("chebyshev-3-20", "regression", "mse")
    run = gradflow.integrate(train, theta, method="rk4", t_max=10.0, save_every=10.0)
    return run.params.values, np.linalg.norm(run.params.values - theta.numpy())


def test_a_tableau_is_a_method(reference):
    theta, travelled = reference
    found = example("class Ralston")
    for name, most in (("run", 5e-3), ("fixed", 1e-2), ("controlled", 1e-3)):
        run = found[name]
        assert run.attrs["method"] == "ralston"
        assert np.linalg.norm(run.params.values - theta) < most * travelled
    assert found["fixed"].attrs["n_steps"] == 100


def test_a_formula_is_a_method(reference):
    theta, travelled = reference
    found = example("class Taylor2")
    run = found["run"]
    assert np.linalg.norm(run.params.values - theta) < 5e-3 * travelled
    assert int(run.n_hvps[-1]) > run.attrs["n_steps"]
    with pytest.raises(gradflow.errors.InvalidInputError, match="alpha ≤ 2"):
        gradflow.solver(found["Taylor2"](alpha=2.1), found["train"], found["theta"])
    with pytest.raises(gradflow.errors.InvalidInputError, match="taylor2 needs a flow with a Jacobian"):
        gradflow.integrate(
            found["train"],
            found["theta"],
            flow=lambda point: -point.gradient,
            method=found["Taylor2"](),
            t_max=1.0,
        )


def test_a_controller_sizes_the_steps():
    found = example("class ArcLength")
    assert found["run"].attrs["n_steps"] == 100
    by_hand = gradflow.solver(
        "rk4", found["train"], found["theta"], step_size=found["ArcLength"](0.02), report_gradient=True
    )
    for _ in range(5):
        report = by_hand.step()
        assert report.dt * float(report.gradient.norm()) == pytest.approx(0.02, rel=1e-4)


def test_a_flow_has_a_method_of_its_own():
    found = example("class Walled(")
    run, (met,) = found["run"], found["met"]
    assert met == pytest.approx(0.1 * 5 + 0.1 * (0.8**5 - 0.3) / (0.2 * 0.8**5))  # Euler's: 0.8 a step
    assert run.theta.values[:, 0].min() == pytest.approx(0.3)
    assert int(run.event_wall.sum()) == 1
    with pytest.raises(gradflow.errors.InvalidInputError, match="walled-euler"):
        gradflow.integrate(found["bowl"], found["start"], flow=found["Walled"](0.3), method="rkc", t_max=1.0)
    with pytest.raises(gradflow.errors.InvalidInputError, match="behind the wall"):
        gradflow.integrate(
            found["bowl"],
            0 * found["start"],
            flow=found["Walled"](0.3),
            method=found["WalledEuler"](),
            t_max=1.0,
        )
    with pytest.raises(gradflow.errors.InvalidInputError, match="made for the flow 'walled'"):
        gradflow.integrate(found["bowl"], found["start"], method=found["WalledEuler"](), t_max=1.0)
