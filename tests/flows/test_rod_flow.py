"""Rod flow: closed forms, the onset that it loses and how that is mended, and methods that agree."""

import math

import numpy as np
import pytest
import torch
from helpers.edge import LR, START, valley

import gradflow
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.flows import Field, RodFlow

double = torch.float64
TIGHT = {"rtol": 1e-8, "atol": 1e-10}


def follow(start=START, **options):
    return gradflow.integrate(valley, start, **{"flow": "rod", "lr": LR} | options)


@pytest.mark.parametrize("without_drift", [False, True])
def test_the_covariance_of_a_quadratic_grows_at_its_rate(without_drift):
    """Σ′ = (η²S²/2 − 2) Σ a step; with backward error the centre decays at λ + ηλ²/2."""
    η, λ = 0.1, torch.tensor([21.0, 0.0, 1.0], dtype=double)
    run = gradflow.integrate(
        lambda w: 0.5 * (λ * w**2).sum(), torch.tensor([0.0, 0.0, without_drift], dtype=double), flow="rod", lr=η,
        without_drift=without_drift, rho_start=1e-6, t_max=1.0, save_every=0.5, method="dopri5", **TIGHT,
    )  # fmt: skip
    growth = η**2 * 21**2 / 2 - 2
    assert np.allclose(np.log(run.sigma_trace), 2 * math.log(1e-6) + growth * run.time / η, atol=1e-8)
    assert np.allclose(run.theta[:, 2], without_drift * np.exp(-(1 + η / 2) * run.time), atol=1e-7)


def test_a_quartic_settles_where_gradient_descent_does():
    S, Q, η = 21.0, 2.0, 0.1
    run = gradflow.integrate(
        lambda w: 0.5 * S * w[0] ** 2 - 0.25 * Q * w[0] ** 4 + 0.5 * w[1] ** 2, torch.zeros(2, dtype=double),
        flow="rod", lr=η, rho_start=1e-2, t_max=12.0, save_every=12.0, method="dopri5", **TIGHT,
    )  # fmt: skip
    assert run.sigma_trace[-1] == pytest.approx(S / Q - 2 / (η * Q), rel=1e-6)


def test_the_velocity_is_that_of_the_projected_covariance():
    """δ′ = Mδ/‖δ‖² − ½ (δᵀMδ) δ/‖δ‖⁴ − δ, and both terms of the centre, by matrices."""
    η, c, δ = 0.3, torch.tensor([0.2, 6.0], dtype=double), torch.tensor([0.05, 0.02], dtype=double)
    flow = RodFlow(lr=η)
    field = Field(gradflow.LossFunction.from_callable(valley), flow)
    ρ = float(δ.norm())
    point = field.at(flow.join(c, δ / ρ, ρ))
    c1, v1, r1, _ = flow.split(point.velocity[:-1].clone().new_tensor([*point.velocity[:-1], point.z[-1]]))
    (gp, Hp), (gm, Hm) = ((torch.func.grad(valley)(w), torch.func.hessian(valley)(w)) for w in (c + δ, c - δ))
    M = η**2 / 4 * (torch.outer(gp, gp) + torch.outer(gm, gm))
    centre = -η / 2 * (gp + gm) - η**2 / 8 * (Hp + Hm) @ (gp + gm)
    change = M @ δ / ρ**2 - 0.5 * (δ @ M @ δ) * δ / ρ**4 - δ
    assert torch.allclose(η * c1, centre, rtol=1e-10)
    assert torch.allclose(η * (v1 * ρ + r1 * δ), change, rtol=1e-9)


def test_it_loses_the_onset_and_without_the_drift_finds_it():
    """Gradient descent's largest y is 7.6, at step 703; at step 1,500 the rod that follows the drift is at 10.0."""
    late = {"t_max": LR * 1500, "save_at": [LR * 1500]}
    lost = follow(backward_error=False, **late)
    assert lost.theta[-1, 1] == pytest.approx(5.5 + 0.003 * 1500, rel=0.01)
    assert lost.rho[-1] == pytest.approx(0.0015, rel=0.02)  # ηf/2, half the drift's step
    found = follow(backward_error=False, without_drift=True, rho_floor=1e-18, **late)
    assert found.theta[-1, 1] == pytest.approx(6.676, rel=0.01)
    assert found.n_gradients[-1] + found.n_hvps[-1] < 4 * 1500


@pytest.mark.parametrize(("start", "largest", "step"), [(1e-2, 6.91, 101), (5e-2, 6.81, 82)])
def test_from_an_oscillation_it_goes_through_the_cycle(start, largest, step):
    run = follow(
        torch.tensor([0.0, 6.6], dtype=double), without_drift=True, rho_start=start,
        t_max=LR * (step + 10), save_at=LR * np.arange(step - 10, step + 11, 2),
    )  # fmt: skip
    assert run.theta[:, 1].max() == pytest.approx(largest, rel=0.01)


def test_methods_agree_in_both_precisions():
    start = torch.tensor([0.0, 6.6], dtype=double)
    options = {"without_drift": True, "rho_start": 0.05, "t_max": LR * 20, "save_every": LR * 20}
    exact = follow(start, method="dopri8", rtol=1e-11, atol=1e-12, **options).state.values[-1]
    for method, dtype, rtol, tol in (
        ("dopri5", double, 1e-8, 1e-6), ("scipy:RK45", double, 1e-8, 1e-6), ("rkc", torch.float32, 1e-5, 2e-3),
    ):  # fmt: skip
        run = follow(start.to(dtype), method=method, rtol=rtol, atol=rtol / 100, **options)
        assert np.allclose(run.state.values[-1], exact, rtol=0, atol=tol), method


def test_bad_options_are_refused():
    with pytest.raises(InvalidInputError, match="lr > 0"):
        RodFlow(lr=-1.0)
    with pytest.raises(InvalidTypeError, match="without_drift as True or False, got 'yes'"):
        RodFlow(lr=0.1, without_drift="yes")
