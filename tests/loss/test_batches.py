"""Losses that a function computes of a net and a batch."""

import copy
import dataclasses
from collections import UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import gradflow
from gradflow import LossFunction
from gradflow.errors import CriterionError, InvalidInputError, InvalidTypeError, NonDeterministicLossError
from gradflow.loss.trees import map_tensors, tensors_of

N = 24
DOUBLE = torch.float64


def rand(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


X, Y = rand(N, 3), (torch.arange(N) * 5) % 7 % 2


class Items(Dataset):
    """Items that are dictionaries."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def __len__(self):
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, i):
        return {name: tensor[i] for name, tensor in self.tensors.items()}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().double()


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))


def mean(net, batch):
    return F.cross_entropy(net(batch["x"]), batch["y"])


def each(net, batch):
    return F.cross_entropy(net(batch["x"]), batch["y"], reduction="none")


def pair(net, batch):
    return F.cross_entropy(net(batch["x"]), batch["y"], reduction="sum"), len(batch["y"])


def bare(net, value, v):
    """Return value, gradient and H·v by torch alone."""
    theta = list(net.parameters())
    L = value(net)
    free = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(L, theta, create_graph=True, **free)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    product = torch.autograd.grad(flat @ v, theta, **free)
    return L.detach(), flat.detach(), torch.cat([p.reshape(-1) for p in product])


def assert_is(loss, value, tol=1e-12):
    """Compare a loss, its gradient and a product with torch's own."""
    theta = loss.parameters()
    v = rand(len(theta), seed=1)
    expected = bare(loss.net, value, v)
    found = (*loss.gradient(theta), loss.hvp(theta, v))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tol, atol=tol)
    torch.testing.assert_close(loss(theta), expected[0], rtol=tol, atol=tol)


WHOLE = {"x": X, "y": Y}


@pytest.mark.parametrize("batch_size", [None, N, 7, 5, 1])
@pytest.mark.parametrize(
    "loss_fn",
    [mean, each, pair, lambda net, batch: {"loss": mean(net, batch), "note": 1.0}],
    ids=["mean", "each", "pair", "dict"],
)
def test_what_a_function_returns_is_averaged_over_all_samples(loss_fn, batch_size):
    loss = LossFunction(Items(x=X, y=Y), loss_fn=loss_fn, net=mlp(), batch_size=batch_size)
    assert loss.data.n_chunks == -(-N // (batch_size or N))
    assert_is(loss, lambda net: mean(net, WHOLE))


def test_parts_of_the_data_are_those_samples():
    loss = LossFunction(Items(x=X, y=Y), loss_fn=pair, net=mlp(), batch_size=4)
    theta, rows = loss.parameters(), torch.tensor([1, 2, 3, 9, 11, 13])
    expected = mean(loss.net, {"x": X[rows], "y": Y[rows]}).detach()
    for part in (
        loss.minibatch(rows),
        loss.subset(rows.tolist()),
        loss.minibatch(torch.arange(N)).minibatch(rows),
    ):
        torch.testing.assert_close(part(theta), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(
        loss.minibatch(rows[:2])(theta), mean(loss.net, {"x": X[rows[:2]], "y": Y[rows[:2]]})
    )
    assert loss.first(6).n_samples == 6
    assert loss.fingerprint() != loss.first(6).fingerprint()


Both = namedtuple("Both", "x y")


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "kept"


class Graph:
    """Applies functions to its tensors by itself, as graphs of PyTorch Geometric do."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def __copy__(self):
        return Graph(**self.tensors)

    def keys(self):
        return list(self.tensors)

    def clone(self):
        raise NotImplementedError

    pin_memory = clone

    def apply(self, function):
        self.tensors = {name: function(t) for name, t in self.tensors.items()}
        return self

    def __getattr__(self, name):
        return self.__dict__["tensors"][name]


BATCHES = {
    "dict": (lambda x, y: {"x": x, "y": y}, lambda b: (b["x"], b["y"])),
    "nested": (lambda x, y: {"in": [{"x": x}], "y": (y, "names")}, lambda b: (b["in"][0]["x"], b["y"][0])),
    "userdict": (lambda x, y: UserDict(x=x, y=y), lambda b: (b["x"], b["y"])),
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "namedtuple": (Both, lambda b: (b.x, b.y)),
    "dataclass": (Frozen, lambda b: (b.x, b.y)),
    "graph": (lambda x, y: Graph(x=x, y=y), lambda b: (b.x, b.y)),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_comes_as_it_was_made_in_the_dtype_of_theta(kind):
    make, take = BATCHES[kind]
    given = make(X.float(), Y)
    seen = []

    def loss_fn(net, batch):
        seen.append(batch)
        x, y = take(batch)
        return F.cross_entropy(net(x), y)

    loss = LossFunction(given, loss_fn=loss_fn, net=mlp())
    assert_is(loss, lambda net: F.cross_entropy(net(X.float().double()), Y), tol=1e-12)
    assert {type(batch) for batch in seen} == {type(given)}
    x, y = take(seen[-1])
    assert (x.dtype, y.dtype) == (DOUBLE, torch.int64)
    assert take(given)[0].dtype == torch.float32  # what was given stays
    if kind == "dataclass":
        assert seen[-1].note == "kept"


def test_packed_sequences_keep_their_order():
    packed = pack_sequence([rand(4, 2), rand(2, 2, seed=1), rand(3, 2, seed=2)], enforce_sorted=False)
    new = map_tensors(lambda t: t.float() if t.is_floating_point() else t, packed)
    assert isinstance(new, PackedSequence)
    assert new.data.dtype == torch.float32
    assert torch.equal(new.unsorted_indices, packed.unsorted_indices)
    assert len(tensors_of({"a": packed, "b": None, "c": 1.5})) == 3


def test_items_may_have_what_is_no_tensor():
    items = [{"x": X[i], "y": Y[i], "name": f"sample {i}"} for i in range(N)]
    loss = LossFunction(items, loss_fn=each, net=mlp(), batch_size=10)
    assert_is(loss, lambda net: mean(net, WHOLE))


def test_lists_of_batches_and_loaders():
    net = mlp()
    batches = [{"x": X[:10], "y": Y[:10]}, {"x": X[10:], "y": Y[10:]}]
    theta = LossFunction(WHOLE, loss_fn=mean, net=net).parameters()
    expected = mean(net, WHOLE).detach()
    losses = [
        LossFunction(batches, loss_fn=each, net=net),
        LossFunction(batches, loss_fn=pair, net=net),
        LossFunction(batches, loss_fn=mean, net=net, weight=lambda batch: len(batch["y"])),
        LossFunction(DataLoader(Items(x=X, y=Y), batch_size=7), loss_fn=mean, net=net),
        LossFunction(DataLoader(Items(x=X, y=Y), batch_size=7, shuffle=True), loss_fn=mean, net=net),
        LossFunction(DataLoader(batches, batch_size=None), loss_fn=pair, net=net),
    ]
    for loss in losses:
        torch.testing.assert_close(loss(theta), expected, rtol=1e-14, atol=0)
    assert [loss.data.n_chunks for loss in losses] == [2, 2, 2, 4, 4, 2]
    torch.testing.assert_close(losses[0].minibatch(torch.tensor([1]))(theta), mean(net, batches[1]).detach())


def test_a_criterion_takes_a_loader():
    data = TensorDataset(X, Y)
    one = LossFunction(data, nn.CrossEntropyLoss(), mlp())
    loader = LossFunction(DataLoader(data, batch_size=7, shuffle=True), nn.CrossEntropyLoss(), mlp())
    assert loader.data.n_chunks == 4
    torch.testing.assert_close(loader(one.parameters()), one(one.parameters()))


def test_loaders_that_choose_samples_are_refused():
    data = Items(x=X, y=Y)
    samplers = (SubsetRandomSampler([1, 2]), WeightedRandomSampler(torch.ones(N), N))
    for sampler in samplers:
        with pytest.raises(InvalidInputError, match=type(sampler).__name__):
            LossFunction(DataLoader(data, sampler=sampler), loss_fn=mean, net=mlp())
    with pytest.raises(InvalidInputError, match="drops the last batch"):
        LossFunction(DataLoader(data, batch_size=7, drop_last=True), loss_fn=mean, net=mlp())

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([WHOLE])

    for given in (Stream(), DataLoader(Stream())):
        with pytest.raises(InvalidTypeError, match=r"list\(loader\)"):
            LossFunction(given, loss_fn=mean, net=mlp())


# ---------------------------------------------------------------------- what a loss may do


def test_samples_may_be_coupled_if_they_are_one_chunk():
    def contrastive(net, batch):
        z = F.normalize(net(batch["x"]), dim=1)
        return F.cross_entropy(z @ z.T / 0.5, torch.arange(len(z)))

    loss = LossFunction(Items(x=X), loss_fn=contrastive, net=mlp())
    assert_is(loss, lambda net: contrastive(net, WHOLE))
    with pytest.raises(CriterionError, match=rf"couples samples.*batch_size={N}"):
        LossFunction(Items(x=X), loss_fn=contrastive, net=mlp(), batch_size=8)

    def per_sample(net, batch):
        z = net(batch["x"])
        return (z - z.mean(0)).square().sum(1)

    with pytest.raises(CriterionError, match="couples samples"):
        LossFunction(Items(x=X), loss_fn=per_sample, net=mlp(), batch_size=8)


def test_derivatives_of_the_net_inside_the_loss():
    def residual(net, batch):
        x = batch["x"].requires_grad_()
        u = net(x).sum(1)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return (slope.sum(1) - x.prod(1)).square()

    for batch_size in (None, 9):
        loss = LossFunction(Items(x=X), loss_fn=residual, net=mlp(), batch_size=batch_size)
        assert_is(loss, lambda net: residual(net, {"x": X.clone()}).mean())
        assert not loss(loss.parameters()).requires_grad
        assert loss.evaluate(loss.parameters())[0] == pytest.approx(float(loss(loss.parameters())), rel=1e-14)
        assert loss.check().passed


def test_functorch_inside_the_loss():
    def residual(net, batch):
        jacobian = torch.func.vmap(torch.func.jacrev(net))(batch["x"])
        return jacobian.square().sum((1, 2))

    loss = LossFunction(Items(x=X), loss_fn=residual, net=mlp())
    assert_is(loss, lambda net: residual(net, {"x": X}).mean())


def test_parameters_that_the_loss_reads_are_theta():
    def decayed(net, batch):
        return mean(net, batch) + 0.1 * sum(p.square().sum() for p in net.parameters())

    loss = LossFunction(Items(x=X, y=Y), loss_fn=decayed, net=mlp(), batch_size=5)
    assert_is(loss, lambda net: decayed(net, WHOLE))


def test_parameters_from_elsewhere_are_refused():
    scale, net = nn.Parameter(torch.ones((), dtype=DOUBLE)), mlp()
    with pytest.raises(CriterionError, match="aren't the net's"):
        LossFunction(WHOLE, loss_fn=lambda net, batch: scale * mean(net, batch), net=net)
    own = list(net.parameters())
    with pytest.raises(CriterionError, match="taken out of it before"):
        LossFunction(WHOLE, loss_fn=lambda net, batch: mean(net, batch) + own[0].square().sum(), net=net)
    points = torch.linspace(0, 1, 3, dtype=DOUBLE, requires_grad=True)  # no parameter
    LossFunction(WHOLE, loss_fn=lambda net, batch: mean(net, batch) * points.sum(), net=net)


def test_sums_by_tokens_that_count():
    tokens = torch.randint(5, (12, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[::3, 2:] = -100

    net = seeded(lambda: nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 5)))

    def total(net, batch):
        logits = net(batch["tokens"]).movedim(-1, 1)
        return F.cross_entropy(logits, batch["labels"], reduction="sum"), (batch["labels"] != -100).sum()

    for batch_size in (None, 5, 1):
        loss = LossFunction(
            Items(tokens=tokens, labels=labels), loss_fn=total, net=net, batch_size=batch_size
        )
        assert_is(loss, lambda net: F.cross_entropy(net(tokens).movedim(-1, 1), labels))
        criterion = LossFunction(
            TensorDataset(tokens, labels), gradflow.token_cross_entropy, net, batch_size=batch_size
        )
        assert_is(criterion, lambda net: F.cross_entropy(net(tokens).movedim(-1, 1), labels))
        assert criterion.stiff_dim == 4
        right = (net(tokens).argmax(-1) == labels)[labels != -100].double().mean()
        assert criterion.evaluate(criterion.parameters())[1] == pytest.approx(float(right))


class OwnLoss(nn.Module):
    """Predicts the next token, and computes its loss as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, input_ids, labels=None, attention_mask=None):
        logits = self.head(torch.tanh(self.embed(input_ids)))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].reshape(-1, 5), labels[:, 1:].reshape(-1))
        return SimpleNamespace(loss=loss, logits=logits)


def test_a_nets_own_loss_is_weighed_by_the_labels_that_count():
    tokens = torch.randint(5, (12, 6), generator=torch.Generator().manual_seed(0))
    labels = tokens.clone()
    labels[::3, 2:] = -100
    labels[1, 0] = -100  # the first label doesn't count anyway
    data, net = Items(input_ids=tokens, labels=labels), seeded(OwnLoss)
    for batch_size in (None, 5, 1):
        loss = LossFunction(data, net=net, batch_size=batch_size)
        assert_is(loss, lambda net: net(tokens, labels).loss)
    with pytest.raises(CriterionError, match="labels"):
        LossFunction(Items(input_ids=tokens), net=net)
    equal = LossFunction(Items(input_ids=tokens, labels=tokens), net=net, batch_size=5)
    assert_is(equal, lambda net: net(tokens, tokens).loss)


def test_where_the_weight_cant_be_told():
    with pytest.raises(CriterionError, match=r"Pass weight="):
        LossFunction([WHOLE, WHOLE], loss_fn=mean, net=mlp())
    with pytest.raises(InvalidInputError, match="Leave it out"):
        LossFunction(WHOLE, loss_fn=each, net=mlp(), weight=len)
    with pytest.raises(CriterionError, match="as a number"):
        LossFunction([WHOLE, WHOLE], loss_fn=mean, net=mlp(), weight=lambda batch: batch["x"])
    with pytest.raises(CriterionError, match="isn't weighed by"):
        LossFunction(
            Items(x=X, y=Y), loss_fn=mean, net=mlp(), weight=lambda batch: len(batch["y"]) ** 2, batch_size=7
        )


def test_a_weight_that_depends_on_theta_is_refused():
    def ratio(net, batch):
        losses = each(net, batch)
        return losses.sum(), losses.detach().exp().sum()

    loss = LossFunction(WHOLE, loss_fn=ratio, net=mlp(), check=None)
    with pytest.raises(CriterionError, match="must not depend on θ"):
        loss(loss.parameters() + 0.1)
    with pytest.raises(CriterionError, match=r"compose"):
        LossFunction(WHOLE, loss_fn=lambda net, batch: (each(net, batch).sum(),) * 2, net=mlp())


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (lambda net, batch: 3.0, "float 3.0"),
        (lambda net, batch: None, "NoneType"),
        (lambda net, batch: net(batch["x"]), r"shape \(24, 2\)"),
        (lambda net, batch: {"accuracy": 1.0}, "'accuracy' and no \"loss\""),
        (lambda net, batch: batch["y"], "int64"),
        (lambda net, batch: (each(net, batch), 3), r"sum of shape \(24,\)"),
        (lambda net, batch: (mean(net, batch), -1.0), "≥ 0"),
        (lambda net, batch: (mean(net, batch), 1, 2), "a tuple of 3"),
    ],
)
def test_what_is_no_loss_is_refused(returned, says):
    with pytest.raises(CriterionError, match=says):
        LossFunction(WHOLE, loss_fn=returned, net=mlp())


def test_bad_arguments():
    net = mlp()
    with pytest.raises(InvalidTypeError, match="both"):
        LossFunction(WHOLE, nn.MSELoss(), net, loss_fn=mean)
    with pytest.raises(InvalidTypeError, match="needs a network"):
        LossFunction(WHOLE, loss_fn=mean)
    with pytest.raises(InvalidTypeError, match="second argument is a criterion"):
        LossFunction(WHOLE, net)
    with pytest.raises(InvalidTypeError, match="loss_fn as a function"):
        LossFunction(WHOLE, loss_fn=3, net=net)
    with pytest.raises(InvalidTypeError, match="metrics as a mapping"):
        LossFunction(WHOLE, loss_fn=mean, net=net, metrics=[mean])
    with pytest.raises(InvalidInputError, match="name of a metric"):
        LossFunction(WHOLE, loss_fn=mean, net=net, metrics={"top 1": mean})
    with pytest.raises(InvalidInputError, match="leave out batch_size"):
        LossFunction(WHOLE, loss_fn=mean, net=net, batch_size=3)
    with pytest.raises(InvalidInputError, match='mode as "eval"'):
        LossFunction(WHOLE, loss_fn=mean, net=net, mode="test")
    with pytest.raises(TypeError) as caught:
        LossFunction(TensorDataset(X, Y), net=net)
    assert "LossFunction(dataset, criterion, net)" in caught.value.__notes__[0]
    with pytest.raises(NonDeterministicLossError):
        LossFunction(WHOLE, loss_fn=lambda net, batch: mean(net, batch) * torch.rand(()), net=net)


# ---------------------------------------------------------------------- metrics


def test_metrics_are_recorded():
    metrics = {
        "train_accuracy": lambda net, batch: (net(batch["x"]).argmax(1) == batch["y"]).double(),
        "margin": lambda net, batch: net(batch["x"]).std(1),
        "train_error": lambda net, batch: (
            (net(batch["x"]).argmax(1) != batch["y"]).double().sum(),
            len(batch["y"]),
        ),
    }
    loss = LossFunction(Items(x=X, y=Y), loss_fn=each, net=mlp(), batch_size=7, metrics=metrics)
    test = LossFunction(Items(x=X[:9], y=Y[:9]), loss_fn=each, net=loss.net, metrics=metrics)
    run = gradflow.integrate(loss, t_max=2.0, save_every=1.0, test=test, params_every=1.0)
    for i, theta in enumerate(run.theta.values):
        net = copy.deepcopy(loss.net)
        nn.utils.vector_to_parameters(torch.from_numpy(np.array(theta)), net.parameters())
        out = net(X).detach()
        right = (out.argmax(1) == Y).double()
        assert run.train_accuracy[i] == pytest.approx(float(right.mean()))
        assert run.train_error[i] == pytest.approx(float(1 - right.mean()))
        assert run.margin[i] == pytest.approx(float(out.std(1).mean()), rel=1e-12)
        assert run.test_margin[i] == pytest.approx(float(out[:9].std(1).mean()), rel=1e-12)
        assert run.test_error[i] == pytest.approx(float(1 - right[:9].mean()))
        assert run.test_accuracy[i] == pytest.approx(float(right[:9].mean()))
    reached = gradflow.integrate(loss, method="gd", lr=1.0, max_steps=500, acc_goal=0.75)
    assert reached.attrs["status"] == "accuracy_goal" or float(reached.train_accuracy[-1]) >= 0.75


# ---------------------------------------------------------------------- the whole package


def test_what_is_returned_beside_the_loss_is_recorded():
    def loss_fn(net, batch):
        out = net(batch["x"])
        right = out.argmax(1) == batch["y"]
        return {
            "loss": F.cross_entropy(out, batch["y"], reduction="none"),
            "train_accuracy": right,
            "spread": out.std(1),
            "size": 3,
            "outputs": out,
            "not a name": out.std(1),
        }

    loss = LossFunction(Items(x=X, y=Y), loss_fn=loss_fn, net=mlp(), batch_size=7)
    assert list(loss.metrics) == ["spread", "size"]
    assert_is(loss, lambda net: mean(net, WHOLE))
    run = gradflow.integrate(loss, t_max=0.5, save_every=0.5)
    out = loss.net(X).detach()
    assert float(run.spread[0]) == pytest.approx(float(out.std(1).mean()))
    assert float(run["size"][0]) == 3
    assert float(run.train_accuracy[0]) == pytest.approx(float((out.argmax(1) == Y).double().mean()))


def test_every_kind_of_run_takes_such_a_loss():
    loss = LossFunction(Items(x=X, y=Y), loss_fn=each, net=mlp(), batch_size=7)
    reference = LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), mlp(), batch_size=7)
    flow = {"t_max": 3.0, "n_eigs": 2, "save_every": 1.0}
    discrete = {"max_steps": 5, "n_eigs": 1}
    for options in (
        {"method": "auto", **flow},
        {"method": "exprb43", **flow},
        {"method": "rkc", **flow},
        {"method": "adam", "lr": 0.01, **discrete},
        {"method": "sgd", "lr": 0.1, "batch_size": 4, "sample_seed": 0, **discrete},
    ):
        a, b = (gradflow.integrate(each_loss, **options) for each_loss in (loss, reference))
        for name in ("train_loss", "eigenvalue", "params"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-9, atol=1e-9)


def test_a_net_that_trains_is_measured_in_eval_mode():
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)))
    frozen = copy.deepcopy(net).eval()
    assert net.training
    for loss in (
        LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), net, mode="eval"),
        LossFunction(Items(x=X, y=Y), loss_fn=mean, net=net, mode="eval", batch_size=7),
    ):
        theta = loss.parameters()
        v = rand(len(theta), seed=1)
        expected = bare(frozen, lambda net: mean(net, WHOLE), v)
        for mode in (True, False, True):
            net.train(mode)
            found = (*loss.gradient(theta), loss.hvp(theta, v))
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)
            assert all(m.training == mode for m in net.modules())
        assert loss.describe()["train_mode"] is False
        assert loss.check().passed
        assert loss.minibatch(torch.tensor([0, 1]))(theta).isfinite()
    assert int(net[1].num_batches_tracked) == 0


# ---------------------------------------------------------------------- what was silent once


def test_what_a_function_does_to_its_batch_stays_with_it():
    given = X.clone()

    def doubling(net, batch):
        batch["x"].mul_(2)
        return mean(net, batch)

    def halving(net, batch):
        batch["x"].mul_(0.5).requires_grad_()
        return mean(net, batch)

    loss = LossFunction({"x": given, "y": Y}, loss_fn=doubling, net=mlp(), metrics={"halved": halving})
    theta = loss.parameters()
    for _ in range(2):
        torch.testing.assert_close(loss(theta), mean(loss.net, {"x": 2 * X, "y": Y}).detach())
        assert loss.measure(theta)["halved"] == pytest.approx(
            float(mean(loss.net, {"x": X / 2, "y": Y}).detach())
        )
    assert torch.equal(given, X)
    assert not given.requires_grad


def test_sums_count_whatever_their_weights_are():
    mask = torch.ones(N, dtype=DOUBLE)
    mask[8:12] = 0

    def masked(net, batch):
        total = (each(net, batch) * batch["m"]).sum() + 0.5 * net(batch["x"]).square().sum()
        return total, batch["m"].sum()

    def whole(net):
        total, weight = masked(net, {**WHOLE, "m": mask})
        return total / weight

    for batch_size in (None, 4):
        loss = LossFunction(Items(x=X, y=Y, m=mask), loss_fn=masked, net=mlp(), batch_size=batch_size)
        assert_is(loss, whole)
    with pytest.raises(CriterionError, match="weights of all batches are 0"):
        LossFunction({**WHOLE, "m": 0 * mask}, loss_fn=masked, net=mlp())


def test_weights_that_are_sums_agree_in_another_dtype():
    weights = rand(N, seed=5).abs().float()

    def weighted(net, batch):
        return (each(net, batch) * batch["w"]).sum(), batch["w"].sum()

    loss = LossFunction(Items(x=X.float(), y=Y, w=weights), loss_fn=weighted, net=mlp().float(), batch_size=7)
    theta = loss.parameters()
    assert float(loss(theta.double())) == pytest.approx(float(loss(theta)), rel=1e-5)


def test_samplers_inside_of_batch_samplers_are_seen():
    from torch.utils.data import BatchSampler, SequentialSampler

    data = Items(x=X, y=Y)
    for sampler in (SubsetRandomSampler([1, 2, 3]), WeightedRandomSampler(torch.ones(N), N)):
        with pytest.raises(InvalidInputError, match=type(sampler).__name__):
            LossFunction(
                DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False)), loss_fn=mean, net=mlp()
            )
    chosen = BatchSampler(SequentialSampler(data), 7, True)
    with pytest.raises(InvalidInputError, match="drops the last batch"):
        LossFunction(DataLoader(data, batch_sampler=chosen), loss_fn=mean, net=mlp())
    kept = BatchSampler(SequentialSampler(data), 7, False)
    assert LossFunction(DataLoader(data, batch_sampler=kept), loss_fn=mean, net=mlp()).data.chunk_size == 7

    class Tripling(DataLoader):
        def __iter__(self):
            return ({"x": 3 * batch["x"], "y": batch["y"]} for batch in super().__iter__())

    with pytest.raises(InvalidInputError, match="Tripling makes its batches by itself"):
        LossFunction(Tripling(data, batch_size=5), loss_fn=mean, net=mlp())


@pytest.mark.parametrize("names", [["loss"], ["params"], ["time"], ["a", "train_a"]])
def test_metrics_take_no_names_that_are_taken(names):
    loss = LossFunction(WHOLE, loss_fn=mean, net=mlp(), metrics=dict.fromkeys(names, mean))
    with pytest.raises(InvalidInputError, match="Rename"):
        gradflow.integrate(loss, t_max=0.1)


def test_many_batches(tmp_path):
    batches = [{"x": X[i : i + 4], "y": Y[i : i + 4]} for i in range(0, N, 4)]
    loss = LossFunction(batches, loss_fn=each, net=mlp())
    assert_is(loss, lambda net: mean(net, WHOLE))
    assert loss.fingerprint() != LossFunction(batches[::-1], loss_fn=each, net=mlp()).fingerprint()
    run = gradflow.integrate(loss, method="sgd", lr=0.1, batch_size=2, max_steps=4, out=tmp_path / "run.nc")
    assert int(run.step[-1]) == 4
    theta = loss.parameters()
    twice = loss.minibatch(torch.tensor([0, 0, 3]))(theta)
    parts = [float(mean(loss.net, batches[i]).detach()) for i in (0, 0, 3)]
    assert float(twice) == pytest.approx(sum(parts) / 3)
    assert LossFunction(DataLoader(batches, batch_size=None), loss_fn=each, net=mlp()).n_samples == 6
    drops = nn.Dropout(0.5)

    def sometimes(net, batch):
        return each(net, batch) if len(batch["x"]) > 3 else each(net, {**batch, "x": drops(batch["x"])})

    with pytest.raises(NonDeterministicLossError):
        LossFunction([*batches, {"x": X[:2], "y": Y[:2]}], loss_fn=sometimes, net=mlp())
    with pytest.raises(CriterionError, match=r"shape \(1,\)"):
        LossFunction(batches, loss_fn=lambda net, batch: mean(net, batch)[None], net=mlp())


def test_a_batch_may_be_a_list_of_samples():
    def loss_fn(net, batch):
        return torch.stack([F.cross_entropy(net(item["x"]), item["y"]) for item in batch])

    loss = LossFunction(
        Items(x=X, y=Y), loss_fn=loss_fn, net=mlp(), collate_fn=lambda items: items, batch_size=5
    )
    assert_is(loss, lambda net: mean(net, WHOLE))


def test_gradients_with_respect_to_the_net_inside_the_loss():
    def penalised(net, batch):
        L = mean(net, batch)
        slopes = torch.autograd.grad(L, list(net.parameters()), create_graph=True)
        return L + sum(g.square().sum() for g in slopes)

    loss = LossFunction(WHOLE, loss_fn=penalised, net=mlp())
    assert_is(loss, lambda net: penalised(net, WHOLE))
    assert loss.check().passed


def test_a_metric_may_differentiate():
    def slope(net, batch):
        x = batch["x"].requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        return gradient.square().sum(1)

    loss = LossFunction(WHOLE, loss_fn=mean, net=mlp(), metrics={"slope": slope})
    expected = float(slope(loss.net, {"x": X.clone()}).mean())
    assert loss.measure(loss.parameters())["slope"] == pytest.approx(expected)


def test_class_weights_of_a_partial_come_in_the_dtype_of_theta():
    from functools import partial

    tokens = torch.arange(24).reshape(6, 4) % 3
    net = seeded(lambda: nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3)))
    weight = torch.tensor([1.0, 2.0, 3.0])
    criterion = partial(gradflow.token_cross_entropy, weight=weight)
    expected = F.cross_entropy(net(tokens).movedim(-1, 1), tokens, weight.double())
    for batch_size in (None, 4):
        loss = LossFunction(TensorDataset(tokens, tokens), criterion, net, batch_size=batch_size)
        torch.testing.assert_close(loss(loss.parameters()), expected.detach())


def test_a_function_that_switches_the_net_leaves_it_as_it_was():
    def switching(net, batch):
        net.train()
        return mean(net, batch)

    net = mlp().eval()
    loss = LossFunction(WHOLE, loss_fn=mean, net=net, mode="eval", metrics={"switching": switching})
    loss.measure(loss.parameters())
    assert not any(m.training for m in net.modules())


def test_kinds_of_containers():
    class Held:
        def __init__(self):
            self.items = {"x": X.float(), "y": Y}

    class Wrapper(UserDict):
        pass

    with pytest.raises(InvalidTypeError, match="dictionary or a dataclass"):
        map_tensors(torch.clone, SimpleNamespace(x=X))
    assert map_tensors(torch.clone, Held()).items["x"].dtype == torch.float32  # what it holds isn't seen
    assert type(map_tensors(torch.clone, Wrapper(x=X))) is Wrapper
    from types import MappingProxyType

    assert torch.equal(map_tensors(torch.neg, MappingProxyType({"x": X}))["x"], -X)

    @dataclasses.dataclass
    class Partly:
        x: torch.Tensor
        y: torch.Tensor = dataclasses.field(init=False)

    assert torch.equal(map_tensors(torch.neg, Partly(X)).x, -X)
    assert tensors_of(nn.ModuleDict({"a": nn.Tanh()})) == []


def test_options_that_go_with_another_kind_of_loss():
    with pytest.raises(InvalidTypeError, match="goes with a function"):
        LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), mlp(), metrics={"a": mean})
    assert LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), mlp(), loss_fn=None).n_samples == N
    assert LossFunction(WHOLE, loss_fn=mean, net=mlp(), compile=False).n_samples == 1
    with pytest.raises(InvalidInputError, match="compile=True"):
        LossFunction(WHOLE, loss_fn=mean, net=mlp(), compile=True)


def test_parts_of_a_loss_whose_net_was_switched_are_refused():
    for loss in (
        LossFunction(Items(x=X, y=Y), loss_fn=each, net=mlp()),
        LossFunction(TensorDataset(X, Y), nn.CrossEntropyLoss(), mlp()),
    ):
        loss.net.eval()
        with pytest.raises(InvalidInputError, match='mode="eval"'):
            loss.first(5)
