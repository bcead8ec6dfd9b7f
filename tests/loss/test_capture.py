"""Captured gradients and products are those of the oracle to the bit, or aren't used."""

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from helpers import zoo
from helpers.bad_nets import Tanh
from torch import nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction
from gradflow.errors import CheckWarning, InexactDerivativeError, InvalidInputError
from gradflow.loss import capture
from gradflow.loss.capture import CapturedLinearization
from gradflow.loss.recording import UncapturableError, record

CAPTURED = [name for name in zoo.NAMES if name != "batch-norm-train"]


def mlp(dtype=torch.float64, act=nn.Tanh, out=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), act(), nn.Linear(5, out)).to(dtype)


def data(dtype=torch.float64, n=9):
    g = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(n, 3, generator=g, dtype=dtype), torch.randn(n, 2, generator=g, dtype=dtype)
    )


def make(net=None, dataset=None, criterion=None, **options):
    return LossFunction(
        data() if dataset is None else dataset, criterion or nn.MSELoss(), net or mlp(), **options
    )


def pair(net=None, **options):
    """A loss by the net itself, and one that is captured at once."""
    net = net or mlp()
    return make(net, compile=False, **options), make(net, compile=True, **options)


def is_captured(loss, theta=None):
    return isinstance(loss.linearize(loss.parameters() if theta is None else theta), CapturedLinearization)


def assert_same(exact, captured, theta, *, accuracy=False):
    """Assert that everything is the same to the bit, and comes from a capture."""
    one, other = (loss.evaluated(theta, accuracy=accuracy) for loss in (exact, captured))
    assert torch.equal(one.value, other.value)
    assert torch.equal(one.gradient, other.gradient)
    lin, cap = (loss.linearize(theta, accuracy=accuracy) for loss in (exact, captured))
    assert isinstance(cap, CapturedLinearization)
    assert torch.equal(lin.value, cap.value)
    assert torch.equal(lin.gradient, cap.gradient)
    for a, b in ((one.accuracy, other.accuracy), (lin.accuracy, cap.accuracy)):
        assert (a is None and b is None) or torch.equal(a, b)
    g = torch.Generator().manual_seed(2)
    for k in (2, 3):
        V = torch.randn(len(theta), k, generator=g, dtype=torch.float64).to(theta)
        assert torch.equal(lin @ V, cap @ V)
        assert torch.equal(lin @ V[:, -1], cap @ V[:, -1])
    assert cap.n_hvps == lin.n_hvps


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in CAPTURED]
    + [(n, torch.float32) for n in ("mlp-mse", "mlp-ce", "attention")],
    ids=str,
)
def test_a_capture_gives_the_bits_of_the_oracle(name, dtype):
    case = zoo.make(name, dtype=dtype)
    exact, captured = (
        LossFunction(case.dataset, case.criterion, case.net, compile=c, check=None) for c in (False, True)
    )
    theta = exact.parameters()
    g = torch.Generator().manual_seed(3)
    for scale in (0.0, 1.0):
        there = theta + scale * torch.randn(len(theta), generator=g, dtype=dtype)
        assert_same(exact, captured, there, accuracy=exact.classifies)


@pytest.mark.parametrize("name", ["batch-norm-eval", "attention", "recurrent"])
def test_a_capture_gives_the_dense_derivatives(name):
    case = zoo.make(name)
    loss = LossFunction(case.dataset, case.criterion, case.net, compile=True, check=None)
    theta = loss.parameters() * 1.1
    value, gradient, H = zoo.dense_reference(case, theta)
    lin = loss.linearize(theta)
    assert isinstance(lin, CapturedLinearization)
    torch.testing.assert_close(lin.value, value, rtol=1e-12, atol=0)
    torch.testing.assert_close(lin.gradient, gradient, rtol=1e-11, atol=1e-13)
    columns = torch.stack([lin @ unit for unit in torch.eye(len(theta), dtype=theta.dtype)], 1)
    torch.testing.assert_close(columns, H, rtol=1e-9, atol=1e-12)


def test_a_run_is_the_same_to_the_bit_with_captures_that_begin_on_the_way(monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 5)
    ends = []
    for compile in (False, "auto"):
        loss = make(compile=compile)
        run = gradflow.integrate(loss, method="rkc", t_max=0.5, rtol=1e-4, n_eigs=1, progress=False)
        ends.append((run.train_loss.values, run.eigenvalue.values, int(run.n_hvps.values[-1])))
    assert any(made is not None for made in loss._captures._made.values())
    assert (ends[0][0] == ends[1][0]).all()
    assert (ends[0][1] == ends[1][1]).all()
    assert ends[0][2] == ends[1][2]


def test_auto_waits_until_a_capture_is_worth_it():
    loss = make()
    captured = [is_captured(loss) for _ in range(capture._PATIENCE + 1)]
    assert not any(captured[: capture._PATIENCE - 1])
    assert captured[-1]


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 1)
    assert is_captured(make())
    assert not is_captured(make(compile=False))
    with pytest.raises(InvalidInputError, match='compile as "auto", True or False'):
        make(compile="yes")


# ---------------------------------------------------------------------- what isn't captured


class Looks(nn.Module):
    """Control flow that depends on numbers."""

    def forward(self, x):
        return x if float(x.detach().sum()) < 1e9 else -x


class Selects(nn.Module):
    """A shape that depends on numbers."""

    def forward(self, x):
        return x + 0 * x[x.detach() > 0].sum()


class Counts(nn.Module):
    """A buffer that is written to, though not by torch's batch-norm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen = torch.zeros(())

    def forward(self, x):
        self.seen.add_(1.0)
        return x


class Leaves(nn.Module):
    """Numbers that torch doesn't see."""

    def forward(self, x):
        return x * torch.from_numpy(1.0 + x.detach().numpy().mean(keepdims=True) ** 2)


class Mine(nn.Module):
    """A custom derivative that is right."""

    def forward(self, x):
        return Cubed.apply(x)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.saved_tensors[0] ** 2 * grad


@pytest.mark.parametrize("middle", [Looks, Selects, Counts, Leaves, Mine], ids=lambda m: m.__name__)
def test_what_is_no_fixed_list_of_operations_stays_with_the_net(middle):
    exact, other = pair(mlp(act=middle), check=None)
    theta = exact.parameters()
    with pytest.warns(CheckWarning, match="compile=True has no effect"):
        found = other.linearize(theta)
    assert not isinstance(found, CapturedLinearization)
    assert torch.equal(found.hvp(theta), exact.hvp(theta, theta))


def _hooked():
    net = mlp()
    net[0].register_forward_hook(lambda module, inputs, output: output * 1.0)
    return net


@pytest.mark.parametrize(
    "options",
    [{"net": _hooked()}, {"batch_size": 4}, {"memory_budget": 3000, "batch_size": 9}],
    ids=["hook", "chunks", "memory"],
)
def test_auto_leaves_alone_what_a_capture_could_miss(options, monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 1)
    assert not is_captured(make(check=None, **options))


def test_auto_takes_no_code_but_torchs(monkeypatch):
    monkeypatch.setattr(capture, "_PATIENCE", 1)

    class Own(nn.Tanh):
        pass

    patched = mlp()
    patched[1].forward = torch.sin
    for loss in (make(mlp(act=Own)), make(criterion=lambda a, b: (a - b).square().mean()), make(patched)):
        assert not is_captured(loss)
    assert is_captured(make(criterion=nn.functional.mse_loss))
    assert is_captured(make(mlp(act=Own), compile=True))


def test_batch_norm_in_train_mode_stays_with_the_net():
    case = zoo.make("batch-norm-train")
    loss = LossFunction(case.dataset, case.criterion, case.net, compile=True, check=None)
    with pytest.warns(CheckWarning, match="batch-norm is in train mode"):
        assert not is_captured(loss)


def test_only_torch_operations_that_are_known_beforehand_are_recorded():
    x = torch.ones(3)
    for function, why in (
        (lambda x: [x * float(x.sum())], "Python's"),
        (lambda x: [x[x > 0]], "shape that depends"),
        (lambda x: [x * torch.rand(3, generator=torch.Generator())], "random"),
        (lambda x: [x.add_(1.0)], "writes"),
        (lambda x: [sum(x * i for i in range(2000))], "operations"),
    ):
        with pytest.raises(UncapturableError, match=why):
            record(function, x)
    tape = record(lambda x: [(x * 2.0).add_(1.0)[1:].mul_(x[1:])], x)
    run = tape.part(tape.inputs, tape.outputs).compiled()
    assert torch.equal(run(torch.tensor([1.0, 2.0, 3.0]))[0], torch.tensor([10.0, 21.0]))


# ---------------------------------------------------------------------- what changes afterwards


def test_another_dtype_is_captured_anew():
    exact, captured = pair()
    theta = exact.parameters()
    for dtype in (torch.float64, torch.float32, torch.float64):
        assert_same(exact, captured, theta.to(dtype))


def test_frozen_tensors_buffers_and_data_are_read_anew():
    case = zoo.make("batch-norm-eval")
    case.net[0].weight.requires_grad_(False)
    exact, captured = (
        LossFunction(case.dataset, case.criterion, case.net, compile=c, check=None) for c in (False, True)
    )
    theta = exact.parameters()
    before = captured.gradient(theta)[1]
    for change in (case.net[0].weight, case.net[1].running_mean, case.tensors[0]):
        with torch.no_grad():
            change.mul_(1.5)
        assert_same(exact, captured, theta)
        assert not torch.equal(captured.gradient(theta)[1], before)
        before = captured.gradient(theta)[1]


@pytest.mark.parametrize("what", ["module", "attribute", "hook", "buffer", "criterion"])
def test_a_net_that_is_changed_is_captured_anew(what):
    net, criterion = mlp(act=lambda: nn.Softplus()), nn.HuberLoss(delta=0.2)
    exact, captured = pair(net, criterion=criterion)
    theta = exact.parameters()
    before = captured.gradient(theta)[0]
    assert is_captured(captured)
    if what == "module":
        net[1] = nn.Sigmoid()
    elif what == "attribute":
        net[1].beta = 2.0
    elif what == "hook":
        net[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    elif what == "buffer":
        net[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    else:
        criterion.delta = 0.5
    with pytest.warns(CheckWarning, match="hooks") if what in {"hook", "buffer"} else nullcontext():
        after = captured.gradient(theta)
    assert not torch.equal(after[0], before)
    assert all(torch.equal(a, b) for a, b in zip(after, exact.gradient(theta), strict=True))


def test_another_mode_is_an_error_still():
    net = mlp()
    loss = make(net, compile=True)
    theta = loss.parameters()
    lin = loss.linearize(theta)
    net.eval()
    for call in (loss.gradient, loss.linearize):
        with pytest.raises(InvalidInputError, match="switched between train and eval"):
            call(theta)
    assert torch.isfinite(lin.hvp(theta)).all()  # from what was kept
    net.train()
    net[1] = nn.Sigmoid()
    with pytest.raises(InvalidInputError, match="Linearize it again"):
        lin.third(theta)


def test_modes_autocast_and_views_are_left_to_the_net():
    exact, captured = pair()
    theta = exact.parameters()
    assert is_captured(captured)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_captured(captured)
    with torch.inference_mode():
        assert not is_captured(captured)
        assert torch.equal(captured.gradient(theta)[1], exact.gradient(theta)[1])
    with BaseTorchFunctionMode():
        assert not is_captured(captured)
    odd = torch.cat([theta[:1], theta])[1:]
    assert not is_captured(captured, odd)
    assert is_captured(captured)


# ---------------------------------------------------------------------- what a linearization promises


def test_results_may_be_written_to():
    exact, captured = pair()
    theta = exact.parameters()
    for loss in (exact, captured):
        value, gradient = loss.gradient(theta)
        value.zero_()
        gradient.zero_()
    lin, cap = exact.linearize(theta), captured.linearize(theta.clone())
    for tensor in (cap.value, cap.gradient, cap.theta, cap @ theta):
        tensor.fill_(7.0)
    assert torch.equal(cap @ theta, lin @ theta)
    assert torch.equal(captured.gradient(theta)[1], exact.gradient(theta)[1])


def test_third_derivatives_are_those_of_graphs():
    exact, captured = pair()
    theta = exact.parameters()
    u = torch.cos(torch.arange(len(theta), dtype=theta.dtype))
    lin, cap = exact.linearize(theta), captured.linearize(theta)
    seen = []
    cap = cap.counted(None, seen.append)
    assert isinstance(cap, CapturedLinearization)
    assert torch.equal(lin.third(u) @ theta, cap.third(u) @ theta)
    assert (cap.n_thirds, cap.n_hvps, seen) == (1, 0, [1])
    assert not is_captured(captured)  # graphs serve third derivatives better


def test_rows_copies_and_pickles_have_captures_of_their_own():
    exact, captured = pair()
    theta = exact.parameters()
    assert is_captured(captured)
    rows = torch.tensor([1, 4])
    for part in ("minibatch", "subset"):
        one, other = (
            getattr(loss, part)(rows if part == "minibatch" else rows.tolist()) for loss in (exact, captured)
        )
        assert torch.equal(one.gradient(theta)[1], other.gradient(theta)[1])
        assert not torch.equal(one.gradient(theta)[1], exact.gradient(theta)[1])
    for again in (copy.deepcopy(captured), pickle.loads(pickle.dumps(captured))):
        assert_same(exact, again, theta)
    total = captured + 0.1 * gradflow.penalty(lambda x: x.square().sum())
    torch.testing.assert_close(total.hvp(theta, theta), exact.hvp(theta, theta) + 0.2 * theta)


def test_wrong_second_derivatives_are_refused_still():
    class Detached(Tanh):
        @staticmethod
        def backward(ctx, grad):
            y = ctx.saved_tensors[0].detach().tanh().numpy()
            return torch.from_numpy(grad.detach().numpy() * (1 - y**2))

    class Own(nn.Module):
        def forward(self, x):
            return Detached.apply(x)

    with pytest.warns(CheckWarning, match="Products with the Hessian are wrong"):
        loss = make(mlp(act=Own), compile=True)
    with pytest.warns(CheckWarning, match=r"derivatives that aren't torch's .*Detached"):
        loss.gradient(loss.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # products aren't captured either
        with pytest.raises(InexactDerivativeError):
            loss.linearize(loss.parameters())
    with pytest.raises(InexactDerivativeError):
        loss.linearize(loss.parameters())
