"""Complex and sparse parameters, and nets inside of what runs them."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Fourier(nn.Module):
    """A layer of a Fourier neural operator, with complex weights; an odd number of parameters precedes them."""

    def __init__(self):
        super().__init__()
        self.bias, self.lift = nn.Parameter(torch.randn(3)), nn.Linear(1, 3, bias=False)
        self.weight = nn.Parameter(0.3 * torch.randn(3, 3, 4, dtype=torch.cfloat))
        self.out = nn.Linear(3, 1)
        self.register_buffer("phase", torch.polar(torch.ones(4), torch.arange(4.0)))

    def forward(self, x):
        spectrum = torch.fft.rfft(self.lift(x).transpose(1, 2))
        mixed = torch.zeros_like(spectrum)
        mixed[..., :4] = torch.einsum("bcm,cdm->bdm", spectrum[..., :4], self.weight * self.phase)
        h = torch.tanh(torch.fft.irfft(mixed, n=x.shape[1]) + self.bias[:, None])
        return self.out(h.transpose(1, 2))


X, Y = rand(6, 8, 1), rand(6, 8, 1, seed=1)


def complex_loss(**options):
    net = seeded(Fourier).double()  # which leaves the complex tensors as they are
    return LossFunction(TensorDataset(X, Y), nn.MSELoss(), net, **options)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_complex_parameters_are_their_real_and_imaginary_parts(batch_size):
    loss = complex_loss(batch_size=batch_size)
    theta = loss.parameters()
    assert theta.dtype == torch.float64
    assert len(theta) == 3 + 3 + 2 * 36 + 4
    exact = copy.deepcopy(loss.net)
    exact.weight = nn.Parameter(exact.weight.detach().to(torch.cdouble))
    exact.phase = exact.phase.to(torch.cdouble)
    parameters = [dict(exact.named_parameters())[name] for name in loss.names]
    value = F.mse_loss(exact(X.double()), Y.double())
    gradient = torch.autograd.grad(value, parameters)
    flat = torch.cat([(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in gradient])
    torch.testing.assert_close(loss(theta), value.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(loss.gradient(theta)[1], flat, rtol=1e-12, atol=1e-14)
    assert loss.check().passed
    H = loss.hvp(theta, torch.eye(len(theta), dtype=torch.float64))
    torch.testing.assert_close(H, H.T, rtol=1e-12, atol=1e-13)
    h = 1e-6
    shift = h * rand(len(theta), seed=2, dtype=torch.float64)
    ahead, behind = (loss.gradient(theta + sign * shift)[1] for sign in (1, -1))
    torch.testing.assert_close((ahead - behind) / (2 * h), H @ shift / h, rtol=1e-7, atol=1e-8)


def test_complex_weights_go_back_into_the_net():
    loss = complex_loss()
    theta = loss.parameters()
    loss.net.load_state_dict(loss.state_dict(theta + 0.25))
    torch.testing.assert_close(loss.parameters(), (theta + 0.25), rtol=1e-6, atol=1e-7)
    assert loss.net.weight.dtype == torch.complex64
    drawn = loss.initialize_parameters(seed=0)
    weight = loss.leaves(drawn)[loss.names.index("weight")]
    assert float(weight.square().sum(-1).mean()) == pytest.approx(2 / 12, rel=0.5)  # gain²/fan_in
    flows = [
        gradflow.integrate(loss, theta, method=method, t_max=1.0, save_every=0.5, rtol=1e-6)
        for method in ("auto", "torchdiffeq:dopri8")
    ]
    np.testing.assert_allclose(flows[0].train_loss, flows[1].train_loss, rtol=1e-5)


def test_sparse_embeddings_are_differentiated_densely():
    net = seeded(lambda: nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2)))
    dense = copy.deepcopy(net)
    dense[0].sparse = False
    tokens, labels = torch.arange(18).reshape(9, 2) % 7, torch.arange(9) % 2
    a, b = (LossFunction(TensorDataset(tokens, labels), nn.CrossEntropyLoss(), n) for n in (net, dense))
    theta, v = a.parameters(), rand(35, seed=3)
    assert torch.equal(a.gradient(theta)[1], b.gradient(theta)[1])
    assert torch.equal(a.hvp(theta, v), b.hvp(theta, v))
    assert net[0].sparse


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, from torch.compile itself
def test_what_only_runs_a_net_is_taken_off():
    net = seeded(lambda: nn.Linear(1, 1))
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        loss = LossFunction(TensorDataset(X[:, 0], Y[:, 0]), nn.MSELoss(), wrapped)
        assert loss.net is net
        assert loss.names == ("weight", "bias")
