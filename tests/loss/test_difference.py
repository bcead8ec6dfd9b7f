"""Products with the Hessian by differences of gradients."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction
from gradflow.errors import InexactDerivativeError, InvalidInputError

N = 12


class Once(torch.autograd.Function):
    """tanh, whose gradient has no graph: a kernel."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class Kernel(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def losses(dtype=torch.float64, **options):
    """Return a loss with a kernel, by differences, and the same of operations that torch differentiates twice."""
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(N, 3, generator=generator), torch.randn(N, 2, generator=generator))
    made = []
    for activation, hvp in ((Kernel(), "difference"), (nn.Tanh(), "exact")):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(3, 5), activation, nn.Linear(5, 2)).to(dtype)
        made.append(LossFunction(data, nn.MSELoss(), net, hvp=hvp, **options))
    return made


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-3), (torch.float64, 1e-8)])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_products_agree_with_exact_ones(dtype, tol, batch_size):
    loss, exact = losses(dtype, batch_size=batch_size)
    theta = exact.parameters()
    V = torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(1)).to(theta) * torch.tensor(
        [1.0, 1e3, 1e-3]
    )
    V = V.to(theta)
    lin = loss.linearize(theta)
    found, expected = lin.hvp(V), exact.hvp(theta, V)
    assert float(((found - expected).norm(dim=0) / expected.norm(dim=0)).max()) < tol
    assert torch.equal(lin.hvp(torch.zeros_like(theta)), torch.zeros_like(theta))
    assert lin.n_hvps == 4
    torch.testing.assert_close(lin.gradient, exact.gradient(theta)[1])
    described = loss.describe()
    assert described["hvp"] == "difference"
    assert 0 < described["hvp_error"] < tol
    assert "hvp" not in exact.describe()


def test_flows_and_spectra_by_methods_that_take_them():
    loss, exact = losses()
    for method in ("auto", "rkc", "tsit5"):
        a, b = (
            gradflow.integrate(
                each, method=method, rtol=1e-6, t_max=5.0, save_every=2.5, n_eigs=2, eigs_tol=1e-6
            )
            for each in (loss, exact)
        )
        np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=1e-5)
        np.testing.assert_allclose(a.eigenvalue, b.eigenvalue, rtol=1e-5, atol=1e-8)


def test_methods_that_need_exact_ones_refuse():
    loss, _ = losses()
    with pytest.raises(InvalidInputError, match=r"exprb43.*rkc"):
        gradflow.integrate(loss, method="exprb43", t_max=1.0)
    with pytest.raises(InexactDerivativeError, match="third"):
        loss.linearize(loss.parameters()).third(loss.parameters())
    total = loss + gradflow.penalty(lambda x: 0.1 * x.square().sum())
    assert not total.has_exact_products
    with pytest.raises(InvalidInputError, match="exprb54"):
        gradflow.integrate(total, total.parameters(), method="exprb54", t_max=1.0)


def test_differences_are_refused_where_exact_products_are_to_be_had():
    data = TensorDataset(torch.ones(N, 3), torch.ones(N, 2))
    with torch.random.fork_rng():
        net = nn.Linear(3, 2)
    with pytest.raises(InvalidInputError, match="exact products"):
        LossFunction(data, nn.SmoothL1Loss(), net, hvp="difference")
    loss = LossFunction(data, nn.SmoothL1Loss(), net, hvp="difference", check=None)
    assert loss.describe()["hvp"] == "difference"
    with pytest.raises(InvalidInputError, match="Expected hvp as"):
        LossFunction(data, nn.SmoothL1Loss(), net, hvp="differences")


def test_without_it_the_error_says_what_to_pass():
    loss, _ = losses()
    with pytest.warns(gradflow.errors.CheckWarning, match=r'hvp="difference"'):
        exact = LossFunction(loss.data.dataset, nn.MSELoss(), loss.net)
    with pytest.raises(InexactDerivativeError, match=r'hvp="difference"'):
        exact.hvp(exact.parameters(), exact.parameters())


def test_operations_that_torch_differentiates_once():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(4, 8, 3, generator=generator)
    labels = torch.randint(1, 5, (4, 3), generator=generator)

    def ctc(net, batch):
        scores = F.log_softmax(net(batch["frames"]), -1).transpose(0, 1)
        lengths = torch.full((len(batch["labels"]),), 8), torch.full((len(batch["labels"]),), 3)
        return F.ctc_loss(scores, batch["labels"], *lengths, reduction="none")

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    loss = LossFunction({"frames": frames, "labels": labels}, loss_fn=ctc, net=net, hvp="difference")
    theta = loss.parameters()
    H = loss.hvp(theta, torch.eye(len(theta), dtype=theta.dtype))
    assert float((H - H.T).abs().max()) < 1e-7 * float(H.abs().max())
    top = gradflow.SpectrumService(loss).top(2, loss.linearize(theta), tol=1e-6)
    np.testing.assert_allclose(top.values, torch.linalg.eigvalsh((H + H.T) / 2).flip(0)[:2], rtol=1e-6)
