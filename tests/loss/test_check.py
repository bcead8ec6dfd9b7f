"""The self-check of a loss: what it finds, what it doesn't mistake, and what it leaves alone."""

import copy
import warnings

import pytest
import torch
from helpers import bad_nets, zoo
from helpers.bad_nets import Function, Sequence, double, sandwich
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction
from gradflow.errors import CheckWarning, InexactDerivativeError, InvalidInputError

N = 9


def build(factory, dtype=double):
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm of old is deprecated
        torch.manual_seed(0)
        return factory().to(dtype)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=double)


def made(factory, X=None, *, dtype=double, **options):
    """The loss of a net with two outputs; inputs are of shape (9, 3) unless given."""
    X = draw(N, 3) if X is None else X
    X, Y = X.to(dtype) if X.is_floating_point() else X, draw(len(X), 2).to(dtype)
    return LossFunction(TensorDataset(X, Y), nn.MSELoss(), build(factory, dtype), **options)


def padded(masked, **options):
    g = torch.Generator().manual_seed(1)
    items = [(torch.randint(1, 6, (1 + i % 4,), generator=g), draw(N, 2)[i]) for i in range(N)]

    def collate(batch):
        tokens, targets = zip(*batch, strict=True)
        return pad_sequence(tokens, batch_first=True), torch.stack(targets)

    net = build(lambda: bad_nets.Pooled(masked))
    return LossFunction(items, nn.MSELoss(), net, collate_fn=collate, **options)


sequences = draw(N, 5, 4)

BAD_GRADIENTS = {
    "straight-through": (lambda: sandwich(Function(bad_nets.straight_through)), "straight-through"),
    "reversed": (lambda: sandwich(Function(bad_nets.Reversed.apply)), r"bad_nets\.Reversed"),
    "mistaken": (lambda: sandwich(Function(bad_nets.Mistaken.apply)), r"bad_nets\.Mistaken"),
    "detached": (lambda: sandwich(Function(lambda x: x * x.detach())), r"detach\(\)"),
}
BAD_HESSIANS = {
    "once-differentiable": (lambda: sandwich(Function(bad_nets.Once.apply)), r"bad_nets\.Once"),
    "kernel": (lambda: sandwich(Function(bad_nets.Kernel.apply)), r"bad_nets\.Kernel"),
    "half": (lambda: sandwich(Function(bad_nets.Half.apply)), r"bad_nets\.Half"),
}
COUPLED = {
    "lstm": (lambda: Sequence(nn.LSTM(4, 4)), "module is LSTM with batch_first=False"),
    "gru": (lambda: Sequence(nn.GRU(4, 4)), "module is GRU with batch_first=False"),
    "encoder": (
        lambda: Sequence(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)),
        r"self_attn is MultiheadAttention with batch_first=False",
    ),
    "attention": (lambda: Sequence(nn.MultiheadAttention(4, 2), times=3), "batch_first=False"),
    "centred": (
        lambda: Sequence(Function(lambda x: (x - x.mean(0)).tanh())),
        "a dimension that isn't the batch",
    ),
}
GOOD = {
    "relu": lambda: nn.Sequential(
        nn.Linear(3, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2)
    ),
    "zero-residual": lambda: bad_nets.ZeroResidual(200),
    "hardtanh": lambda: sandwich(nn.Hardtanh(), 50),
    "prelu": lambda: sandwich(nn.PReLU(), 50),
    "zero-head": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.utils.skip_init(nn.Linear, 4, 2)),
    "experts": bad_nets.Experts,
    "complex": lambda: nn.Sequential(bad_nets.Frequencies(), nn.Linear(4, 2)),
    "rounded": lambda: nn.Sequential(nn.Linear(3, 4), Function(torch.round), nn.Linear(4, 2)),
    "weight-norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)
    ),
    "weight-norm-hook": lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2)),
    "spectral-norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2)
    ).eval(),
    "orthogonal": lambda: nn.Sequential(
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)), nn.Linear(3, 2)
    ),
    "dropout": lambda: sandwich(nn.Dropout(0.5)).eval(),
    "single": lambda: nn.Linear(3, 2),
}
GOOD_SEQUENCES = {
    "lstm": lambda: Sequence(nn.LSTM(4, 4, batch_first=True)),
    "bidirectional": lambda: Sequence(nn.GRU(4, 2, bidirectional=True, batch_first=True)),
    "encoder": lambda: Sequence(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)),
    "attention": lambda: Sequence(nn.MultiheadAttention(4, 2, batch_first=True), times=3),
    "conv": lambda: Sequence(
        nn.Sequential(nn.Conv1d(5, 5, 3, padding=1), nn.MaxPool1d(3, 1, 1), nn.GroupNorm(5, 5))
    ),
}


# ---------------------------------------------------------------------- what it finds


@pytest.mark.parametrize("dtype", [double, torch.float32])
@pytest.mark.parametrize("name", BAD_GRADIENTS)
def test_a_wrong_gradient_is_an_error_that_names_its_cause(name, dtype):
    factory, cause = BAD_GRADIENTS[name]
    with pytest.raises(InexactDerivativeError, match=f"along 0.weight, 0.bias.*{cause}.*check=None"):
        made(factory, dtype=dtype)
    meant = made(factory, dtype=dtype, check=None)
    assert gradflow.integrate(meant, method="gd", lr=0.1, max_steps=2).attrs["status"] == "max_steps"
    with pytest.warns(CheckWarning, match=cause):
        report = meant.check()
    assert not report.passed
    assert not report["gradient"].passed
    assert "Hessian" not in report  # whose differences would be those of a wrong gradient


@pytest.mark.parametrize("name", BAD_HESSIANS)
def test_wrong_products_are_an_error_where_they_are_asked_for(name):
    factory, cause = BAD_HESSIANS[name]
    with pytest.warns(CheckWarning, match=cause):
        loss = made(factory)
    theta = loss.parameters()
    loss.gradient(theta)
    with pytest.raises(InexactDerivativeError, match=cause):
        loss.hvp(theta, theta)
    with pytest.raises(InexactDerivativeError, match=cause):
        loss.first(4).hvp(theta, theta)
    with pytest.warns(CheckWarning, match=cause):
        report = loss.check()
    assert report["gradient"].passed
    assert not report["Hessian"].passed


@pytest.mark.parametrize("name", COUPLED)
def test_nets_that_couple_samples_are_named(name):
    factory, cause = COUPLED[name]
    with pytest.warns(CheckWarning, match=f"couples samples.*{cause}"):
        loss = made(factory, sequences)
    with pytest.raises(InvalidInputError, match=f"couples samples.*{cause}.*In 3 chunks.*batch_size=9"):
        made(factory, sequences, batch_size=4)
    with pytest.raises(InvalidInputError, match="couples samples"):
        made(factory, sequences, batch_size=4, check="fast")
    with pytest.warns(CheckWarning, match="couples samples"):
        assert loss.check(level="fast")["samples"].value > 1e-3


def test_only_the_parameter_whose_gradient_is_wrong_is_named():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Parameter(torch.tensor(x)) for x in (0.5, 0.7, 0.9))

        def forward(self, x):
            return (self.a * x + self.b * self.b.detach() * x.square() + self.c)[:, :2]

    with pytest.raises(InexactDerivativeError, match=r"along b\. Likely"):
        made(Product)


def test_four_samples_are_enough_to_tell_whether_they_are_coupled():
    with pytest.warns(CheckWarning, match="couples samples"):
        made(COUPLED["centred"][0], sequences[:4], check="fast")


def test_padding_is_found_where_it_is_not_masked():
    with pytest.warns(CheckWarning, match="couples samples.*padding that isn't masked"):
        padded(False)
    with pytest.raises(InvalidInputError, match="padding that isn't masked"):
        padded(False, batch_size=4)
    assert padded(True, batch_size=4).check().passed


def test_float32_inside_a_float64_net_is_named():
    with pytest.warns(CheckWarning, match=r"1 \(Rounding\) casts to float32") as seen:
        loss = made(lambda: sandwich(bad_nets.Rounding()))
    assert len(seen) == 1
    loss.hvp(loss.parameters(), loss.parameters())


def test_float32_inside_a_float32_net_is_named_once_it_matters():
    loss = made(lambda: sandwich(bad_nets.Rounding()), dtype=torch.float32)
    theta = loss.parameters()
    loss.gradient(theta)
    with pytest.warns(CheckWarning, match=r"1 \(Rounding\) casts to float32"):
        loss.gradient(theta.double())
    loss.gradient(theta.double())


def test_autocast_in_forward_is_named():
    with pytest.warns(CheckWarning, match=r"rounded to 8e-03: 1.linear \(Linear\) casts to bfloat16"):
        made(lambda: sandwich(bad_nets.Bfloat()), dtype=torch.float32)
    made(lambda: sandwich(bad_nets.Bfloat()))  # which autocast leaves alone


def test_casts_of_the_criterion_are_named_too():
    def criterion(output, target):
        return (output - target).float().square().mean(1)

    data = TensorDataset(draw(2, 3), draw(2, 2))
    with pytest.warns(CheckWarning, match=r"criterion \(test_check.py:\d+\) casts to float32"):
        LossFunction(data, criterion, build(lambda: nn.Linear(3, 2)))


# ---------------------------------------------------------------------- what it does not mistake


@pytest.mark.parametrize("dtype", [double, torch.float32])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_zoo_passes_in_silence(name, dtype):
    case = zoo.make(name, dtype=dtype)
    before = copy.deepcopy(case.net.state_dict())
    modes = [m.training for m in case.net.modules()]
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    report = loss.check()
    assert report.passed
    assert report["gradient"].value < 1e-9
    assert report["Hessian"].value < 1e-8
    assert report["symmetry"].value < 1e-14
    if case.chunkable:
        assert report["samples"].value < 1e-14
    assert str(loss.check()) == str(report)  # the same numbers every time
    assert all(
        torch.equal(a, b) for a, b in zip(case.net.state_dict().values(), before.values(), strict=True)
    )
    assert [m.training for m in case.net.modules()] == modes
    assert all(
        p.grad is None and p.requires_grad == (name != "frozen" or k > 0)
        for k, p in enumerate(case.net.parameters())
    )


@pytest.mark.parametrize("name", [*GOOD, *(f"sequence-{name}" for name in GOOD_SEQUENCES)])
def test_good_nets_pass_in_silence(name):
    if name in GOOD:
        loss = made(GOOD[name])
    else:
        loss = made(GOOD_SEQUENCES[name.removeprefix("sequence-")], sequences)
    report = loss.check()
    assert report.passed, str(report)
    assert report["gradient"].value < 1e-7


def test_kinks_are_no_wrong_derivatives():
    report = made(lambda: bad_nets.ZeroResidual(600)).check()
    assert report.passed
    assert report["gradient"].value < 1e-7
    assert report["symmetry"].value < 1e-14


@pytest.mark.parametrize("constant", [1e9, -1e9])
def test_a_constant_beside_the_loss_is_no_wrong_derivative(constant):
    """Its rounding errors are larger than what a difference of the loss may be off by."""
    report = LossFunction.from_callable(lambda x: (x**4).sum() + constant).check(torch.linspace(0.1, 1.0, 7))
    assert all(0 <= finding.value <= finding.allowed for finding in report)


def test_directions_without_a_gradient_are_left_out():
    theta = torch.linspace(0.1, 1.0, 7, dtype=double)
    report = LossFunction.from_callable(lambda x: (x[:4] ** 4).sum()).check(theta)
    assert report["symmetry"].value < 1e-14


def test_the_readings_have_no_unit():
    """A loss or parameters in units that are powers of two give the same readings, to the last digits."""

    class Lopsided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            return a * b

        @staticmethod
        def backward(ctx, grad):
            a, b = ctx.saved_tensors
            return grad * b.detach(), grad * a

    theta = torch.linspace(0.1, 1.0, 7, dtype=double)

    def readings(of_loss, of_theta):
        def function(x):
            y = x / of_theta
            return of_loss * Lopsided.apply(y, y.roll(1)).sin().sum()

        with pytest.warns(CheckWarning, match="uᵀHv and vᵀHu differ"):
            report = LossFunction.from_callable(function).check(of_theta * theta)
        return [report[name].value for name in ("Hessian", "symmetry")]

    plain = readings(1.0, 1.0)
    assert readings(2.0**20, 1.0) == pytest.approx(plain, rel=1e-9)
    assert readings(1.0, 2.0**-10) == pytest.approx(plain, rel=1e-9)


def test_no_sample_is_looked_at_alone():
    def several(x):
        assert len(x) > 1
        return x

    report = made(lambda: sandwich(Function(several)), draw(5, 3)).check()
    assert report["samples"].value < 1e-14


def test_batch_norm_in_train_mode_may_couple_samples():
    case = zoo.make("batch-norm-train")
    finding = LossFunction(case.dataset, case.criterion, case.net, batch_size=4).check()["samples"]
    assert str(finding.value) == "nan"
    assert finding.passed
    assert "batch-norm is in train mode" in finding.message


# ---------------------------------------------------------------------- what it does


def test_callables_are_checked_where_they_are_asked():
    theta = torch.linspace(0.1, 1.0, 7)
    report = LossFunction.from_callable(lambda x: (x**4).sum()).check(theta)
    assert [finding.name for finding in report] == ["precision", "gradient", "Hessian", "symmetry"]
    assert report.passed
    for function, text in (
        (
            lambda x: bad_nets.straight_through(x).square().sum(),
            "gradient isn't that of the loss.*along theta",
        ),
        (lambda x: bad_nets.Kernel.apply(x).square().sum(), "Hessian are wrong.*bad_nets.Kernel"),
        (lambda x: bad_nets.Once.apply(x).square().sum(), "once_differentiable"),
    ):
        loss = LossFunction.from_callable(function)
        with pytest.warns(CheckWarning, match=text):
            assert not loss.check(theta).passed
    with pytest.raises(InvalidInputError, match="needs a network"):
        loss.check()


def test_the_default_device_changes_nothing():
    loss = made(lambda: nn.Linear(3, 2))
    with torch.device("meta"):
        report = loss.check()
    assert str(report) == str(loss.check())


def test_only_what_is_made_anew_is_checked(monkeypatch):
    from gradflow.loss import data_loss

    calls = []
    examine = data_loss.examine
    monkeypatch.setattr(data_loss, "examine", lambda *args: calls.append(args[2]) or examine(*args))
    loss = made(lambda: nn.Linear(3, 2), check="fast")
    assert calls == ["fast"]
    loss.first(4).gradient(loss.parameters())
    loss.subset([1, 2]).gradient(loss.parameters())
    loss.minibatch(torch.tensor([1])).gradient(loss.parameters())
    made(lambda: nn.Linear(3, 2), check=None)
    assert calls == ["fast"]
    made(lambda: nn.Linear(3, 2))
    assert calls == ["fast", "full"]


def test_the_report_is_a_table():
    report = made(lambda: nn.Linear(3, 2)).check()
    rows = str(report).splitlines()
    assert [row.split()[0] for row in rows] == ["samples", "precision", "gradient", "Hessian", "symmetry"]
    assert all(row.endswith("ok") for row in rows)
    assert [f.name for f in made(lambda: nn.Linear(3, 2)).check(level="fast")] == ["samples", "precision"]
    loss = made(BAD_HESSIANS["kernel"][0], check=None)
    with pytest.warns(CheckWarning, match="Products with the Hessian are wrong"):
        bad = loss.check()
    assert "> 1e-06  WRONG  Products with the Hessian are wrong" in str(bad)


def test_differences_that_would_not_fit_in_memory_are_left_out():
    report = made(lambda: nn.Linear(3, 2), memory_budget=1).check()
    assert report.passed
    assert "more than the memory budget" in report["gradient"].message
    vector = 8 * 8  # bytes
    few, many = (made(lambda: nn.Linear(3, 2), memory_budget=n * vector).check() for n in (10, 50))
    assert "more than the memory budget" in few["gradient"].message
    assert many["gradient"].value < 1e-9


def test_losses_that_cannot_be_checked_are_left_to_their_own_errors():
    nan = made(lambda: nn.Linear(3, 2), draw(N, 3) * torch.nan)
    assert "isn't finite" in nan.check()["gradient"].message
    loss = made(lambda: sandwich(Function(lambda x: x.detach()))).check()
    assert loss.passed  # the parameters in front have no gradient to be compared
    embedding = TensorDataset(torch.arange(N)[:, None], draw(N, 2))
    bag = build(lambda: nn.EmbeddingBag(N, 2))
    with pytest.warns(
        CheckWarning, match="There are no products with the Hessian: the derivative for '_embedding_bag"
    ):
        LossFunction(embedding, nn.MSELoss(), bag)


@pytest.mark.parametrize("level", ["Full", True, 1])
def test_levels_that_do_not_exist_are_refused(level):
    with pytest.raises(InvalidInputError, match=f'Expected check as "full", "fast" or None, got {level!r}'):
        made(lambda: nn.Linear(3, 2), check=level)
    with pytest.raises(InvalidInputError, match=f'Expected level as "full" or "fast", got {level!r}'):
        made(lambda: nn.Linear(3, 2)).check(level=level)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_a_mask_of_any_kind_is_no_order(dtype):
    """Inputs that can't be subtracted are compared all the same."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x, mask):
            return self.linear(x * mask.to(x.dtype))

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x > 0).to(dtype), torch.zeros(8, 2))
    with torch.random.fork_rng():
        net = Masked().double()
    assert LossFunction(data, nn.MSELoss(), net).check()["samples"].value < 1e-12


class Head(nn.Module):
    """A large head that is computed in float32 in whatever dtype the rest is."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 64), nn.Tanh())
        self.head = nn.Linear(64, 300)

    def forward(self, x):
        return nn.functional.linear(self.body(x).float(), self.head.weight.float(), self.head.bias.float())


def test_rounding_inside_a_net_is_no_coupling_of_samples():
    """A matrix product in float32 rounds otherwise for another number of rows."""
    X, Y = draw(64, 5).float(), torch.arange(64) % 300
    net = build(Head, torch.float32)
    loss = LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), net, batch_size=16)
    finding = loss.check()["samples"]
    assert 0 < finding.value < finding.allowed < 1e-3


class OnlyIn(nn.Linear):
    """A net that insists on what the check would change."""

    def __init__(self, of):
        super().__init__(3, 2)
        self.of = of

    def forward(self, x):
        assert self.of == "dtype" or len(x) == N, "another number of samples"
        assert self.of == "samples" or self.weight.dtype == torch.float32, "another dtype"
        return super().forward(x)


@pytest.mark.parametrize("of", ["dtype", "samples"])
def test_nets_that_insist_on_something_are_not_looked_at_otherwise(of):
    X, Y = draw(N, 3).float(), draw(N, 2).float()

    def criterion(output, target):
        assert of == "dtype" or len(output) == N
        return nn.functional.mse_loss(output, target)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = LossFunction(
            TensorDataset(X, Y), criterion, build(lambda: OnlyIn(of), torch.float32)
        ).check()
    assert report.passed
    assert "AssertionError" in str(report) if of == "samples" else report["gradient"].value < 0.05


def test_a_domain_that_noise_leaves_is_said():
    loss = LossFunction.from_callable(lambda x: -torch.distributions.Normal(0.0, x).log_prob(x).sum())
    report = loss.check(torch.tensor([1.0, 1e-3], dtype=double))
    assert report.passed
    assert "near θ the loss fails with ValueError" in report["gradient"].message


def test_a_loss_that_cannot_be_evaluated_does_not_pass():
    def broken(theta):
        raise RuntimeError("no such thing")

    with pytest.warns(CheckWarning, match="The loss fails with RuntimeError: no such thing"):
        assert not LossFunction.from_callable(broken).check(torch.ones(2)).passed
    loss = made(lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), batch_size=N)
    loss.net.eval()
    with pytest.warns(CheckWarning, match="switched between train and eval mode"):
        assert not loss.check().passed


def test_frozen_weights_count_where_a_net_is_copied_to_float64():
    net = build(lambda: nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), torch.float32)
    net[0].requires_grad_(False)
    data = TensorDataset(draw(N, 3).float(), draw(N, 2).float())
    allowed = {
        budget: LossFunction(data, nn.MSELoss(), net, memory_budget=budget, batch_size=N)
        .check()["samples"]
        .allowed
        for budget in (8 * 14, 8 * 14 - 1)  # of 8 frozen numbers and 6 others
    }
    assert list(allowed.values()) == pytest.approx([2.0**-26, 2.0**-11.5])


def test_a_loss_that_doesnt_change_is_nothing_wrong():
    # the sum of probabilities: derivatives are rounding errors
    data = torch.utils.data.TensorDataset(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    loss = LossFunction(data, loss_fn=lambda net, batch: (net(batch[0]).softmax(1) + 1 / 3).sum(1), net=net)
    assert loss.check().passed
