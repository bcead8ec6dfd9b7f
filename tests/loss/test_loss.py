"""The loss oracle against dense references, and what it promises to leave alone."""

import copy
import warnings

import pytest
import torch
from helpers import zoo
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from gradflow import HalfSquaredError, LossFunction
from gradflow.errors import ConventionWarning, CriterionError, InvalidInputError, NonDeterministicLossError

CHUNKS = [None, 1, 4, 10]


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def point(case, loss, generator):
    theta = loss.parameters()
    return theta + 0.1 * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)


@pytest.mark.parametrize("batch_size", CHUNKS)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_value_gradient_and_hvp_are_those_of_a_dense_reference(name, batch_size, generator):
    case = zoo.make(name)
    if not case.chunkable and batch_size is not None:
        pytest.skip("batch-norm in train mode: a chunk is a ghost batch, tested below")
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=batch_size)
    theta = point(case, loss, generator)
    lin = loss.linearize(theta)
    V = torch.randn(len(theta), 3, generator=generator, dtype=theta.dtype)
    products, single = lin.hvp(V), lin.hvp(V[:, 0])
    value, gradient = loss.gradient(theta)

    expected_value, expected_gradient, H = zoo.dense_reference(case, theta)
    assert relative(value, expected_value) < 1e-12
    assert relative(loss(theta), expected_value) < 1e-12
    assert abs(loss.evaluate(theta)[0] - float(expected_value)) <= 1e-12 * abs(float(expected_value))
    assert relative(gradient, expected_gradient) < 1e-12
    assert relative(lin.gradient, expected_gradient) < 1e-12
    assert (products - H @ V).norm() <= 1e-12 * max(float(H.norm()) * float(V.norm()), 1e-300)
    # Small problems multiply several vectors in one batch, whose sums round in another order.
    assert (single - products[:, 0]).norm() <= 1e-14 * max(float(H.norm()) * float(V[:, 0].norm()), 1e-300)
    assert torch.equal(loss.hvp(theta, V[:, 0]), single)
    assert lin.n_hvps == 4


@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_float32_agrees_with_float64(name, batch_size, device, generator):
    case = zoo.make(name)
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=batch_size)
    theta = point(case, loss, generator)
    v = torch.randn(len(theta), generator=generator, dtype=theta.dtype)
    value, gradient = loss.gradient(theta)
    product = loss.hvp(theta, v)
    single = theta.to(device, torch.float32)
    value32, gradient32 = loss.gradient(single)
    assert gradient32.dtype == torch.float32
    assert gradient32.device.type == device.type
    assert relative(value32.cpu().double(), value) < 1e-5
    assert relative(gradient32.cpu().double(), gradient) < 1e-5
    product32 = loss.hvp(single, v.to(single))
    assert (product32.cpu().double() - product).norm() < 1e-4 * max(float(product.norm()), 1.0)


@pytest.mark.parametrize("name", ["layer-norm", "batch-norm-train", "attention", "recurrent", "conv"])
def test_hvp_is_that_of_finite_differences(name, generator):
    case = zoo.make(name)
    loss = LossFunction(case.dataset, case.criterion, case.net)
    theta = point(case, loss, generator)
    v = torch.randn(len(theta), generator=generator, dtype=theta.dtype)
    h = 1e-5
    difference = (loss.gradient(theta + h * v)[1] - loss.gradient(theta - h * v)[1]) / (2 * h)
    assert relative(loss.hvp(theta, v), difference) < 1e-7


def test_rebuilt_graphs_give_the_products_of_kept_ones(generator):
    case = zoo.make("conv")
    kept = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = point(case, kept, generator)
    # a budget that holds a chunk's graph, not all
    tight = LossFunction(case.dataset, case.criterion, case.net, batch_size=4, memory_budget=1)
    assert kept.keeps_graphs(theta.dtype)
    assert not tight.keeps_graphs(theta.dtype)
    V = torch.randn(len(theta), 3, generator=generator, dtype=theta.dtype)
    assert torch.equal(kept.linearize(theta).hvp(V), tight.linearize(theta).hvp(V))
    assert torch.equal(kept.linearize(theta).gradient, tight.linearize(theta).gradient)


def test_default_chunk_follows_the_memory_budget():
    case = zoo.make("conv")
    assert LossFunction(case.dataset, case.criterion, case.net).describe()["n_chunks"] == 1
    small = LossFunction(case.dataset, case.criterion, case.net, memory_budget=15_000).describe()
    assert small["batch_size"] in {1, 2, 4, 8}
    assert small["n_chunks"] == -(-11 // small["batch_size"])


def test_streamed_data_give_the_same_loss(generator):
    case = zoo.make("mlp-ce")
    kept = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    streamed = LossFunction(case.dataset, case.criterion, case.net, batch_size=4, memory_budget=1)
    theta = point(case, kept, generator)
    for _ in range(2):
        assert torch.equal(kept.gradient(theta)[1], streamed.gradient(theta)[1])


class Items(Dataset):
    """A data set that is no TensorDataset: Python numbers for targets, collated by the loader."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        return self.tensors[0][i], int(self.tensors[1][i])


def test_any_map_style_dataset_with_loader_options(generator):
    case = zoo.make("mlp-ce")
    plain = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = point(case, plain, generator)
    other = LossFunction(Items(case.tensors), case.criterion, case.net, batch_size=4, num_workers=0)
    assert torch.equal(other.gradient(theta)[1], plain.gradient(theta)[1])


def test_batch_norm_in_train_mode_is_the_mean_over_ghost_batches(generator):
    case = zoo.make("batch-norm-train")
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = point(case, loss, generator)
    X, y = case.tensors
    parts = []
    for a, b in ((0, 4), (4, 8), (8, 11)):
        part = zoo.Case(
            copy.deepcopy(case.net), case.criterion, TensorDataset(X[a:b], y[a:b]), normalizes=True
        )
        parts.append([(b - a) / 11 * q for q in zoo.dense_reference(part, theta)])
    value, gradient, H = (sum(q) for q in zip(*parts, strict=True))
    v = torch.randn(len(theta), generator=generator, dtype=theta.dtype)
    assert relative(loss(theta), value) < 1e-12
    assert relative(loss.gradient(theta)[1], gradient) < 1e-12
    assert relative(loss.hvp(theta, v), H @ v) < 1e-12


@pytest.mark.parametrize("name", zoo.NAMES)
def test_nothing_that_it_is_given_is_changed(name, generator):
    case = zoo.make(name)
    net_before = copy.deepcopy(case.net.state_dict())
    modes = [m.training for m in case.net.modules()]
    grads = [p.requires_grad for p in case.net.parameters()]
    data_before = [t.clone() for t in case.tensors]
    criterion_before = copy.deepcopy(getattr(case.criterion, "__dict__", {}))
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = point(case, loss, generator)
    theta_before = theta.clone()
    loss.linearize(theta).hvp(theta)
    loss.gradient(theta.float())
    loss.evaluate(theta)

    assert torch.equal(theta, theta_before)
    assert not theta.requires_grad
    after = case.net.state_dict()
    assert all(torch.equal(after[key], value) for key, value in net_before.items())
    assert after.keys() == net_before.keys()
    assert [m.training for m in case.net.modules()] == modes
    assert [p.requires_grad for p in case.net.parameters()] == grads
    assert all(p.grad is None for p in case.net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(case.tensors, data_before, strict=True))
    assert str(getattr(case.criterion, "__dict__", {})) == str(criterion_before)


def test_tied_weights_appear_once_and_stay_tied(generator):
    case = zoo.make("tied")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    assert loss.n_parameters == 5 * 3 + 3 * 3 + 3
    loss.gradient(loss.parameters())
    assert case.net.head.weight is case.net.embed.weight
    theta = point(case, loss, generator)
    state = loss.state_dict(theta)
    other = zoo.make("tied", seed=1).net
    other.load_state_dict(state)
    assert torch.equal(LossFunction(case.dataset, case.criterion, other).parameters(), theta)


def test_state_dict_loads_into_the_plain_net(generator):
    case = zoo.make("batch-norm-eval")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    theta = point(case, loss, generator)
    case.net.load_state_dict(loss.state_dict(theta))
    X, y = case.tensors
    assert relative(case.criterion(case.net(X), y).detach(), loss(theta)) < 1e-14


def test_the_loss_is_differentiable_like_any_torch_function(generator):
    case = zoo.make("mlp-mse")
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = loss.parameters().requires_grad_(True)
    (g,) = torch.autograd.grad(loss(theta), theta)
    assert relative(g, loss.gradient(theta)[1]) < 1e-14
    assert relative(torch.func.grad(loss)(theta.detach()), g) < 1e-14


@pytest.mark.parametrize("gain", [1.0, 2.0**0.5])
def test_initialization_is_kaiming_and_seeded(gain):
    with torch.random.fork_rng():
        wide = nn.Sequential(nn.Linear(50, 400), nn.LayerNorm(400), nn.Linear(400, 300), nn.BatchNorm1d(300))
    wide.eval()
    data = TensorDataset(torch.zeros(4, 50), torch.zeros(4, 300))
    loss = LossFunction(data, nn.MSELoss(), wide)
    theta = loss.initialize_parameters(gain, seed=1)
    state = loss.state_dict(theta)
    for name, fan_in in (("0.weight", 50), ("2.weight", 400)):
        assert float(state[name].std()) == pytest.approx(gain / fan_in**0.5, rel=0.03)
        assert abs(float(state[name].mean())) < 0.03 * gain / fan_in**0.5
    assert all((state[f"{i}.bias"] == 0).all() for i in (0, 1, 2, 3))
    assert all((state[f"{i}.weight"] == 1).all() for i in (1, 3))
    double = loss.initialize_parameters(gain, seed=1, dtype=torch.float64)
    assert torch.equal(theta, double.float())
    assert not torch.equal(theta, loss.initialize_parameters(gain, seed=2))
    assert float(loss(double)) == pytest.approx(float(loss(theta)), rel=1e-5)


def test_accuracy(generator):
    case = zoo.make("mlp-ce")
    loss = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
    theta = point(case, loss, generator)
    case.net.load_state_dict(loss.state_dict(theta))
    X, y = case.tensors
    right = float((case.net(X).argmax(1) == y).double().mean())
    assert loss.evaluate(theta)[1] == pytest.approx(right)
    onehot = TensorDataset(X, nn.functional.one_hot(y, 3).double())
    assert LossFunction(onehot, HalfSquaredError(), case.net).evaluate(theta)[1] == pytest.approx(right)
    values = LossFunction(zoo.make("mlp-mse").dataset, nn.MSELoss(), case.net)
    assert not values.classifies
    assert str(values.evaluate(theta)[1]) == "nan"


@pytest.mark.parametrize(
    ("criterion", "outputs", "expected"),
    [
        (nn.MSELoss(), 3, 3),
        (nn.CrossEntropyLoss(), 3, 2),
        (nn.functional.cross_entropy, 3, 2),
        (nn.BCEWithLogitsLoss(), 1, 1),
    ],
)
def test_stiff_dimension_is_outputs_minus_one_for_cross_entropy(criterion, outputs, expected):
    y = torch.zeros(4, dtype=torch.long) if expected < outputs else torch.zeros(4, outputs)
    with torch.random.fork_rng():
        net = nn.Linear(2, outputs)
    assert LossFunction(TensorDataset(torch.ones(4, 2), y), criterion, net).stiff_dim == expected


# ---------------------------------------------------------------------- what it refuses


def test_sum_is_divided_by_samples_with_a_warning(generator):
    case = zoo.make("mlp-mse")
    with pytest.warns(ConventionWarning, match="divided by the number of samples"):
        loss = LossFunction(case.dataset, nn.MSELoss(reduction="sum"), case.net, batch_size=4)
    unreduced = LossFunction(case.dataset, nn.MSELoss(reduction="none"), case.net)
    theta = point(case, loss, generator)
    assert relative(loss(theta), unreduced(theta)) < 1e-14


@pytest.mark.parametrize(
    "criterion",
    [
        lambda o, y: ((o - y) ** 2).sum(),
        lambda o, y: ((o - y) ** 2).mean().sqrt(),
        lambda o, y: ((o - o.mean(0)) * y).mean(),
    ],
    ids=["sum", "root", "couples-samples"],
)
def test_a_criterion_that_chunks_would_change_is_refused(criterion):
    case = zoo.make("mlp-mse")
    for budget in ({"batch_size": 4}, {"memory_budget": 3_000}):
        with pytest.raises(CriterionError, match=r"can't be computed in chunks.*Pass batch_size=11"):
            LossFunction(case.dataset, criterion, case.net, **budget)
    # At once there is nothing to add up.
    loss = LossFunction(case.dataset, criterion, case.net, batch_size=11)
    X, y = case.tensors
    assert torch.equal(loss(loss.parameters()), criterion(case.net(X), y).detach())


def test_dropout_in_train_mode_is_refused_by_name():
    case = zoo.make("mlp-mse")
    net = nn.Sequential(case.net, nn.Dropout(0.5))
    with pytest.raises(NonDeterministicLossError, match=r"1 is Dropout\(p=0.5.*train mode.*net.eval\(\)"):
        LossFunction(case.dataset, case.criterion, net)
    LossFunction(case.dataset, case.criterion, net.eval())


def test_augmentation_is_refused():
    class Augmented(Items):
        def __getitem__(self, i):
            noise = torch.empty(3, dtype=torch.float64).normal_()
            return self.tensors[0][i] + noise, int(self.tensors[1][i])

    case = zoo.make("mlp-ce")
    with torch.random.fork_rng(), pytest.raises(NonDeterministicLossError, match="augmentation"):
        LossFunction(Augmented(case.tensors), case.criterion, case.net)


@pytest.mark.parametrize("option", ["shuffle", "drop_last", "sampler", "batch_sampler"])
def test_loader_options_that_change_the_objective_are_refused(option):
    case = zoo.make("mlp-mse")
    with pytest.raises(InvalidInputError, match=option):
        LossFunction(case.dataset, case.criterion, case.net, **{option: True})
    LossFunction(case.dataset, case.criterion, case.net, **{option: None if "sampler" in option else False})


@pytest.mark.parametrize(
    ("vectors", "kind", "text"),
    [
        (torch.zeros(5, dtype=torch.float64), ValueError, r"shape \(38,\) or \(38, k\), got \(5,\)"),
        (torch.zeros(38), TypeError, "float64, got torch.float32"),
        ([1.0], TypeError, "torch.Tensor, got list"),
        (torch.zeros(38, dtype=torch.float64, device="meta"), ValueError, "cpu, got meta"),
    ],
)
def test_wrong_vectors_are_refused(vectors, kind, text):
    case = zoo.make("mlp-mse")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    with pytest.raises(kind, match=text):
        loss.hvp(loss.parameters(), vectors)


@pytest.mark.parametrize(
    ("theta", "kind", "text"),
    [
        (torch.zeros(5), ValueError, r"shape \(38,\), got \(5,\)"),
        (torch.zeros(38, 1), ValueError, r"got \(38, 1\)"),
        (torch.zeros(38, dtype=torch.int64), TypeError, "float32 or float64, got torch.int64"),
        (torch.zeros(38, dtype=torch.float16), TypeError, "float32 or float64, got torch.float16"),
        (torch.zeros(38, device="meta"), ValueError, "meta"),
        ([0.0] * 38, TypeError, "torch.Tensor, got list"),
    ],
)
def test_wrong_theta_is_refused(theta, kind, text):
    case = zoo.make("mlp-mse")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    for call in (loss, loss.gradient, loss.linearize, loss.evaluate):
        with pytest.raises(kind, match=text):
            call(theta)


def test_other_wrong_arguments_are_refused():
    case = zoo.make("mlp-mse")
    frozen = copy.deepcopy(case.net).requires_grad_(False)
    mixed = copy.deepcopy(case.net)
    mixed[0].float()
    empty = TensorDataset(torch.zeros(0, 3), torch.zeros(0, 3))
    single = TensorDataset(torch.zeros(4, 3, dtype=torch.float64))
    for args, kwargs, text in (
        ((case.dataset, case.criterion, frozen), {}, "no trainable parameters"),
        ((case.dataset, case.criterion, mixed), {}, "one dtype"),
        ((empty, case.criterion, case.net), {}, "empty"),
        ((single, case.criterion, case.net), {}, "inputs"),
        ((case.dataset, "mse", case.net), {}, "criterion"),
        ((case.dataset, case.criterion, lambda x: x), {}, "torch.nn.Module"),
        ((case.dataset, case.criterion, copy.deepcopy(case.net).half()), {}, "float32 or float64"),
        ((case.dataset, lambda o, y: 1.0, case.net), {}, "torch.Tensor, got float"),
        ((case.dataset, lambda o, y: o[:2], case.net), {}, "one value per sample"),
        ((case.dataset, case.criterion, case.net), {"batch_size": 0}, "batch_size"),
        ((case.dataset, case.criterion, case.net), {"batchsize": 3}, "did you mean 'batch_size'"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            LossFunction(*args, **kwargs)


def test_a_callable_has_no_network():
    loss = LossFunction.from_callable(lambda x: (x**2).sum())
    theta = torch.ones(3)
    assert torch.equal(loss.hvp(theta, theta), 2 * theta)
    for call in (loss.parameters, loss.initialize_parameters, lambda: loss.state_dict(theta)):
        with pytest.raises(InvalidInputError, match="needs a network"):
            call()
    with pytest.raises(CriterionError, match="scalar"):
        LossFunction.from_callable(lambda x: x)(theta)
    with pytest.raises(TypeError, match="callable"):
        LossFunction.from_callable(3.0)


def test_a_kept_graph_lives_only_as_long_as_its_linearization():
    import gc
    import weakref

    case = zoo.make("mlp-mse")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    lin = loss.linearize(loss.parameters())
    graph = weakref.ref(lin._graphs[0][0])
    lin.hvp(loss.parameters())
    del lin
    gc.collect()
    assert graph() is None


# ---------------------------------------------------------------------- what broke it once


def small(criterion=None, net=None, X=None, Y=None, **kwargs):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(20, 3, generator=g) if X is None else X
    Y = torch.randn(20, 2, generator=g) if Y is None else Y
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) if net is None else net()
    return LossFunction(TensorDataset(X, Y), criterion or nn.MSELoss(), net, **kwargs)


def test_inference_mode_no_grad_and_autocast_change_nothing():
    loss = small()
    theta = loss.parameters()
    gradient, product = loss.gradient(theta)[1], loss.hvp(theta, theta)
    for context in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        fresh = small()
        with context:
            inside = fresh.parameters()
            assert torch.equal(fresh.gradient(theta)[1], gradient)
            assert torch.equal(fresh.hvp(theta, theta), product)
            assert torch.equal(fresh.gradient(inside)[1], gradient)
            fresh.evaluate(theta)
        assert torch.equal(fresh.gradient(theta)[1], gradient)
        assert torch.equal(fresh.gradient(inside)[1], gradient)


@pytest.mark.parametrize(
    "call",
    [
        lambda: LossFunction.from_callable(lambda x: torch.tensor(float((x.detach() ** 2).sum()))).gradient(
            torch.ones(3)
        ),
        lambda: (loss := small(lambda o, y: (o.detach() - y).square().mean())).gradient(loss.parameters()),
    ],
)
def test_a_loss_without_a_graph_is_refused(call):
    with pytest.raises(CriterionError, match="doesn't depend on θ through differentiable torch functions"):
        call()


def test_subclasses_of_tensor_dataset_and_collate_functions_have_their_say():
    class Scaled(TensorDataset):
        def __getitem__(self, i):
            x, y = super().__getitem__(i)
            return 10 * x, y

    def tenfold(items):
        X, Y = torch.utils.data.default_collate(items)
        return 10 * X, Y

    plain = small()
    X, Y = plain.data.dataset.tensors
    theta = plain.parameters()
    expected = float(LossFunction(TensorDataset(10 * X, Y), nn.MSELoss(), plain.net)(theta))
    assert float(LossFunction(Scaled(X, Y), nn.MSELoss(), plain.net)(theta)) == pytest.approx(expected)
    assert float(LossFunction(TensorDataset(X, Y), nn.MSELoss(), plain.net, collate_fn=tenfold)(theta)) == (
        pytest.approx(expected)
    )


def test_a_net_that_works_in_place_leaves_the_data_alone():
    loss = small(net=lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)))
    X = loss.data.dataset.tensors[0]
    before = X.clone()
    theta = loss.parameters()
    assert float(loss(theta)) == float(loss.gradient(theta)[0]) == loss.evaluate(theta)[0]
    assert torch.equal(X, before)


def test_a_net_that_writes_its_parameters_is_refused():
    tokens = torch.arange(20) % 5
    with pytest.raises(InvalidInputError, match="max_norm"):
        small(net=lambda: nn.Sequential(nn.Embedding(5, 4, max_norm=0.5), nn.Linear(4, 2)), X=tokens)


def test_dropout_is_found_where_the_values_do_not_show_it():
    def dead():
        net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
        nn.init.zeros_(net[2].weight)
        return net

    with pytest.raises(NonDeterministicLossError, match=r"1 is Dropout\(p=0\.5"):
        small(net=dead)
    with pytest.raises(NonDeterministicLossError, match="draws random numbers"):
        small(lambda o, y: (nn.functional.dropout(o, 1e-6) - y).square().mean())
    loss = small(net=lambda: dead().eval())
    loss.net.train()
    for call in (loss, loss.gradient, loss.linearize, loss.evaluate):
        with pytest.raises(InvalidInputError, match="switched between train and eval mode"):
            call(loss.parameters())


def test_the_criterion_is_checked_whatever_the_chunks():
    for criterion in (
        lambda o, y: (o - y).square().sum(),
        lambda o, y: ((o - o.mean(0)) - y).square().mean(),
    ):
        with pytest.raises(CriterionError, match="can't be computed in chunks"):
            small(criterion, batch_size=1)
    broadcast = nn.MSELoss(reduction="mean")
    with (
        pytest.warns(UserWarning, match="target size"),  # torch's own, of the broadcast
        pytest.raises(CriterionError, match=r"shapes \(20, 1\) and \(20,\)"),
    ):
        small(broadcast, net=lambda: nn.Linear(3, 1), Y=torch.arange(20.0))
    ignored = torch.arange(20) % 2
    ignored[17] = -100
    chunked = small(nn.functional.cross_entropy, Y=ignored, batch_size=3)
    whole = small(nn.functional.cross_entropy, Y=ignored)
    assert float(chunked(chunked.parameters())) == pytest.approx(float(whole(whole.parameters())), rel=1e-6)


def test_criteria_whose_terms_cancel_are_accepted():
    signs = 1.0 - 2.0 * (torch.arange(20) % 2)
    small(lambda o, y: (o.sum(1) * y).mean() * 0 + (y * 1e3).mean() + o.sum() * 0, Y=signs)


def test_a_linearization_keeps_its_own_theta():
    for kwargs in ({}, {"batch_size": 5, "memory_budget": 1}):
        loss = small(**kwargs)
        theta = loss.parameters()
        lin, v = loss.linearize(theta), torch.ones_like(theta)
        before = lin.hvp(v)
        theta.add_(0.5)
        assert torch.equal(lin.hvp(v), before)


def test_hooks_and_buffers_of_net_and_criterion_are_left_as_they_were():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("n", torch.zeros(()))

        def forward(self, output, target):
            self.n += 1
            return (output - target).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weight_norm of old is deprecated
        loss = small(
            Counting(), net=lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
        )
    theta = loss.parameters()
    weight = loss.net[0].weight
    loss.linearize(theta + 1).hvp(theta)
    assert loss.net[0].weight is weight
    assert float(loss.criterion.n) == 0


def test_ragged_batch_norm_and_other_mistakes_are_named():
    def norm():
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    with pytest.raises(InvalidInputError, match="at least two samples in a chunk"):
        small(net=norm, X=torch.randn(9, 3, generator=torch.Generator()), Y=torch.zeros(9, 2), batch_size=4)
    with pytest.raises(TypeError, match=r"got the class: MSELoss\(\)"):
        small(nn.MSELoss)
    with pytest.raises(TypeError, match=r"Wrap it: torch\.utils"):
        LossFunction((torch.zeros(3, 2), torch.zeros(3, 2)), nn.MSELoss(), small().net)
    with pytest.raises(InvalidInputError, match="lazy parameters"):
        small(net=lambda: nn.LazyLinear(2))
