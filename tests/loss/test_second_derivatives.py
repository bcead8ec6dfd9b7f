"""Second derivatives that torch gets wrong by itself: exact, or refused by name."""

import warnings

import pytest
import torch
from helpers import bad_nets
from helpers.bad_nets import Function, double, sandwich
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, SpectrumService
from gradflow.errors import InexactDerivativeError, InvalidInputError
from gradflow.loss.written_out import WrittenOutWeightNorm


def build(factory):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm of old is deprecated
        torch.manual_seed(0)
        return factory().double()


def regression(net, n_outputs=2, **options):
    g = torch.Generator().manual_seed(1)
    X = torch.randn(7, 3, generator=g, dtype=double)
    return LossFunction(
        TensorDataset(X, torch.randn(7, n_outputs, generator=g, dtype=double)), nn.MSELoss(), net, **options
    )


def difference(loss, theta, v, h=2e-4):
    """H·v by central differences of the gradient, of fourth order."""
    g = {k: loss.gradient(theta + k * h * v)[1] for k in (-2, -1, 1, 2)}
    return (8 * (g[1] - g[-1]) - (g[2] - g[-2])) / (12 * h)


def relative(a, b):
    return float((a - b).norm() / b.norm())


NORMS = {
    "weight-hook": nn.utils.weight_norm,
    "weight": nn.utils.parametrizations.weight_norm,
    "spectral-hook": nn.utils.spectral_norm,
    "spectral": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("kind", ["weight", "weight-hook"])
def test_weight_normalization_is_exact(kind, dim, generator):
    net = build(lambda: nn.Sequential(NORMS[kind](nn.Linear(3, 4), dim=dim), nn.Tanh(), nn.Linear(4, 2)))
    loss = regression(net)
    theta = loss.parameters()
    X, Y = loss.data.dataset.tensors
    expected = torch.autograd.grad(nn.functional.mse_loss(net(X), Y), list(net.parameters()))
    assert relative(loss.gradient(theta)[1], torch.cat([g.reshape(-1) for g in expected])) < 1e-15
    v = torch.randn(theta.shape, generator=generator, dtype=double)
    assert relative(loss.hvp(theta, v), difference(loss, theta, v)) < 1e-9
    H = loss.linearize(theta).hvp(torch.eye(len(theta), dtype=double))
    assert relative(H, H.T) < 1e-14


def test_the_formula_has_the_default_of_torch(generator):
    v, g = (torch.randn(n, generator=generator, dtype=double) for n in ((3, 3), (3, 1)))
    with WrittenOutWeightNorm():
        written_out = torch._weight_norm(v, g)
    assert relative(written_out, torch._weight_norm(v, g)) < 1e-15


@pytest.mark.parametrize("kind", ["spectral", "spectral-hook"])
def test_spectral_normalization_is_refused_in_train_mode_alone(kind, generator):
    net = build(lambda: nn.Sequential(NORMS[kind](nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)))
    with pytest.raises(
        InvalidInputError, match=r"spectral_norm of 0\.weight is in train mode.*net\.eval\(\)"
    ):
        regression(net)
    loss = regression(net.eval())
    theta = loss.parameters()
    v = torch.randn(theta.shape, generator=generator, dtype=double)
    assert relative(loss.hvp(theta, v), difference(loss, theta, v)) < 1e-9


@pytest.mark.parametrize("memory_budget", [None, 1])
def test_what_cannot_be_differentiated_twice_is_refused_by_name(memory_budget, generator):
    loss = regression(
        build(lambda: sandwich(Function(bad_nets.Once.apply))),
        batch_size=4,
        memory_budget=memory_budget,
        check=None,
    )
    theta = loss.parameters()
    for _ in range(2):
        with pytest.raises(InexactDerivativeError, match=r"once_differentiable\): helpers\.bad_nets\.Once\."):
            loss.hvp(theta, theta)
    with pytest.raises(InexactDerivativeError, match="once_differentiable"):
        SpectrumService(loss).top(1, theta)
    for part in (loss.subset([0, 1, 2]), loss.minibatch(torch.tensor([0, 1]))):
        with pytest.raises(InexactDerivativeError, match="once_differentiable"):
            part.hvp(theta, theta)
    tanh = regression(build(lambda: sandwich(nn.Tanh())), batch_size=4)
    assert relative(loss.gradient(theta)[1], tanh.gradient(theta)[1]) < 1e-14
    for method in ("gd", "adam"):
        ours, plain = (gradflow.integrate(each, method=method, lr=0.1, max_steps=5) for each in (loss, tanh))
        assert abs(ours.train_loss - plain.train_loss).max() < 1e-12


def test_callables_are_looked_at_too():
    def weight_norm(theta):
        return torch._weight_norm(theta[:6].reshape(2, 3), theta[6:8, None], 0).tanh().sum()

    theta = torch.linspace(0.1, 1.0, 8, dtype=double)
    for function, text in (
        (lambda x: bad_nets.Once.apply(x).square().sum(), "bad_nets.Once"),
        (weight_norm, r"Write it out, v \* \(g"),
    ):
        loss = LossFunction.from_callable(function)
        loss.gradient(theta)
        with pytest.raises(InexactDerivativeError, match=text):
            loss.hvp(theta, theta)


def test_what_lies_beside_the_parameters_does_not_matter():
    loss = LossFunction.from_callable(lambda x: x.square().sum() + bad_nets.Once.apply(torch.ones(2)).sum())
    assert torch.equal(loss.hvp(torch.ones(3), torch.ones(3)), 2 * torch.ones(3))


@pytest.mark.parametrize("batch_size", [None, 3])
@pytest.mark.parametrize("n_outputs", [2, 3])  # P is 37, and 42
def test_complex_views_of_real_parameters(n_outputs, batch_size, generator):
    net = build(lambda: nn.Sequential(bad_nets.Frequencies(), nn.Linear(4, n_outputs)))
    loss = regression(net, n_outputs, batch_size=batch_size)
    theta = loss.parameters()
    assert len(theta) == 27 + 5 * n_outputs
    v = torch.randn(theta.shape, generator=generator, dtype=double)
    assert relative(loss.hvp(theta, v), difference(loss, theta, v)) < 1e-9
    H = loss.linearize(theta).hvp(torch.eye(len(theta), dtype=double))
    expected = torch.linalg.eigvalsh(H).flip(0)[:2]
    assert relative(SpectrumService(loss).top(2, theta, tol=1e-6).values, expected) < 1e-9
    V = torch.randn(len(theta), 2, generator=generator, dtype=double)
    assert relative(loss.hvp(theta, V), H @ V) < 1e-13
