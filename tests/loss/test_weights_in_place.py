"""The weights of θ are in the net while it is evaluated and differentiated, and its own afterwards."""

import copy
import functools
import warnings

import pytest
import torch
from helpers import zoo
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss.written_out import WrittenOutWeightNorm

later = functools.partial(checkpoint, use_reentrant=False)


class Block(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.norm, self.up, self.down = norm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Blocks(nn.Module):
    """Blocks with a switch as large models have it: how a block is called."""

    def __init__(self, call=None, norm=nn.LayerNorm, width=4):
        super().__init__()
        self.call = call
        self.blocks = nn.ModuleList(Block(width, norm) for _ in range(3))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.call is None else self.call(block, x)
        return self.head(x)


class ByFunction(nn.Module):
    """What is checkpointed is a function of a parameter, no module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return later(lambda x: torch.tanh(x @ self.weight.T), x)


def problem(call=None, dtype=torch.float64, norm=nn.LayerNorm, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Blocks(call, norm).to(dtype)
        X, Y = torch.randn(11, 4, dtype=dtype), torch.randn(11, 2, dtype=dtype)
    return LossFunction(TensorDataset(X, Y), nn.MSELoss(), net, **kwargs)


def elsewhere(loss):
    theta = loss.parameters()
    return theta + 0.3 * torch.randn(
        theta.shape, generator=torch.Generator().manual_seed(3), dtype=theta.dtype
    )


def state(net):
    """All that a net holds, by identity."""
    return [
        (name, {k: id(v) for part in (m._parameters, m._buffers, m.__dict__) for k, v in part.items()})
        for name, m in net.named_modules()
    ]


KEPT = [{}, {"batch_size": 4}, {"batch_size": 4, "memory_budget": 1}]


@pytest.mark.parametrize("kwargs", KEPT, ids=["one-chunk", "kept", "rebuilt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_checkpointing_changes_no_derivative(dtype, kwargs):
    plain, saving = problem(None, dtype, **kwargs), problem(later, dtype, **kwargs)
    theta = elsewhere(plain)
    V = torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(4), dtype=dtype)
    assert torch.equal(saving(theta), plain(theta))
    assert torch.equal(saving.gradient(theta)[1], plain.gradient(theta)[1])
    kept, expected = saving.linearize(theta), plain.linearize(theta)
    saving.linearize(theta + 1)  # other weights come and go
    assert torch.equal(kept.hvp(V[:, 0]), expected.hvp(V[:, 0]))
    assert torch.equal(kept.hvp(V), expected.hvp(V))
    # in another dtype than the net's
    other = theta.to(torch.float64 if dtype == torch.float32 else torch.float32)
    assert torch.equal(saving.hvp(other, V[:, 0].to(other)), plain.hvp(other, V[:, 0].to(other)))
    assert saving.recomputes
    assert not plain.recomputes


@pytest.mark.parametrize("kwargs", [{}, {"batch_size": 6, "memory_budget": 1}])
def test_checkpointing_leaves_the_running_statistics_alone(kwargs):
    plain, saving = (problem(call, norm=nn.BatchNorm1d, **kwargs) for call in (None, later))
    before = copy.deepcopy(saving.net.state_dict())
    theta = elsewhere(plain)
    assert torch.equal(saving.hvp(theta, theta), plain.hvp(theta, theta))
    assert torch.equal(saving.gradient(theta)[1], plain.gradient(theta)[1])
    assert all(torch.equal(before[k], v) for k, v in saving.net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_with_checkpointing_is_that_without(dtype):
    ends = [
        gradflow.integrate(
            loss, elsewhere(loss), method="adam", lr=0.05, max_steps=6, params_every=gradflow.steps(6)
        )
        for loss in (problem(None, dtype), problem(later, dtype))
    ]
    assert ends[0].train_loss.values[-1] < ends[0].train_loss.values[0]
    assert (ends[0].train_loss.values == ends[1].train_loss.values).all()
    assert (ends[0].params.values == ends[1].params.values).all()


def test_minibatches_are_checkpointed_too():
    plain, saving = problem(), problem(later)
    theta, rows = elsewhere(plain), torch.tensor([2, 3, 5])
    for left, right in zip(
        saving.minibatch(rows).gradient(theta), plain.minibatch(rows).gradient(theta), strict=True
    ):
        assert torch.equal(left, right)


def test_a_checkpointed_loss_is_not_differentiated_by_its_caller():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(5, 4), torch.randn(5, 2))
    for loss in (problem(later), LossFunction(data, nn.MSELoss(), ByFunction())):
        theta = loss.parameters()
        for part in (loss, loss.minibatch(torch.tensor([0, 1]))):
            with pytest.raises(
                InvalidInputError, match=r"activation checkpointing.*loss\.gradient.*loss\.linearize"
            ):
                part(theta.clone().requires_grad_(True))
            with torch.no_grad():
                part(theta.clone().requires_grad_(True))
            part(theta)
        with pytest.raises(InvalidInputError, match="activation checkpointing"):
            torch.func.grad(loss)(theta)


@pytest.mark.parametrize("start", ["input", "hidden"])
def test_reentrant_checkpointing_is_refused(start):
    """It would give no gradient at all, silently, to what is checkpointed."""
    reentrant = functools.partial(checkpoint, use_reentrant=True)
    with torch.random.fork_rng():
        net = Blocks(reentrant) if start == "input" else nn.Sequential(nn.Linear(4, 4), Blocks(reentrant))
    data = TensorDataset(torch.zeros(5, 4), torch.zeros(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which a caller may not see
        with pytest.raises(InvalidInputError, match="use_reentrant=False"):
            LossFunction(data, nn.MSELoss(), net)
    assert all(type(p) is nn.Parameter for p in net.parameters())


# ---------------------------------------------------------------------- memory


def test_kept_graphs_count_the_gradients_of_all_chunks():
    with torch.random.fork_rng():
        net = nn.Linear(100, 100).double()
    data = TensorDataset(torch.zeros(8, 100).double(), torch.zeros(8, 100).double())
    vectors = (8 + 2) * 10_100 * 8
    for budget, kept in ((vectors, False), (1.1 * vectors, True)):
        loss = LossFunction(data, nn.MSELoss(), net, batch_size=1, memory_budget=int(budget))
        assert loss.keeps_graphs(loss.dtype) is kept


def bytes_saved(loss):
    """Count what a linearization keeps: tensors that the graphs saved, and gradients."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr(), tensor.numel()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        lin = loss.linearize(loss.parameters())
    return sum(sizes.values()) + sum(g.nbytes for graph in lin._graphs for g in graph)


@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("call", [None, later], ids=["plain", "checkpointed"])
def test_the_estimate_covers_what_kept_graphs_take(call, batch_size):
    with torch.random.fork_rng():
        net = Blocks(call, width=16)
    data = TensorDataset(torch.randn(64, 16, generator=torch.Generator()), torch.zeros(64, 2))
    loss = LossFunction(data, nn.MSELoss(), net, batch_size=batch_size)
    taken = bytes_saved(loss)
    estimate = 64 * loss.graph_bytes_per_sample + loss.data.n_chunks * loss.n_parameters * 4
    assert taken <= estimate <= 4 * taken


class Again(torch.autograd.Function):
    """A layer, tanh(Wx), that its backward computes again, with the weights that are in it by then."""

    @staticmethod
    def forward(ctx, x, layer, weight):
        ctx.x, ctx.layer = x, layer
        return torch.tanh(x @ weight.T)

    @staticmethod
    def backward(ctx, grad):
        y = torch.tanh(ctx.x @ ctx.layer.weight.T)
        return None, None, (grad * (1 - y**2)).T @ ctx.x


def test_it_is_enough_that_one_layer_runs_again():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 3, bias=False), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(Again.apply(x, self.layer, self.layer.weight))

    with torch.random.fork_rng():
        net = Net()
    data = TensorDataset(torch.ones(5, 4), torch.zeros(5, 2))
    assert LossFunction(data, nn.MSELoss(), net, check=None).recomputes


def test_a_checkpointed_net_may_have_parameters_that_it_does_not_use():
    with torch.random.fork_rng():
        net = Blocks(later)
    net.unused = nn.Parameter(torch.ones(3))
    loss = LossFunction(TensorDataset(torch.ones(5, 4), torch.zeros(5, 2)), nn.MSELoss(), net)
    assert loss.recomputes
    by_name = dict(zip(loss.names, loss.leaves(loss.gradient(loss.parameters())[1]), strict=True))
    assert torch.equal(by_name["unused"], torch.zeros(3))


class Derived(nn.Module):
    """A net with torch.func in its forward pass, which forbids hooks for saved tensors."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda x: torch.tanh(self.inner(x)).sum()))(x)[:, :2]


def test_memory_is_estimated_where_hooks_are_forbidden():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data, net = TensorDataset(torch.randn(6, 4), torch.randn(6, 2)), Derived()
    loss = LossFunction(data, nn.MSELoss(), net)
    assert loss.graph_bytes_per_sample > 6 * 4  # more than its outputs
    w, b = net.inner.weight[0], net.inner.bias
    slopes = (1 - torch.tanh(data.tensors[0] @ w + b) ** 2)[:, None] * w
    expected = torch.autograd.grad((slopes[:, :2] - data.tensors[1]).square().mean(), (w, b))
    gradient = loss.gradient(loss.parameters())[1]
    assert torch.allclose(gradient, torch.cat([*expected]), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- the net comes back


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_net_holds_what_it_held(name):
    case = zoo.make(name)
    before = state(case.net)
    loss = LossFunction(case.dataset, case.criterion, case.net)
    theta = loss.parameters()
    lin = loss.linearize(theta + 0.1)
    lin.hvp(theta)
    loss.evaluate(theta + 0.1)
    loss((theta + 0.1).requires_grad_(True))
    assert state(case.net) == before


def test_the_net_comes_back_after_an_error():
    class Failing(nn.Linear):
        def forward(self, x):
            if float(self.weight.detach().abs().max()) > 50:
                raise ArithmeticError
            return super().forward(x)

    with torch.random.fork_rng():
        net = Failing(4, 2)
    before = state(net)
    loss = LossFunction(TensorDataset(torch.zeros(5, 4), torch.zeros(5, 2)), nn.MSELoss(), net)
    theta = torch.full((10,), 100.0)
    for call in (loss, loss.gradient, loss.linearize, loss.evaluate):
        with pytest.raises(ArithmeticError):
            call(theta)
        assert state(net) == before
    assert loss._placement is None


def test_losses_of_one_net_can_be_nested():
    """The criterion evaluates another loss of the same net at another θ, and both are right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Blocks(later).double()
        X, Y = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    inner = LossFunction(TensorDataset(X + 1, Y), nn.MSELoss(), net)
    at = elsewhere(inner)
    added = inner.gradient(at)[1].sum()
    mse = nn.functional.mse_loss

    def criterion(output, target):
        return mse(output, target) + inner.gradient(at)[1].sum()

    before = state(net)
    outer, plain = (LossFunction(TensorDataset(X, Y), c, net) for c in (criterion, mse))
    theta = at - 1
    assert torch.allclose(outer(theta), plain(theta) + added, rtol=1e-14)
    assert torch.equal(outer.gradient(theta)[1], plain.gradient(theta)[1])
    assert torch.equal(outer.hvp(theta, theta), plain.hvp(theta, theta))
    assert state(net) == before


def test_parametrizations_and_old_hooks_follow_theta():
    orthogonal = nn.utils.parametrizations.orthogonal
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm of old is deprecated
        torch.manual_seed(0)
        net = nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.utils.weight_norm(nn.Linear(4, 2))).double()
        X, Y = torch.randn(6, 4).double(), torch.randn(6, 2).double()
    before = state(net)
    loss = LossFunction(TensorDataset(X, Y), nn.MSELoss(), net)
    theta = elsewhere(loss)
    value, gradient = loss.gradient(theta)
    assert state(net) == before
    leaves = [leaf.requires_grad_(True) for leaf in loss.leaves(theta.clone())]
    with WrittenOutWeightNorm():
        output = torch.func.functional_call(net, dict(zip(loss.names, leaves, strict=True)), X)
    expected = nn.functional.mse_loss(output, Y)
    grads = torch.autograd.grad(expected, leaves)
    assert torch.equal(value, expected.detach())
    assert torch.equal(gradient, torch.cat([g.reshape(-1) for g in grads]))


def test_a_net_that_lost_a_parameter_is_named():
    with torch.random.fork_rng():
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    loss = LossFunction(TensorDataset(torch.zeros(5, 4), torch.zeros(5, 2)), nn.MSELoss(), net)
    theta = loss.parameters()
    net[0] = nn.Identity()
    with pytest.raises(InvalidInputError, match=r"no parameter '0\.weight' any more"):
        loss.gradient(theta)


def test_nets_whose_parameters_cannot_be_replaced_are_refused():
    data = TensorDataset(torch.zeros(5, 4), torch.zeros(5, 2))
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        plain = nn.Linear(4, 2)
        scripted = torch.jit.trace(plain, torch.zeros(1, 4))
    with pytest.raises(InvalidTypeError, match="TorchScript"):
        LossFunction(data, nn.MSELoss(), scripted)
    with pytest.raises(InvalidTypeError, match="DataParallel inside"):
        LossFunction(data, nn.MSELoss(), nn.Sequential(nn.DataParallel(plain)))
