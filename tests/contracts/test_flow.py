"""A stranger's flow, by the contract and with public names only: Nesterov's ODE, whose state is larger than θ."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.special import j1

import gradflow

double = torch.float64


@dataclass(frozen=True)
class Nesterov(gradflow.Flow):
    """θ″ + (3/t) θ′ + ∇L(θ) = 0 from rest (Su, Boyd & Candès 2016, arXiv:1503.01243), with t as part of the state.

    z = (θ, v, t). At t = 0 the acceleration is −∇L/4.
    """

    name = "nesterov-ode"
    variables = {"kinetic_energy": gradflow.Variable(long_name="half the squared speed")}

    def initial(self, theta):
        return torch.cat([theta, torch.zeros_like(theta), theta.new_zeros(1)])

    def theta(self, z):
        return z[: len(z) // 2]

    def velocity(self, point):
        z = point.z
        n = len(z) // 2
        v, t = z[n : 2 * n], z[-1]
        force = -point.gradient / 4 if t == 0 else -point.gradient - 3 / t * v
        return torch.cat([v, force, torch.ones_like(z[-1:])])

    def measure(self, point):
        n = len(point.z) // 2
        return {"kinetic_energy": 0.5 * float((point.z[n : 2 * n] ** 2).sum())}


def bowl(x):
    return 0.5 * (torch.tensor([1.0, 4.0], dtype=double) * x**2).sum()


@pytest.mark.parametrize("method", ["dopri5", "rkc", "tsit5"])
def test_it_has_the_solution_in_closed_form(method):
    start = torch.tensor([1.0, -2.0], dtype=double)
    run = gradflow.integrate(
        bowl, start, flow=Nesterov(), method=method, t_max=5.0, save_every=1.0, rtol=1e-7, atol=1e-9
    )
    t, λ = run.time.values[1:, None], np.array([1.0, 4.0])
    expected = start.numpy() * 2 * j1(t * np.sqrt(λ)) / (t * np.sqrt(λ))
    assert np.allclose(run.theta[1:], expected, atol=1e-4)
    assert run.attrs["flow"] == "nesterov-ode"
    assert run.state.shape == (6, 5)
    assert np.allclose(run.state[:, -1], run.time, atol=1e-6)
    assert np.allclose(run.kinetic_energy, 0.5 * (run.state[:, 2:4] ** 2).sum("z"))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    options = {"flow": Nesterov(), "method": "dopri5", "t_max": 5.0, "checkpoint_every": 1e-9}
    start = torch.tensor([1.0, -2.0], dtype=double)

    def dies(report):
        if report.step == 8:
            raise RuntimeError("the machine went down")

    whole = gradflow.integrate(bowl, start, **options)
    with pytest.raises(RuntimeError, match="went down"):
        gradflow.integrate(bowl, start, out=tmp_path / "a.nc", callback=dies, **options)
    resumed = gradflow.integrate(bowl, start, resume=tmp_path / "a.nc", **options)
    for name in ("theta", "state", "kinetic_energy", "n_gradients"):
        assert np.array_equal(whole[name], resumed[name]), name


def test_a_function_of_the_point_is_the_shortest_way():
    run = gradflow.integrate(
        bowl,
        torch.ones(2, dtype=double),
        flow=lambda point: -point.gradient - 0.5 * point.theta,
        method="rk4",
        t_max=1.0,
    )
    assert np.allclose(run.params, np.exp([-1.5, -4.5]), atol=1e-4)
