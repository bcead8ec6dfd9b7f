"""torch.optim through integrate(): the plain loop bit for bit, schedules, momentum, and mini-batches."""

import copy

import numpy as np
import pytest
import torch
from helpers.classification import SCHEDULES, TORCH, data, network, problem
from helpers.loops import plain_loop
from torch import nn
from torch.nn import functional as F

import gradflow
from gradflow import problems, steps
from gradflow.errors import GradflowError
from gradflow.integrators import METHODS
from gradflow.integrators.optimizers.registry import method_of

double = torch.float64
NESTEROV = {"polyak": False, "nesterov": True}
EXTRA = {
    "lbfgs": [{"max_iter": 4}, {"max_iter": 5, "line_search_fn": "strong_wolfe", "history_size": 3}],
    "sgd": [{}, {"lr": 0.1, "momentum": 0.9, "dampening": 0.9}, {"lr": 0.1, "momentum": 0.5, "nesterov": True},
            {"lr": 0.1, "weight_decay": 0.1}],
    "rmsprop": [{}, {"momentum": 0.5, "centered": True, "weight_decay": 0.01}],
    "adam": [{}, {"amsgrad": True, "betas": (0.5, 0.9), "weight_decay": 0.1}],
    "adamw": [{}, {"lr": 0.01, "eps": 1e-3}],
}  # fmt: skip
CASES = [(name, options) for name in TORCH for options in EXTRA.get(name, [{}])]


def in_plain_torch(make, n, dtype=torch.float32, bias=True, **options):
    """Train the network as everybody does; θ after every step."""
    X, y = data()
    return plain_loop(network(dtype, bias), F.cross_entropy, (X.to(dtype), y), make, n, **options)


def recorded(method, n, loss=None, **options):
    loss = problem() if loss is None else loss
    return gradflow.integrate(loss, method=method, max_steps=n, params_every=steps(1), **options)


def test_all_of_torch_optim_is_there():
    every = {
        cls for name in dir(torch.optim)
        if isinstance(cls := getattr(torch.optim, name), type) and issubclass(cls, torch.optim.Optimizer)
    }  # fmt: skip
    assert {METHODS[name].optimizer for name in TORCH} == every - {
        torch.optim.Optimizer,
        torch.optim.SparseAdam,
    }


@pytest.mark.parametrize("dtype", [torch.float32, double])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_it_is_the_plain_loop_bit_for_bit(method, options, dtype):
    bias = method != "muon"  # which takes matrices alone
    run = recorded(method, 12, problem(dtype, bias), **options)
    expected = in_plain_torch(lambda p: METHODS[method].optimizer(p, **options), 12, dtype, bias)
    assert np.array_equal(run.theta.values[1:], expected)
    assert not np.array_equal(expected[0], expected[-1])


@pytest.mark.parametrize("method", ["adam", "lbfgs", "sgd", "adafactor"])
def test_chunks_add_up_to_the_whole(method):
    """Gradients are accumulated over chunks; in float64 that is the same to rounding."""
    options = (
        {"max_iter": 4} if method == "lbfgs" else {}
    )  # converged, it moves by rounding over tiny curvatures
    whole, chunked = (recorded(method, 3, problem(double, batch_size=n), **options) for n in (None, 7))
    assert np.allclose(whole.theta, chunked.theta, rtol=0, atol=1e-10)
    assert chunked.attrs["gradflow_config"].count('"batch_size": 7')


# ---------------------------------------------------------------------- classes of one's own


class Signs(torch.optim.Optimizer):
    """Sign descent, which rebinds the parameters' data."""

    def __init__(self, params, lr, flip=False):
        super().__init__(params, {"lr": lr})
        self.flip = flip

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data = p.data - self.param_groups[0]["lr"] * p.grad.sign() * (-1 if self.flip else 1)


def test_a_class_of_ones_own():
    loss = problem(double)
    run = recorded(Signs, 5, loss, lr=0.01)
    theta = loss.parameters()
    for k in range(5):
        theta = theta - 0.01 * loss.gradient(theta)[1].sign()
        assert np.array_equal(run.theta.values[k + 1], theta)
    assert run.attrs["method"] == "signs"
    assert np.allclose(run.time, np.arange(6) * 0.01)
    up = recorded(Signs, 5, loss, method_options={"lr": 0.01, "flip": True})
    assert float(up.train_loss[-1]) > float(up.train_loss[0])


@pytest.mark.parametrize(
    ("method", "options", "kind", "text"),
    [
        ("adam", {"lr": -1.0}, ValueError, "torch.optim.*Adam: Invalid learning rate"),
        ("adam", {"betas": (0.9, 1.5)}, ValueError, "Invalid beta parameter"),
        ("adam", {"beta1": 0.9}, TypeError, "no option 'beta1'; did you mean 'betas'"),
        ("sgd", {"nesterov": True}, ValueError, "Nesterov momentum requires"),
        ("rmspropp", {}, ValueError, "No method 'rmspropp'; did you mean 'rmsprop'"),
        ("muon", {}, ValueError, "Muon"),
        (Signs, {}, TypeError, "needs lr"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), {}, TypeError, "as its class, got an instance: pass SGD"),
        (nn.Linear, {}, TypeError, "a class of optimisers, got type"),
        ("adam", {"clip_norm": 0.0}, ValueError, "clip_norm > 0"),
        ("adam", {"batch_size": 0}, ValueError, "batch_size ≥ 1"),
        ("adam", {"sample": "random"}, ValueError, "sample as one of shuffle, replacement, order"),
        ("adam", {"scheduler_every": "batch"}, ValueError, "scheduler_every as one of step, epoch"),
        ("adam", {"scheduler": 3}, TypeError, "scheduler as a function of the optimiser"),
        ("adam", {"scheduler": lambda o: 3}, TypeError, "to return a scheduler, got int"),
        ("adam", {"scheduler": "StepLr(step_size=3)"}, ValueError, "did you mean 'StepLR'"),
        ("adam", {"scheduler": "StepLR(3)"}, ValueError, "scheduler as NAME"),
        ("adam", {"scheduler": "StepLR(step_size=3"}, ValueError, "scheduler as NAME"),
        ("adam", {"scheduler": "StepLR(size=3)"}, ValueError, "StepLR"),
        ("adam", {"scheduler": "__import__('os').getcwd()"}, ValueError, "scheduler as NAME"),
        ("polyak", {"lr": 0.0}, ValueError, "lr > 0"),
        ("polyak", {"lr": 0.1, "momentum": 1.0}, ValueError, "momentum < 1"),
        ("polyak", {"lr": 0.1, "momentum": -0.1}, ValueError, "momentum ≥ 0"),
        ("polyak", {"lr": 0.1, "momentum": "0.9"}, TypeError, "momentum to be a number"),
        ("polyak", {"momentum": 0.9}, TypeError, "needs lr"),
        ("polyak", {"lr": 0.1, "beta": 0.9}, TypeError, "no option 'beta'"),
    ],
)  # fmt: skip
def test_mistakes(method, options, kind, text, tmp_path):
    with pytest.raises(kind, match=text) as caught:
        gradflow.integrate(problem(), method=method, max_steps=2, out=tmp_path / "x.nc", **options)
    assert isinstance(caught.value, GradflowError)
    assert not list(tmp_path.iterdir())


def test_mini_batches_need_data():
    with pytest.raises(ValueError, match="batch_size needs a loss with data"):
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(2), method="sgd", lr=0.1, max_steps=2, batch_size=2
        )


# ---------------------------------------------------------------------- momentum by the names of its inventors


@pytest.mark.parametrize("method", NESTEROV)
@pytest.mark.parametrize("arch", ["fc-tanh-depth1", "cnn-relu"])
def test_steps_with_momentum_are_torchs_bit_for_bit(method, arch):
    train, _, theta = problems.load("digits", arch, "ce")
    run = gradflow.integrate(
        train, theta, method=method, lr=0.05, momentum=0.8, max_steps=6, params_every=gradflow.steps(1)
    )
    expected = plain_loop(
        copy.deepcopy(train.source.net), nn.CrossEntropyLoss(), train.source.data.dataset.tensors,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=NESTEROV[method]), 6,
    )  # fmt: skip
    assert np.array_equal(run.theta.values[1:], expected)


@pytest.mark.parametrize("method", NESTEROV)
def test_a_step_counts_as_lr_over_one_minus_momentum(method):
    run = gradflow.integrate(
        lambda x: (x**2).sum(),
        torch.ones(2, dtype=double),
        method=method,
        lr=0.01,
        momentum=0.9,
        max_steps=50,
    )
    assert np.array_equal(run.time, np.arange(51) * (0.01 / (1 - 0.9)))
    assert run.attrs["time_definition"] == "flow"


@pytest.mark.parametrize("method", NESTEROV)
def test_an_unstable_step_can_be_refused(method):
    by_hand = gradflow.solver(
        method, lambda x: 0.5 * (x**2).sum(), torch.ones(1, dtype=double), lr=0.9, momentum=0.9, error_if_unstable=True
    )  # fmt: skip

    def refusal():
        for _ in range(20):
            at, loss = by_hand.params, by_hand.loss
            try:
                by_hand.step()
            except gradflow.IntegrationError as error:
                return str(error), at, loss
        raise AssertionError("no step was refused")

    message, at, loss = refusal()
    assert refusal()[0] == message
    assert torch.equal(by_hand.params, at)
    assert by_hand.loss == loss


def test_dampening_counts_only_where_there_is_momentum():
    """Torch ignores it without: two steps of lr take the time of two."""

    def times(**options):
        theta = torch.ones(2, dtype=torch.float64)
        run = gradflow.integrate(
            lambda x: 0.5 * (x**2).sum(), theta, method="sgd", lr=0.1, max_steps=2, **options
        )
        return run.time.values

    assert times(dampening=0.5) == pytest.approx([0.0, 0.1, 0.2])
    assert times(dampening=0.5, momentum=0.8) == pytest.approx([0.0, 0.25, 0.5])  # (1 − τ)/(1 − β)


# ---------------------------------------------------------------------- schedules, clipping


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_schedulers_do_what_they_do_in_the_in_plain_torch(name, method):
    options = {"lr": 0.05} | ({"momentum": 0.5} if method == "sgd" else {})
    run = recorded(method, 14, scheduler=SCHEDULES[name], **options)
    expected = in_plain_torch(
        lambda p: METHODS[method].optimizer(p, **options), 14, scheduler=SCHEDULES[name]
    )
    assert np.array_equal(run.theta.values[1:], expected)
    assert len(set(run.step_size.values[1:].tolist())) > 1
    assert "stability_threshold" not in run.attrs


def test_time_is_the_sum_of_learning_rates():
    run = recorded("adam", 6, lr=0.5, scheduler="StepLR(step_size=2, gamma=0.5)")
    assert run.step_size.values[1:].tolist() == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    assert np.allclose(run.time, [0, 0.5, 1, 1.25, 1.5, 1.625, 1.75], rtol=1e-15)
    assert run.attrs["time_definition"] == "sum of learning rates"
    heavy = recorded("sgd", 4, lr=0.1, momentum=0.9, scheduler="StepLR(step_size=2, gamma=0.5)")
    assert np.allclose(heavy.step_size[1:], [1.0, 1.0, 0.5, 0.5])
    assert heavy.attrs["time_definition"] == "flow"
    average = recorded("sgd", 4, lr=0.1, momentum=0.9, dampening=0.9)
    assert np.allclose(average.time, np.arange(5) * 0.1)
    decayed = recorded("sgd", 4, lr=0.1, weight_decay=0.1)
    assert decayed.attrs["time_definition"] == "sum of learning rates"


def test_runs_of_different_times_are_not_aligned():
    with pytest.raises(ValueError, match="times mean different things"):
        gradflow.compare(recorded("adam", 3), recorded("sgd", 3))


def test_a_learning_rate_of_zero_stays():
    run = recorded("sgd", 6, lr=0.1, scheduler="LinearLR(start_factor=1.0, end_factor=0.0, total_iters=3)")
    assert run.attrs["status"] == "max_steps"
    assert np.array_equal(run.theta[-1], run.theta[3])
    assert (run.step_size.values[4:] == 0).all()


@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"clip_norm": 0.1}, lambda p: nn.utils.clip_grad_norm_(p, 0.1)),
        ({"clip_value": 0.01}, lambda p: nn.utils.clip_grad_value_(p, 0.01)),
    ],
)
@pytest.mark.parametrize("method", ["sgd", "adam", "lbfgs"])
def test_clipping(method, options, clip):
    run = recorded(method, 6, lr=0.5, **options)
    expected = in_plain_torch(lambda p: METHODS[method].optimizer(p, lr=0.5), 6, clip=clip)
    assert np.array_equal(run.theta.values[1:], expected)
    assert not np.array_equal(run.theta, recorded(method, 6, lr=0.5).theta)


# ---------------------------------------------------------------------- mini-batches


def batches_of(n, size, seed, N=40):
    """The mini-batches of n steps, as documented: Philox with key (seed, epoch)."""
    per = -(-N // size)
    found = []
    for k in range(n):
        epoch, i = divmod(k, per)
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(N)
        found.append(torch.from_numpy(order[i * size : (i + 1) * size]))
    return found


@pytest.mark.parametrize("size", [8, 12, 40])
@pytest.mark.parametrize("method", ["sgd", "adam", "lbfgs"])
def test_mini_batches_are_those_of_the_in_plain_torch(method, size):
    run = recorded(method, 13, lr=0.05, batch_size=size, sample_seed=3)
    batches = batches_of(13, size, 3)
    expected = in_plain_torch(lambda p: METHODS[method].optimizer(p, lr=0.05), 13, batches=batches)
    assert np.array_equal(run.theta.values[1:], expected)
    per = -(-40 // size)
    for epoch in range(13 // per):  # without replacement, and anew each time
        assert sorted(torch.cat(batches[epoch * per : (epoch + 1) * per]).tolist()) == list(range(40))
    if size < 40:
        assert batches[0].tolist() != batches[per].tolist()


def test_the_recorded_loss_is_that_of_all_data():
    loss = problem(double)
    run = recorded("sgd", 10, loss, lr=0.1, batch_size=8)
    for θ, value, norm in zip(run.theta.values, run.train_loss.values, run.gradient_norm.values, strict=True):
        full, gradient = loss.gradient(torch.from_numpy(θ))
        assert value == float(full)
        assert norm == pytest.approx(float(gradient.norm()), rel=1e-14)


def test_mini_batches_cost_their_share():
    """Ten batches of 8 of 40 samples are two gradients, beside the one at the start; what is recorded doesn't count."""
    run = recorded("sgd", 10, lr=0.1, batch_size=8)
    assert int(run.n_gradients[-1]) == 1 + 2
    assert run.attrs["n_gradients_observing"] == 11


def test_orders_of_samples():
    order = recorded("sgd", 6, lr=0.1, batch_size=8, sample="order")
    rows = [torch.arange(40)[(k % 5) * 8 : (k % 5 + 1) * 8] for k in range(6)]
    expected = in_plain_torch(lambda p: torch.optim.SGD(p, lr=0.1), 6, batches=rows)
    assert np.array_equal(order.theta.values[1:], expected)
    drawn = [recorded("sgd", 6, lr=0.1, batch_size=8, sample="replacement", sample_seed=s) for s in (1, 1, 2)]
    assert np.array_equal(drawn[0].theta, drawn[1].theta)
    assert not np.array_equal(drawn[0].theta, drawn[2].theta)


def test_schedulers_by_epoch():
    plateau = SCHEDULES["ReduceLROnPlateau"]
    for scheduler in (SCHEDULES["StepLR"], plateau):
        run = recorded("sgd", 40, lr=0.3, batch_size=16, scheduler=scheduler, scheduler_every="epoch")
        expected = in_plain_torch(
            lambda p: torch.optim.SGD(p, lr=0.3),
            40,
            scheduler=scheduler,
            batches=batches_of(40, 16, 0),
            per=3,
        )
        assert np.array_equal(run.theta.values[1:], expected)
        assert len(set(run.step_size.values[1:].tolist())) > 2


def test_goals_of_mini_batch_runs_are_looked_at_with_the_records():
    loss = problem(double)
    run = gradflow.integrate(
        loss, method="sgd", lr=0.3, batch_size=8, loss_goal=0.9, max_steps=500, save_every=steps(7)
    )
    assert run.attrs["status"] == "loss_goal"
    assert int(run.step[-1]) % 7 == 0
    assert float(run.train_loss[-1]) <= 0.9 < float(run.train_loss[-2])


class Growth(torch.optim.Optimizer):
    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.data *= 1e10


def test_a_mini_batch_run_that_blows_up_ends():
    with pytest.warns(gradflow.IntegrationWarning, match="parameters that aren't finite"):
        run = gradflow.integrate(
            problem(), method=Growth, lr=0.1, batch_size=8, max_steps=2000, save_every=steps(500)
        )
    assert run.attrs["status"] == "not_finite"


# ---------------------------------------------------------------------- the forms of the teaching notebook


def test_momentum_as_an_average():
    """v ← βv + (1 − β)g, θ ← θ − ηv is dampening = β; torch starts the average at the first gradient."""
    loss, β, η = problem(double), 0.9, 0.5
    run = recorded("sgd", 20, loss, lr=η, momentum=β, dampening=β)
    θ = loss.parameters()
    v = loss.gradient(θ)[1]
    for k in range(20):
        v = v if k == 0 else β * v + (1 - β) * loss.gradient(θ)[1]
        θ = θ - η * v
        assert np.allclose(run.theta.values[k + 1], θ, rtol=0, atol=1e-14)


def test_rmsprop_without_epsilon():
    """v ← βv + (1 − β)g², θ ← θ − ηg/√v."""
    loss, β, η = problem(double), 0.9, 0.01
    run = recorded("rmsprop", 20, loss, lr=η, alpha=β, eps=0.0)
    θ, v = loss.parameters(), 0
    for k in range(20):
        g = loss.gradient(θ)[1]
        v = β * v + (1 - β) * g**2
        θ = θ - η * g / v.sqrt()
        assert np.allclose(run.theta.values[k + 1], θ, rtol=0, atol=1e-12)


def test_a_step_is_a_function_of_its_state():
    """What a step returns doesn't depend on what was done with the optimiser since its state was made."""
    for name, options in {
        "adam": {},
        "lbfgs": {},
        "adafactor": {},
        "polyak": {"lr": 0.02},
        "nesterov": {"lr": 0.02},
    }.items():
        integrator = METHODS[name](**options)
        flow = gradflow.flows.Field(problem(double))
        point = flow.at(flow.loss.parameters())
        state = integrator.step(point, 0.1, integrator.init(point)).state
        kept = copy.deepcopy(state.saved)
        first, second = (integrator.step(point, 0.1, state) for _ in range(2))
        integrator.step(flow.at(first.theta), 0.1, first.state)
        third = integrator.step(point, 0.1, state)
        assert torch.equal(first.theta, second.theta)
        assert torch.equal(first.theta, third.theta)
        assert not torch.equal(first.theta, point.theta)
        assert str(kept) == str(state.saved)


def test_methods_say_where_they_come_from():
    cls = method_of(torch.optim.Adam)
    assert cls.__doc__.startswith("``torch.optim.Adam``")
    assert cls(lr=0.1).settings()["betas"] == (0.9, 0.999)
