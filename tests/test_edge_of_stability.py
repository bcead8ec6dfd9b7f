"""The phenomenon itself, on real data: gradient descent stops sharpening at 2/η, the flow goes on."""

import numpy as np
import pytest

import gradflow
from gradflow import problems, steps
from gradflow.analysis import crossing_time


@pytest.mark.slow
def test_gradient_descent_trains_at_the_edge_and_the_flow_beyond_it():
    train, _, theta = problems.load("digits", "fc-tanh", "mse")
    lr, t_max = 0.6, 150.0
    gd = gradflow.integrate(
        train, theta, method="gd", lr=lr, t_max=t_max, save_every=steps(5), n_eigs=1, n_projections=100
    )
    flow = gradflow.integrate(
        train, theta, method="rk4", alpha=2.0, t_max=t_max, save_every=3.0, n_eigs=1, n_projections=100
    )
    threshold = 2 / lr
    λ_gd, λ_flow = gd.eigenvalue.values[:, 0], flow.eigenvalue.values[:, 0]
    assert λ_gd[0] < threshold
    crossing = crossing_time(gd)
    assert 5 < crossing < t_max / 2
    last_third = λ_gd[gd.time.values > 2 / 3 * t_max]
    assert 0.9 * threshold < last_third.mean() < 1.3 * threshold
    assert λ_flow[-1] > 1.3 * threshold
    after = flow.time.values > crossing
    assert (np.diff(λ_flow[after]) > -0.02).all()
    assert (np.diff(flow.train_loss.values) < 0).all()
    assert (np.diff(gd.train_loss.values) > 0).any()  # the edge isn't monotone
    # the two part when the threshold is crossed
    difference = gradflow.compare(gd, flow)
    before = difference.distance.where(difference.time < crossing).max()
    assert float(difference.distance[-1]) > 4 * float(before)
