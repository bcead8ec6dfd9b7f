"""The phenomenon itself: optimisers stop sharpening at their thresholds and leave the flow, which goes on."""

import numpy as np
import pytest
from helpers.cifar import needs_real_data, short_cifar_flow

import gradflow
from gradflow import problems, steps
from gradflow.analysis import crossing_time


def late_sharpness(run):
    """Mean λ₁ over the last third of the time."""
    t = run.time.values
    return run.eigenvalue.values[t > 2 / 3 * t[-1], 0].mean()


@pytest.mark.slow
def test_gradient_descent_trains_at_the_edge_and_the_flow_beyond_it():
    train, _, theta = problems.load("digits", "fc-tanh", "mse")
    lr, t_max = 0.6, 150.0
    gd = gradflow.integrate(
        train, theta, method="gd", lr=lr, t_max=t_max, save_every=steps(10), n_eigs=1, n_projections=100
    )
    flow = gradflow.integrate(
        train, theta, method="exprb43", rtol=1e-3, t_max=t_max, save_every=6.0, n_eigs=1, n_projections=100
    )
    threshold = 2 / lr
    λ_gd, λ_flow = gd.eigenvalue.values[:, 0], flow.eigenvalue.values[:, 0]
    assert λ_gd[0] < threshold
    crossing = crossing_time(gd)
    assert 5 < crossing < t_max / 2
    assert 0.9 * threshold < late_sharpness(gd) < 1.3 * threshold
    assert λ_flow[-1] > 1.3 * threshold
    after = flow.time.values > crossing
    assert (np.diff(λ_flow[after]) > -0.02).all()
    assert (np.diff(flow.train_loss.values) < 0).all()
    assert (np.diff(gd.train_loss.values) > 0).any()  # the edge isn't monotone
    # the two part when the threshold is crossed
    difference = gradflow.compare(gd, flow)
    before = difference.distance.where(difference.time < crossing).max()
    assert float(difference.distance[-1]) > 4 * float(before)


@pytest.mark.slow
@needs_real_data
def test_on_cifar_they_part_where_the_sharpness_crosses_the_threshold():
    train = short_cifar_flow()
    lr, tick = 0.02, steps(45, of=0.02)
    shared = {"t_max": 12.6, "save_every": tick, "n_eigs": 1, "n_projections": 100}
    gd = gradflow.integrate(train, method="gd", lr=lr, **shared)
    flow = gradflow.integrate(train, method="auto", rtol=1e-3, **shared)
    threshold, crossing = 2 / lr, crossing_time(gd)
    λ_flow = flow.eigenvalue.values[:, 0]
    assert 0.9 * threshold < late_sharpness(gd) < 1.3 * threshold
    assert λ_flow[-1] > 1.3 * threshold
    assert (np.diff(λ_flow[flow.time.values > crossing]) > 0).all()
    difference = gradflow.compare(gd, flow)
    t = difference.time.values
    path = float(difference.path_length[t < crossing][-1])  # travelled up to the crossing
    before = float(difference.distance[t < crossing].max()) / path
    assert before < 0.02
    assert 3 * crossing < t[-1]
    after = float(difference.distance[t >= 3 * crossing][0]) / float(
        difference.path_length[t >= 3 * crossing][0]
    )
    assert after > 5 * before


@pytest.mark.slow
@pytest.mark.parametrize(("method", "lr"), [("polyak", 3 / 3.2), ("nesterov", 1.5 / 3.2)])
def test_momentum_trains_at_its_own_threshold(method, lr):
    """β = 0.5: (2 + 2β)/η and (2 + 2β)/(η(1 + 2β)) are both 3.2 here, which plain descent at these η isn't held to."""
    train, _, theta = problems.load("digits", "fc-tanh", "mse")
    run = gradflow.integrate(
        train, theta, method=method, lr=lr, momentum=0.5, t_max=240.0, save_every=6.0, n_eigs=1
    )
    threshold = run.attrs["stability_threshold"]
    assert threshold == pytest.approx(3.2)
    assert run.eigenvalue.values[0, 0] < threshold
    assert 0 < crossing_time(run) < 120
    assert 0.9 * threshold < late_sharpness(run) < 1.3 * threshold
    assert (np.diff(run.train_loss.values) > 0).any()
