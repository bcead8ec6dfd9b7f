"""A stranger's explicit method, by the contract and with public names only: Ralston's third-order method, a tableau."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

import gradflow
from gradflow.integrators import FixedTableau, Tableau

double = torch.float64


@dataclass(frozen=True)
class Ralston3(FixedTableau):
    """Ralston's method of order 3 (Ralston 1962, Math. Comp. 16)."""

    name = "ralston3"
    order = 3
    tableau = Tableau(A=((), (1 / 2,), (0, 3 / 4)), b=(2 / 9, 1 / 3, 4 / 9))


def valley(x):
    return 0.1 * (1 - x[0]) ** 2 + 2 * (x[1] - x[0] ** 2) ** 2


START = torch.tensor([-0.5, 1.0], dtype=double)


def end(method, **options):
    return gradflow.integrate(
        valley, START, method=method, t_max=1.0, save_every=1.0, **options
    ).params.values


def test_it_has_its_order():
    exact = end("dopri8", rtol=1e-12, atol=1e-13)
    errors = [np.linalg.norm(end(Ralston3(step_size=h)) - exact) for h in (0.02, 0.01)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.2)


def test_it_is_capped_by_its_own_stability_interval():
    run = gradflow.integrate(valley, START, method=Ralston3(alpha=2.5), t_max=0.5, n_eigs=1)
    assert Ralston3().stability_interval == pytest.approx(
        2.5127, abs=1e-4
    )  # that of every method of 3 stages, order 3
    assert float((run.step_size[1:] * run.sharpness_used[1:]).max()) <= 2.5 + 1e-9
    with pytest.raises(ValueError, match=r"alpha ≤ 2\.513, the stability limit"):
        Ralston3(alpha=2.6)


def test_it_runs_under_error_control_and_along_any_flow():
    exact = end("dopri8", rtol=1e-12, atol=1e-13)
    controlled = end(Ralston3(step_size="ErrorControl(rtol=1e-7, atol=1e-9)"))
    assert np.linalg.norm(controlled - exact) < 1e-5
    decayed = gradflow.integrate(
        valley, START, method=Ralston3(step_size=0.005), flow=lambda point: -point.theta, t_max=1.0
    )
    assert np.allclose(decayed.params, np.exp(-1) * START, rtol=1e-7)
