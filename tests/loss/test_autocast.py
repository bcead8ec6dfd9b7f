"""What is computed inside torch.autocast is what is computed outside."""

import pytest
import torch
from helpers import zoo

import gradflow
from gradflow import LossFunction, SpectrumService, landscape

single = torch.float32


@pytest.fixture
def loss():
    case = zoo.make("mlp-ce", dtype=single)
    return LossFunction(case.dataset, case.criterion, case.net)


def spectrum(loss, theta):
    return SpectrumService(loss).top(2, theta).values, SpectrumService(loss).bottom(1, theta).values


def density(loss, theta):
    return torch.as_tensor(SpectrumService(loss).density(theta, n_steps=8).nodes)


def run(method):
    def integrate(loss, theta):
        options = {"lr": 0.1} if method in {"adam", "gd"} else {}
        ds = gradflow.integrate(
            loss,
            theta,
            method=method,
            t_max=1.0,
            max_steps=3,
            save_every=1.0,
            n_eigs=1,
            n_projections=2,
            **options,
        )
        return torch.tensor(ds.params.values), torch.tensor(ds.eigenvalue.values)

    return integrate


def by_hand(loss, theta):
    solver = gradflow.solver("exprb43", loss, theta, rtol=1e-3)
    solver.step()
    return solver.params


def plane(loss, theta):
    a, b = landscape.random_directions(loss, theta, 2, seed=0)
    ds = landscape.plane(loss, theta, [a, b], [-1.0, 1.0], [0.0, 1.0])
    return torch.tensor(ds.loss.values), torch.tensor(ds.attrs["xy_cosine"])


def path(loss, theta):
    g = torch.Generator().manual_seed(0)
    path = theta + 0.1 * torch.randn(4, len(theta), generator=g)
    axes = landscape.principal_directions(path)
    projected = landscape.project(path, theta, axes).to_array().values
    return torch.stack([axis.vector for axis in axes]), torch.tensor(projected)


def critical(loss, theta):
    found = landscape.classify(loss, theta)
    return torch.tensor([found.sharpness, found.bottom, found.trace])


METHODS = ["auto", "rkc", "expeuler", "gd", "adam"]
OTHERS = [spectrum, density, by_hand, plane, path, critical]


@pytest.mark.parametrize(
    "compute", [*map(run, METHODS), *OTHERS], ids=[*METHODS, *(f.__name__ for f in OTHERS)]
)
def test_autocast_around_a_call_changes_nothing(compute, loss):
    theta = loss.parameters()
    expected = compute(loss, theta)
    with torch.autocast("cpu", torch.bfloat16):
        got = compute(loss, theta)
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]:
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
