"""Third derivatives: exact against closed forms and differences, or refused."""

import warnings

import pytest
import torch
from helpers import bad_nets, zoo
from helpers.bad_nets import Function, sandwich
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from gradflow import LossFunction, penalty
from gradflow.errors import InexactDerivativeError, InvalidInputError, InvalidTypeError

double = torch.float64


def difference(loss, theta, u, V, h=2e-4):
    """∇³L[u]·V by central differences of H·V, of fourth order."""
    products = {k: loss.hvp(theta + k * h * u, V) for k in (-2, -1, 1, 2)}
    return (8 * (products[1] - products[-1]) - (products[2] - products[-2])) / (12 * h)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_a_polynomial_has_its_closed_form(generator):
    """L = Σ aᵢ xᵢ⁴ + x₀ x₁ x₂: ∇³L[u] is diag(24 aᵢ xᵢ uᵢ), and uₖ beside it where i, j, k are 0, 1, 2."""
    a = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=double)
    loss = LossFunction.from_callable(lambda x: (a * x**4).sum() + x[:3].prod())
    x, u = torch.randn(2, 4, generator=generator, dtype=double)
    expected = torch.diag(24 * a * x * u)
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        expected[i, j] = expected[j, i] = u[k]
    third = loss.linearize(x).third(u)
    assert relative(third @ torch.eye(4, dtype=double), expected) < 1e-15
    assert relative(third @ x, expected @ x) < 1e-15
    assert (third.shape, third.dtype, third.device) == ((4, 4), double, x.device)
    weighted = (2.0 * loss - penalty(lambda x: (x**3).sum())).linearize(x).third(u)
    assert relative(weighted @ x, 2 * expected @ x - 6 * u * x) < 1e-14


def test_of_a_quadratic_they_are_zero():
    third = (
        LossFunction.from_callable(lambda x: x.square().sum()).linearize(torch.ones(3)).third(torch.ones(3))
    )
    assert torch.equal(third @ torch.ones(3, 2), torch.zeros(3, 2))


SIZES = [{}, {"batch_size": 4}, {"batch_size": 4, "memory_budget": 1}]


@pytest.mark.parametrize("sizes", SIZES, ids=["one-chunk", "kept", "rebuilt"])
@pytest.mark.parametrize(
    "name", ["mlp-ce", "conv", "attention", "recurrent", "layer-norm", "batch-norm-train"]
)
def test_of_a_network_they_are_those_of_differences(name, sizes, generator):
    case = zoo.make(name)
    loss = LossFunction(case.dataset, case.criterion, case.net, **sizes)
    theta = loss.parameters()
    theta = theta + 0.1 * torch.randn(theta.shape, generator=generator, dtype=double)
    u, v, w = torch.randn(3, len(theta), generator=generator, dtype=double)
    V = torch.stack([v, w, u + v, v - w], 1)
    lin = loss.linearize(theta)
    third = lin.third(u)
    products = third @ V
    assert relative(products, difference(loss, theta, u, V)) < 1e-8
    assert relative(third @ v, products[:, 0]) < 1e-14
    assert relative(lin.third(v) @ u, products[:, 0]) < 1e-13  # symmetric in all three
    assert abs(float(w @ (third @ v) - v @ (third @ w))) < 1e-13 * float(products.norm() * w.norm())


class Norms(nn.Module):
    """Each kind of normalisation, of images of two channels."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(8, 2)
        self.norm = {
            "batch": lambda: nn.BatchNorm2d(2),
            "batch-plain": lambda: nn.BatchNorm2d(2, affine=False, track_running_stats=False),
            "batch-eval": lambda: nn.BatchNorm2d(2).eval(),
            "instance": lambda: nn.InstanceNorm2d(2, affine=True),
            "instance-eval": lambda: nn.InstanceNorm2d(2, track_running_stats=True).eval(),
            "layer": lambda: nn.LayerNorm([2, 2]),
            "layer-plain": lambda: nn.LayerNorm([2, 2], elementwise_affine=False),
            "layer-called": lambda: lambda x: torch.layer_norm(x, [2, 2]),
            "rms": lambda: nn.RMSNorm(2, eps=0.1),
            "group": lambda: nn.GroupNorm(1, 2),
        }[kind]()

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).flatten(1))


KINDS = [
    "batch",
    "batch-plain",
    "batch-eval",
    "instance",
    "instance-eval",
    "layer",
    "layer-plain",
    "layer-called",
]


@pytest.mark.parametrize("kind", [*KINDS, "rms", "group"])
def test_norms_are_exact(kind, device, generator):
    """Those of torch's kernels are off by 5 to 50 % of a product (torch 2.13)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Norms(kind).double()
    X, Y = (torch.randn(shape, generator=generator, dtype=double) for shape in ((6, 1, 3, 3), (6, 2)))
    loss = LossFunction(TensorDataset(X, Y), nn.MSELoss(), net.to(device))
    theta = loss.parameters()
    before = {name: b.clone() for name, b in net.named_buffers()}
    u, v = (torch.randn(theta.shape, generator=generator, dtype=double).to(device) for _ in range(2))
    assert relative(loss.linearize(theta).third(u) @ v, difference(loss, theta, u, v)) < 1e-8
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())


class Saving(nn.Module):
    """A block under activation checkpointing."""

    def __init__(self, norm, *, saves):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh())
        self.head, self.saves = nn.Linear(4, 2), saves

    def forward(self, x):
        y = checkpoint(self.block, x, use_reentrant=False) if self.saves else self.block(x)
        return self.head(y)


@pytest.mark.parametrize("sizes", SIZES, ids=["one-chunk", "kept", "rebuilt"])
def test_activation_checkpointing_changes_nothing_or_is_refused(sizes, generator):
    X, Y = (torch.randn(6, n, generator=generator, dtype=double) for n in (3, 2))

    def of(norm, *, saves):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Saving(norm, saves=saves).double()
        return LossFunction(TensorDataset(X, Y), nn.MSELoss(), net, **sizes)

    losses = [of(nn.Identity(), saves=saves) for saves in (False, True)]
    theta = losses[0].parameters()
    u, v = torch.randn(2, len(theta), generator=generator, dtype=double)
    products = [loss.linearize(theta).third(u) @ v for loss in losses]
    assert relative(products[1], products[0]) < 1e-14
    lin = (loss := of(nn.LayerNorm(4), saves=True)).linearize(loss.parameters())
    with pytest.raises(InexactDerivativeError, match="norm layers under activation checkpointing"):
        lin.third(lin.theta) @ lin.theta


def test_kept_and_rebuilt_graphs_give_the_same(generator):
    case = zoo.make("conv")
    kept, tight = (
        LossFunction(case.dataset, case.criterion, case.net, batch_size=4, memory_budget=budget)
        for budget in (None, 1)
    )
    theta = kept.parameters()
    u, v = torch.randn(2, len(theta), generator=generator, dtype=double)
    assert kept.keeps_graphs(double, order=3)
    assert not tight.keeps_graphs(double, order=3)
    assert torch.equal(kept.linearize(theta).third(u) @ v, tight.linearize(theta).third(u) @ v)


def test_products_are_counted_where_it_is_asked_for():
    loss = LossFunction.from_callable(lambda x: (x**4).sum())
    hvps, thirds, elsewhere = [], [], []
    x = torch.ones(3, dtype=double)
    for each in (loss, loss + penalty(lambda x: x.sum())):
        for counts in (hvps, thirds, elsewhere):
            counts.clear()
        lin = each.linearize(x, hvps.append, count_third=thirds.append)
        lin.hvp(x)
        lin @ torch.ones(3, 4, dtype=double)
        lin.third(x) @ torch.ones(3, 2, dtype=double)
        assert (hvps, thirds, lin.n_hvps, lin.n_thirds) == ([1, 4], [2], 5, 2)
        view = lin.counted(elsewhere.append)
        assert torch.equal(view.hvp(x), lin.hvp(x))
        view.third(x) @ x
        assert view.gradient is lin.gradient
        assert (hvps, thirds, elsewhere, view.n_hvps, view.n_thirds) == ([1, 4, 1], [2], [1], 1, 1)


# ---------------------------------------------------------------------- refused


class OnceMore(bad_nets.Tanh):
    """Tanh whose backward can be differentiated by torch, once."""

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 1 - x.tanh() ** 2

        @staticmethod
        def backward(ctx, grad):
            y = ctx.saved_tensors[0].detach().tanh().numpy()
            return grad * torch.from_numpy(-2 * y * (1 - y**2))

    slope = Slope

    @classmethod
    def derivative(cls, x):
        return cls.slope.apply(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * OnceMore.derivative(ctx.saved_tensors[0])


class Declared(bad_nets.Tanh):
    """The same, saying so."""

    class Slope(OnceMore.Slope):
        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            y = ctx.saved_tensors[0].tanh()
            return grad * -2 * y * (1 - y**2)

    @staticmethod
    def backward(ctx, grad):
        return grad * Declared.Slope.apply(ctx.saved_tensors[0])


def regression(middle, **options):
    g = torch.Generator().manual_seed(1)
    X, Y = torch.randn(7, 3, generator=g, dtype=double), torch.randn(7, 2, generator=g, dtype=double)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        net = sandwich(middle).double()
    return LossFunction(TensorDataset(X, Y), nn.MSELoss(), net, **options)


@pytest.mark.parametrize("sizes", SIZES, ids=["one-chunk", "kept", "rebuilt"])
def test_a_derivative_that_leaves_torch_is_refused(sizes):
    loss = regression(Function(OnceMore.apply), **sizes)
    theta = loss.parameters()
    assert loss.check().passed  # up to second derivatives
    for total in (loss, loss + penalty(lambda x: x.square().sum()), loss.minibatch(torch.tensor([0, 1]))):
        lin = total.linearize(theta)
        with pytest.raises(InexactDerivativeError, match=r"Third derivatives are wrong.*differ by.*OnceMore"):
            lin.third(theta)
        lin.hvp(theta)
    regression(Function(OnceMore.apply), check=None).linearize(theta).third(theta) @ theta


@pytest.mark.parametrize("check", ["fast", None])
def test_a_derivative_that_says_it_is_the_last_is_refused(check):
    loss = regression(Function(Declared.apply), check=check)
    lin = loss.linearize(loss.parameters())
    for _ in range(2):
        with pytest.raises(
            InexactDerivativeError, match=r"There are no third derivatives.*once_differentiable"
        ):
            lin.third(lin.theta)
    lin.hvp(lin.theta)


def test_an_operation_without_the_derivative_is_named():
    def distances(x):
        points = x.reshape(3, 2)
        return (torch.cdist(points, points.roll(1, 0) + 1, p=3.0) ** 2).sum()

    lin = LossFunction.from_callable(distances).linearize(torch.linspace(0.1, 1.0, 6, dtype=double))
    with pytest.raises(InexactDerivativeError, match=r"There are no third derivatives.*_cdist_backward"):
        lin.third(lin.theta)


def test_directions_are_checked():
    lin = LossFunction.from_callable(lambda x: (x**3).sum()).linearize(torch.ones(3))
    with pytest.raises(InvalidInputError, match=r"Expected one direction of shape \(3,\), got \(3, 2\)"):
        lin.third(torch.ones(3, 2))
    with pytest.raises(InvalidTypeError, match="dtype"):
        lin.third(torch.ones(3, dtype=double))
    with pytest.raises(InvalidInputError, match=r"shape \(3,\)"):
        lin.third(torch.ones(3)) @ torch.ones(2)


def test_inference_mode_and_no_grad_do_not_matter():
    loss = LossFunction.from_callable(lambda x: (x**3).sum())
    with torch.inference_mode():
        x = torch.tensor([1.0, 2.0])
        assert torch.equal(loss.linearize(x).third(x) @ x, 6 * x**2)


def test_kinks_are_not_taken_for_mistakes(generator):
    loss = regression(nn.ReLU())
    theta = loss.parameters()
    u, v = torch.randn(2, len(theta), generator=generator, dtype=double)
    h = 1e-6
    expected = (loss.hvp(theta + h * u, v) - loss.hvp(theta - h * u, v)) / (2 * h)
    assert relative(loss.linearize(theta).third(u) @ v, expected) < 1e-6
