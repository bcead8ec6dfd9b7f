"""How much of the loss each chunk is: what the criterion averages over, found at construction."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from gradflow import HalfSquaredError, LossFunction
from gradflow.errors import CriterionError

double = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=double)


def linear(inputs, outputs, seed=0):
    net = nn.utils.skip_init(nn.Linear, inputs, outputs).double()
    net.load_state_dict({"weight": randn(outputs, inputs, seed=seed), "bias": randn(outputs, seed=seed + 1)})
    return net


class Graphs(Dataset):
    """Graphs with so many nodes each; features and targets of nodes, or a target of the graph."""

    def __init__(self, sizes, target):
        self.X = randn(sum(sizes), 3).split(list(sizes))
        self.Y = [target(x) for x in self.X]

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return self.X[i], self.Y[i]


def packed(items):
    return torch.cat([x for x, _ in items]), torch.cat([y for _, y in items])


SIZES = [2, 7, 3, 1, 5, 9, 4, 2, 2, 6, 8]


def of_nodes(x):
    return x.square().sum(1, keepdim=True)


def classes(x):
    return (x[:, 0] > 0).long()


def agrees_with_one_chunk(make, size=4):
    """Compare value, gradient and H·v in chunks with those at once, at another θ than the net's."""
    whole, chunked = make(batch_size=None), make(batch_size=size)
    assert whole.describe()["n_chunks"] == 1
    assert chunked.describe()["n_chunks"] > 1
    theta = whole.parameters() + 0.1 * randn(whole.n_parameters, seed=9)
    v = randn(whole.n_parameters, seed=8)
    assert float(chunked(theta)) == pytest.approx(float(whole(theta)), rel=1e-13)
    assert chunked.evaluate(theta)[0] == pytest.approx(float(whole(theta)), rel=1e-13)
    for a, b in (
        (chunked.gradient(theta)[1], whole.gradient(theta)[1]),
        (chunked.hvp(theta, v), whole.hvp(theta, v)),
    ):
        assert float(b.norm()) > 0
        assert float((a - b).norm()) < 1e-12 * float(b.norm())
    return chunked


@pytest.mark.parametrize(
    ("criterion", "target", "outputs", "by"),
    [
        (F.mse_loss, of_nodes, 1, "rows"),
        (nn.MSELoss(), of_nodes, 1, "rows"),
        (HalfSquaredError(), of_nodes, 1, "rows"),
        (lambda o, y: F.cross_entropy(o, y), classes, 2, "rows"),
        (nn.CrossEntropyLoss(), classes, 2, "counted"),
        (F.cross_entropy, classes, 2, "counted"),
    ],
)
def test_packed_graphs_weigh_by_nodes(criterion, target, outputs, by):
    data = Graphs(SIZES, target)
    loss = agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            data, criterion, linear(3, outputs), batch_size=batch_size, collate_fn=packed
        )
    )
    assert loss.chunked.weighted_by == by
    # a mini-batch of several chunks is its own mean over nodes
    rows = torch.tensor([5, 3, 1, 0, 9, 5])
    X, Y = packed([data[i] for i in rows.tolist()])
    theta = loss.parameters()
    expected = criterion(F.linear(X, theta[: 3 * outputs].view(outputs, 3), theta[3 * outputs :]), Y)
    assert float(loss.minibatch(rows)(theta)) == pytest.approx(float(expected), rel=1e-13)


class Readout(nn.Module):
    """One output per graph: the sum over its nodes."""

    def __init__(self):
        super().__init__()
        self.inner = linear(3, 1)

    def forward(self, x, graph, count):
        return x.new_zeros(len(count), 1).index_add(0, graph, torch.tanh(self.inner(x)))


def test_targets_of_graphs_weigh_by_graphs():
    def collate(items):
        graph = torch.repeat_interleave(torch.arange(len(items)), torch.tensor([len(x) for x, _ in items]))
        X, Y = packed(items)
        return X, graph, torch.ones(len(items)), Y

    loss = agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            Graphs(SIZES, lambda x: x.sum().reshape(1, 1)),
            F.mse_loss,
            Readout(),
            batch_size=batch_size,
            collate_fn=collate,
        )
    )
    assert loss.chunked.weighted_by == "items"


def test_items_joined_along_another_dimension_weigh_by_elements():
    class Along(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear(3, 2)

        def forward(self, x):
            return self.inner(x).T

    def collate(items):
        return torch.cat([x for x, _ in items]), torch.cat([y for _, y in items], 1)

    loss = agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            Graphs(SIZES, lambda x: x[:, :2].T),
            F.mse_loss,
            Along(),
            batch_size=batch_size,
            collate_fn=collate,
        )
    )
    assert loss.chunked.weighted_by == "elements"


def test_items_that_the_trial_did_not_see_decide_too():
    """All graphs but two have three nodes; the criterion is first tried on sixteen others."""
    sizes = [3] * 40
    sizes[1], sizes[39] = 8, 1
    rows = set(range(40)) - {1, 39}
    data = Graphs(sizes, of_nodes)
    loss = agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            data, F.mse_loss, linear(3, 1), batch_size=batch_size, collate_fn=packed
        )
    )
    assert loss.chunked.weighted_by == "rows"
    assert set(loss.data.spread(16).tolist()) <= rows


# ---------------------------------------------------------------------- tokens


class Tokens(nn.Module):
    """Logits of shape (B, V, T); the head may start at zero, where all tokens have equal losses."""

    def __init__(self, *, zero):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(randn(6, 4), freeze=False)
        self.head = linear(4, 6)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens))).transpose(1, 2)


class Sentences(Dataset):
    lengths = (5, 2, 9, 1, 3, 7, 4, 8, 2, 6, 1)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        tokens = torch.randint(6, (self.lengths[i] + 1,), generator=torch.Generator().manual_seed(i))
        return tokens[:-1], tokens[1:]


def padded(items):
    pad = nn.utils.rnn.pad_sequence
    X, Y = zip(*items, strict=True)
    return pad(list(X), batch_first=True), pad(list(Y), batch_first=True, padding_value=-100)


def sorted_padded(items):
    return padded(sorted(items, key=lambda item: -len(item[0])))


@pytest.mark.parametrize("collate", [padded, sorted_padded])
@pytest.mark.parametrize("zero", [False, True])
def test_padded_tokens_weigh_by_what_counts(zero, collate):
    agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            Sentences(), nn.CrossEntropyLoss(), Tokens(zero=zero), batch_size=batch_size, collate_fn=collate
        )
    )


def token_mean(output, target):
    counts = target != -100
    return (F.cross_entropy(output, target, reduction="none") * counts).sum() / counts.sum()


@pytest.mark.parametrize("zero", [False, True])
def test_a_token_mean_of_ones_own_needs_one_chunk(zero):
    net = Tokens(zero=zero)
    loss = LossFunction(Sentences(), token_mean, net, collate_fn=padded)
    X, Y = padded([Sentences()[i] for i in range(11)])
    assert float(loss(loss.parameters())) == pytest.approx(float(token_mean(net(X), Y).detach()), rel=1e-14)
    with pytest.raises(
        CriterionError, match=r"in chunks.*batch_size=11.*CrossEntropyLoss\(ignore_index.*\(B, V, T\)"
    ):
        LossFunction(Sentences(), token_mean, net, collate_fn=padded, batch_size=4)


# ---------------------------------------------------------------------- losses that couple samples


def info_nce(output, target):
    a, b = F.normalize(output[:, :2]), F.normalize(output[:, 2:])
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))


def vicreg(output, target):
    a, b = output[:, :2], output[:, 2:]
    return F.mse_loss(a, b) + sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (a, b))


def dice(output, target):
    p = output.sigmoid()
    return 1 - 2 * (p * target).sum() / (p.sum() + target.sum())


def rmse(output, target):
    return F.mse_loss(output, target).sqrt()


def spread(output, target):
    return F.mse_loss(output, target) + output.std(0).sum()


def plain_sum(output, target):
    return (output - target).square().sum()


COUPLED = [info_nce, vicreg, dice, rmse, spread, plain_sum]


@pytest.mark.parametrize("criterion", COUPLED)
@pytest.mark.parametrize("zero", [False, True])
def test_a_loss_that_couples_samples_needs_one_chunk(criterion, zero):
    net, X = linear(3, 4), randn(10, 3)
    if zero:
        nn.init.constant_(net.weight, 0.0)
    data = TensorDataset(X, (randn(10, 4, seed=1) > 0).double())
    theta = randn(16, seed=5)
    for batch_size in (None, 10):
        loss = LossFunction(data, criterion, net, batch_size=batch_size)
        leaf = theta.clone().requires_grad_(True)
        value = criterion(F.linear(X, leaf[:12].view(4, 3), leaf[12:]), data.tensors[1])
        (expected,) = torch.autograd.grad(value, leaf)
        assert torch.allclose(loss.gradient(theta)[1], expected, rtol=1e-12, atol=1e-14)
    for batch_size in (1, 3, 4, 5, 9):
        with pytest.raises(CriterionError, match=r"in chunks.*Pass batch_size=10"):
            LossFunction(data, criterion, net, batch_size=batch_size)
    with pytest.raises(
        CriterionError, match=r"Pass batch_size=10, which takes about .* MiB \(memory_budget is"
    ):
        LossFunction(data, criterion, net, memory_budget=1)


def test_the_advice_for_a_sum_works():
    data = TensorDataset(randn(10, 3), randn(10, 4))
    with pytest.raises(
        CriterionError, match=r"If it sums over samples, divide by their number, len\(output\)"
    ):
        LossFunction(data, plain_sum, linear(3, 4), batch_size=3)
    agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            data, lambda o, y: plain_sum(o, y) / len(o), linear(3, 4), batch_size=batch_size
        )
    )


def test_a_criterion_of_all_pairs_takes_all_samples_alone():
    """A matrix with a number for each pair of samples fits no fewer of them."""
    N = 300
    K, data = randn(N, N), TensorDataset(randn(N, 3, seed=1), randn(N, 2, seed=2))

    def similarity(output, target):
        return (K * (output @ output.T)).mean()

    with pytest.raises(RuntimeError) as caught:
        LossFunction(data, similarity, linear(3, 2))
    assert "pass batch_size=300" in caught.value.__notes__[0]
    loss = LossFunction(data, similarity, linear(3, 2), batch_size=N)
    theta = loss.parameters()
    out = F.linear(data.tensors[0], theta[:6].view(2, 3), theta[6:])
    assert float(loss(theta)) == pytest.approx(float(similarity(out, None)), rel=1e-12)
    few = TensorDataset(randn(20, 3, seed=1), randn(20, 2, seed=2))
    K = randn(20, 20)
    LossFunction(few, similarity, linear(3, 2))
    with pytest.raises(CriterionError, match=r"it fails with RuntimeError.*batch_size=20"):
        LossFunction(few, similarity, linear(3, 2), batch_size=10)


def test_a_criterion_that_fails_on_parts_needs_one_chunk():
    def pairs(output, target):
        return (output.view(2, -1) * target.view(2, -1)).mean()

    data = TensorDataset(randn(10, 1), randn(10, 1))
    LossFunction(data, pairs, linear(1, 1))
    with pytest.raises(CriterionError, match=r"it fails with RuntimeError.*batch_size=10"):
        LossFunction(data, pairs, linear(1, 1), batch_size=3)


# ---------------------------------------------------------------------- means that take only some outputs


@pytest.mark.parametrize(
    ("net", "criterion", "target"),
    [
        (nn.Sigmoid(), nn.BCELoss(), lambda y: (y > 0).double()),
        (nn.LogSoftmax(1), nn.NLLLoss(), lambda y: y.argmax(1)),
        (nn.Softplus(), nn.PoissonNLLLoss(log_input=False), lambda y: y.abs().round()),
        (nn.Softplus(), lambda o, y: F.gaussian_nll_loss(o[:, :1], y[:, :1], o[:, 1:2]), lambda y: y),
        (nn.LogSoftmax(1), nn.KLDivLoss(reduction="batchmean"), lambda y: y.softmax(1)),
        (nn.Identity(), nn.CrossEntropyLoss(), lambda y: y.softmax(1)),
        (
            nn.Softmax(1),
            lambda o, y: torch.distributions.Categorical(o).log_prob(y).mean(),
            lambda y: y.argmax(1),
        ),
        (nn.Identity(), nn.SmoothL1Loss(reduction="none"), lambda y: y),
        (nn.Identity(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.0])), lambda y: y.argmax(1)),
    ],
)
def test_means_over_samples_are_taken_whatever_outputs_they_take(net, criterion, target):
    data = TensorDataset(randn(10, 3), target(randn(10, 3, seed=1)))
    agrees_with_one_chunk(
        lambda batch_size: LossFunction(
            data, criterion, nn.Sequential(linear(3, 3), net), batch_size=batch_size
        ),
        size=3,
    )


# ---------------------------------------------------------------------- criteria that read weights


def penalty(net):
    return sum(p.square().sum() for p in net.parameters())


class Penalized(nn.Module):
    """A criterion that holds the net, and class weights of its own."""

    def __init__(self, net, reduction="mean"):
        super().__init__()
        self.net = net
        self.reduction = reduction
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))

    def forward(self, output, target):
        terms = self.scale * (output - target).square()
        if self.reduction == "none":
            return terms.sum(1) + 0.5 * penalty(self.net)
        return getattr(terms, self.reduction)() + 0.5 * penalty(self.net)


def regression(batch_norm=False):
    net = nn.Sequential(
        linear(3, 4), nn.BatchNorm1d(4).double().eval() if batch_norm else nn.Tanh(), linear(4, 2)
    )
    return net, TensorDataset(randn(11, 3), randn(11, 2, seed=1))


def dense(net, data, theta, criterion):
    """Value, gradient and Hessian of a criterion that is given the weights, by plain autograd."""

    def value(flat):
        parts = torch.split(flat, [p.numel() for p in net.parameters()])
        pairs = zip(net.named_parameters(), parts, strict=True)
        state = {name: part.view(p.shape) for (name, p), part in pairs}
        return criterion(torch.func.functional_call(net, state, data.tensors[0]), data.tensors[1]) + 0.5 * (
            flat.square().sum()
        )

    leaf = theta.clone().requires_grad_(True)
    return (
        value(theta),
        torch.autograd.grad(value(leaf), leaf)[0],
        torch.autograd.functional.hessian(value, theta),
    )


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("kind", ["function", "module", "module-none"])
def test_a_penalty_on_the_weights_has_its_derivatives(kind, batch_size):
    net, data = regression(batch_norm=kind != "function")
    scale = torch.tensor([1.0, 2.0], dtype=double)
    if kind == "function":
        criterion, plain = (lambda o, y: F.mse_loss(o, y) + 0.5 * penalty(net)), F.mse_loss
    elif kind == "module":
        criterion, plain = Penalized(net), lambda o, y: (scale * (o - y).square()).mean()
    else:
        criterion, plain = Penalized(net, "none"), lambda o, y: (scale * (o - y).square()).sum(1).mean()
    loss = LossFunction(data, criterion, net, batch_size=batch_size)
    theta = loss.parameters() + 0.1 * randn(loss.n_parameters, seed=7)
    value, gradient, H = dense(net, data, theta, plain)
    v = randn(loss.n_parameters, seed=8)
    assert float(loss(theta)) == pytest.approx(float(value), rel=1e-14)
    assert loss.evaluate(theta)[0] == pytest.approx(float(value), rel=1e-14)
    assert float((loss.gradient(theta)[1] - gradient).norm()) < 1e-13 * float(gradient.norm())
    assert float((loss.hvp(theta, v) - H @ v).norm()) < 1e-13 * float(H.norm() * v.norm())
    # in another dtype than the net's
    single = loss.gradient(theta.float())[1]
    assert single.dtype == torch.float32
    assert float((single.double() - gradient).norm()) < 1e-5 * float(gradient.norm())
    # a caller's own derivative
    leaf = theta.clone().requires_grad_(True)
    (own,) = torch.autograd.grad(loss(leaf), leaf)
    assert float((own - gradient).norm()) < 1e-13 * float(gradient.norm())


def test_a_sum_with_a_penalty_is_refused_in_chunks():
    net, data = regression()
    with pytest.warns(UserWarning, match="divided by the number of samples"):
        LossFunction(data, Penalized(net, "sum"), net)
    with (
        pytest.warns(UserWarning, match="divided by the number of samples"),
        pytest.raises(CriterionError, match=r"once per chunk.*reduction=.mean."),
    ):
        LossFunction(data, Penalized(net, "sum"), net, batch_size=4)


class Uncertainty(nn.Module):
    """Kendall's weights of tasks, which are learned."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2, dtype=double))

    def forward(self, output, target):
        return ((-self.log_scale).exp() * (output - target).square() + self.log_scale).mean()


def test_what_a_criterion_reads_and_theta_has_not_is_refused():
    net, data = regression()
    captured = list(net.parameters())
    with pytest.raises(
        CriterionError, match=r"taken out of it before.*net\.parameters\(\) inside the criterion"
    ):
        LossFunction(data, lambda o, y: F.mse_loss(o, y) + sum(p.square().sum() for p in captured), net)
    learned = Uncertainty()
    for criterion in (learned, lambda o, y: learned(o, y)):
        with pytest.raises(CriterionError, match=r"aren't in θ.*requires_grad_\(False\)"):
            LossFunction(data, criterion, net)
    # as the messages say
    LossFunction(data, lambda o, y: F.mse_loss(o, y) + penalty(net), net)
    frozen = LossFunction(data, learned.requires_grad_(False), net)
    theta = frozen.parameters()
    assert torch.equal(frozen.gradient(theta)[1], LossFunction(data, nn.MSELoss(), net).gradient(theta)[1])
    both = nn.ModuleDict({"net": net, "scales": Uncertainty()})

    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = both

        def forward(self, x):
            return self.parts["net"](x)

    joint = LossFunction(data, both["scales"], Joint())
    assert joint.n_parameters == frozen.n_parameters + 2
    names = dict(zip(joint.names, joint.leaves(joint.gradient(joint.parameters())[1]), strict=True))
    assert float(names["parts.scales.log_scale"].norm()) > 0


def test_a_teacher_that_gets_no_gradient_is_taken():
    net, data = regression()
    teacher = linear(3, 2, seed=4)

    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            self.teacher = teacher

        def forward(self, output, target):
            with torch.no_grad():
                soft = self.teacher(target[:, :1].expand(-1, 3))
            return F.mse_loss(output, soft)

    loss = LossFunction(data, Distilled(), net, batch_size=4)
    assert loss.gradient(loss.parameters())[1].norm() > 0
