"""Smooth functions of losses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, compose
from gradflow.errors import CriterionError, InexactDerivativeError, InvalidInputError, InvalidTypeError

N = 20


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


@pytest.fixture(scope="module")
def losses():
    shared = net()
    return (
        LossFunction(TensorDataset(rand(N, 3), rand(N, 2, seed=1)), nn.MSELoss(), shared, batch_size=7),
        LossFunction(TensorDataset(rand(9, 3, seed=2), rand(9, 2, seed=3)), nn.SmoothL1Loss(), shared),
        gradflow.penalty(lambda x: 1 + x.square().sum()),
    )


FUNCTIONS = {
    "rmse": (torch.sqrt, (0,)),
    "ratio": (lambda a, b: a / (a + b), (0, 1)),
    "log": (lambda a, b, c: torch.log(a * b) + a * c**2, (0, 1, 2)),
    "linear": (lambda a, b: 2 * a - 3 * b, (0, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_follow_by_the_chain_rule(losses, name):
    g, which = FUNCTIONS[name]
    parts = [losses[i] for i in which]
    loss = compose(g, *parts)
    theta = losses[0].parameters() + 0.05
    u, v = rand(len(theta), seed=4), rand(len(theta), seed=5)

    x = theta.clone().requires_grad_()
    value = g(*(part(x) for part in parts))
    (gradient,) = torch.autograd.grad(value, x, create_graph=True)
    (product,) = torch.autograd.grad(gradient @ v, x, create_graph=True)
    (third,) = torch.autograd.grad(product @ u, x)

    lin = loss.linearize(theta)
    close = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(loss(theta), value.detach(), **close)
    torch.testing.assert_close(loss.gradient(theta)[1], gradient.detach(), **close)
    torch.testing.assert_close(lin.gradient, gradient.detach(), **close)
    torch.testing.assert_close(lin.hvp(v), product.detach(), **close)
    torch.testing.assert_close(lin.hvp(torch.stack([v, u], 1))[:, 0], product.detach(), **close)
    torch.testing.assert_close(lin.third(u) @ v, third, **close)
    assert loss.evaluate(theta)[0] == pytest.approx(float(value.detach()), rel=1e-14)
    assert loss.check(theta).passed


def test_the_root_of_a_mean_flows_as_torch_computes_it(losses):
    chunked = compose(torch.sqrt, losses[0])
    x, y = losses[0].data.dataset.tensors
    whole = LossFunction(
        TensorDataset(x, y), lambda o, t: (o - t).square().mean().sqrt(), losses[0].net, batch_size=N
    )
    a, b = (gradflow.integrate(loss, t_max=2.0, save_every=0.5, n_eigs=2) for loss in (chunked, whole))
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-9)
    np.testing.assert_allclose(a.eigenvalue, b.eigenvalue, rtol=1e-5, atol=1e-8)


def test_parts_of_the_data(losses):
    loss = compose(torch.sqrt, losses[0])
    theta, rows = losses[0].parameters(), torch.tensor([0, 4, 5])
    torch.testing.assert_close(loss.minibatch(rows)(theta), losses[0].minibatch(rows)(theta).sqrt())
    torch.testing.assert_close(loss.first(4)(theta), losses[0].first(4)(theta).sqrt())
    with pytest.raises(InvalidInputError, match="made of 2"):
        compose(torch.add, *losses[:2]).minibatch(rows)


def test_it_is_a_loss_like_any_other(losses):
    loss = 2.0 * compose(torch.log, losses[0]) + losses[2]
    theta = losses[0].parameters()
    torch.testing.assert_close(loss(theta), 2 * losses[0](theta).log() + losses[2](theta))
    described = compose(torch.sqrt, losses[0]).describe()
    assert described["function"] == "sqrt"
    assert described["n_samples"] == N
    assert compose(torch.sqrt, losses[0]).fingerprint() != losses[0].fingerprint()


def test_bad_arguments(losses):
    with pytest.raises(InvalidTypeError, match="function of losses first"):
        compose(losses[0].parameters(), losses[0])
    with pytest.raises(InvalidTypeError, match="at least one loss"):
        compose(torch.sqrt)
    with pytest.raises(CriterionError, match="scalar"):
        compose(lambda a: float(a), losses[0])(losses[0].parameters())
    other = LossFunction(TensorDataset(rand(4, 3), rand(4, 4)), nn.MSELoss(), net()[:1])
    with pytest.raises(InvalidInputError, match="same"):
        compose(torch.add, losses[0], other)


def test_a_function_that_detaches_is_refused(losses):
    with pytest.raises(InexactDerivativeError, match="gradient"):
        compose(lambda a, b: a / b.detach(), *losses[:2])
    with pytest.raises(InexactDerivativeError, match="leave torch"):
        compose(lambda a, b: torch.tensor(a.item() * b.item()), *losses[:2])
    with pytest.raises(CriterionError, match="leave torch"):
        compose(lambda a: torch.tensor(a.item()), losses[2]).gradient(losses[0].parameters())


def test_losses_of_one_data_set_take_the_same_rows():
    shared = net()
    data = TensorDataset(rand(N, 3), rand(N, 2, seed=1))
    a, b = (LossFunction(data, criterion, shared) for criterion in (nn.MSELoss(), nn.SmoothL1Loss()))
    rows, theta = torch.tensor([2, 3, 7]), a.parameters()
    for loss, value in (
        (compose(torch.div, a, b), lambda a, b: a / b),
        (a + 2.0 * b, lambda a, b: a + 2 * b),
    ):
        expected = value(a.minibatch(rows)(theta), b.minibatch(rows)(theta))
        torch.testing.assert_close(loss.minibatch(rows)(theta), expected)
        torch.testing.assert_close(loss.subset(rows.tolist())(theta), expected)
