"""The flow against an implementation of its own: the network written out in NumPy, integrated by SciPy's Radau."""

import numpy as np
import pytest
from helpers.references import by_radau, sharpness

import gradflow

RTOL = 1e-6


def error(degree, t_max, method, **options):
    """Of θ(T), relative to the distance travelled."""
    train, theta, (end,) = by_radau(degree, (t_max,), seed=3, rtol=1e-10, atol=1e-12)
    run = gradflow.integrate(train, theta, method=method, t_max=t_max, save_every=t_max, **options)
    return np.linalg.norm(run.params.values - end) / np.linalg.norm(end - theta.numpy())


# Errors allowed per step add up, and grow where the flow does: the factors over the tolerance are what is allowed here.
@pytest.mark.parametrize("degree", [3, 4, 5])
@pytest.mark.parametrize(
    ("method", "options", "allowed"),
    [
        ("exprb43", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("rkc", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 500 * RTOL),
        ("scipy:DOP853", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("dopri8", {"rtol": RTOL, "atol": 1e-2 * RTOL}, 50 * RTOL),
        ("rk4", {}, 1e-3),  # no tolerance: h = 1/λ₁
        ("rk4", {"alpha": 0.25}, 1e-6),
    ],
)
def test_flows_agree_with_radau(degree, method, options, allowed):
    assert error(degree, 100.0, method, **options) < allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "allowed"), [("exprb43", 200 * RTOL), ("rkc", 100 * RTOL), ("auto", 100 * RTOL)]
)
def test_flows_agree_with_radau_while_the_sharpness_grows_tenfold(method, allowed):
    _, theta, (end,) = by_radau(3, (2990.0,), seed=3, rtol=1e-10, atol=1e-12)
    assert sharpness(3, end) > 10 * sharpness(3, theta.numpy())
    assert error(3, 2990.0, method, rtol=RTOL, atol=1e-2 * RTOL) < allowed


def test_the_error_follows_the_tolerance():
    errors = [error(3, 100.0, "exprb43", rtol=rtol, atol=1e-2 * rtol) for rtol in (1e-4, 1e-7)]
    assert 0.7 < np.log10(errors[0] / errors[1]) / 3 < 1.3
