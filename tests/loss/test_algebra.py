"""Losses add up: values, derivatives, and what is known of the data."""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from helpers import zoo
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, SpectrumService, penalty
from gradflow.errors import InvalidInputError, InvalidTypeError

double = torch.float64


def square(theta):
    return theta.square().sum()


def quartic(theta):
    return (theta**4).sum()


def network_loss(name="mlp-ce", **options):
    case = zoo.make(name)
    return LossFunction(case.dataset, case.criterion, case.net, **options)


def drawn(loss, k, generator):
    shape = (loss.n_parameters, k) if k else (loss.n_parameters,)
    return torch.randn(shape, generator=generator, dtype=double)


SIZES = [{}, {"batch_size": 4}, {"batch_size": 4, "memory_budget": 1}]


@pytest.mark.parametrize("sizes", SIZES, ids=["one-chunk", "kept", "rebuilt"])
def test_a_penalty_adds_its_exact_derivatives(sizes, generator):
    loss = network_loss(**sizes)
    total = loss + 0.3 * penalty(quartic)
    theta, V = loss.parameters() + 0.1, drawn(loss, 4, generator)
    value, gradient = loss.gradient(theta)
    lin = total.linearize(theta)
    assert torch.equal(total(theta), value + 0.3 * quartic(theta))
    assert torch.equal(total.gradient(theta)[0], total(theta))
    assert torch.equal(total.gradient(theta)[1], lin.gradient)
    assert torch.allclose(lin.gradient, gradient + 1.2 * theta**3, rtol=1e-15, atol=1e-16)
    expected = loss.hvp(theta, V) + 3.6 * theta[:, None] ** 2 * V
    assert torch.allclose(lin.hvp(V), expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(lin @ V, lin.hvp(V))
    assert lin.n_hvps == 12
    evaluated = total.evaluate(theta)
    assert evaluated[0] == pytest.approx(float(lin.value), rel=1e-14)
    assert evaluated[1] == loss.evaluate(theta)[1]
    theta.requires_grad_(True)
    (through_torch,) = torch.autograd.grad(total(theta), theta)
    assert torch.allclose(through_torch, lin.gradient, rtol=1e-13, atol=1e-15)


def test_weights_and_nested_sums_multiply_out(generator):
    loss = network_loss()
    theta, v = loss.parameters(), drawn(loss, 0, generator)
    a, b = loss, penalty(square)
    combined = 2 * (a - 0.5 * b) + (-b) * np.float32(0.25)
    assert [weight for weight, _ in combined.parts] == [2.0, -1.0, -0.25]
    expected = 2 * loss.hvp(theta, v) - 1.25 * 2 * v
    assert torch.allclose(combined.hvp(theta, v), expected, rtol=1e-14, atol=1e-15)
    assert torch.equal(sum([a, b])(theta), (a + b)(theta))
    assert torch.equal((1.0 * a).gradient(theta)[1], a.gradient(theta)[1])
    for number in (0.5, np.float64(0.5), np.float32(0.5), np.int64(3)):
        assert isinstance(number * a, LossFunction)
        assert torch.equal((number * a)(theta), (a * float(number))(theta))


def test_the_data_term_gives_what_is_known_of_the_data():
    loss = network_loss("mlp-ce", batch_size=4)
    for total in (loss + penalty(square), penalty(square) + loss):
        for name in (
            "n_parameters",
            "n_samples",
            "n_outputs",
            "stiff_dim",
            "device",
            "dtype",
            "names",
            "kinks",
        ):
            assert getattr(total, name) == getattr(loss, name), name
        assert total.classifies
        assert total.memory_budget == loss.memory_budget
        theta = loss.parameters()
        assert torch.equal(total.parameters(), theta)
        assert torch.equal(total.initialize_parameters(seed=3), loss.initialize_parameters(seed=3))
        state, expected = total.state_dict(theta), loss.state_dict(theta)
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        assert total.evaluate(theta)[1] == loss.evaluate(theta)[1]
        assert all(torch.equal(a, b) for a, b in zip(total.leaves(theta), loss.leaves(theta), strict=True))


def test_parts_of_the_data_leave_the_penalty_whole():
    loss, theta = network_loss(batch_size=4), None
    total = loss + penalty(square)
    theta = loss.parameters()
    rows = torch.tensor([3, 0, 3])
    for part, expected in (
        (total.minibatch(rows), loss.minibatch(rows)),
        (total.subset([1, 2]), loss.subset([1, 2])),
        (total.first(5), loss.first(5)),
    ):
        assert part.n_samples == expected.n_samples
        assert torch.equal(part(theta), expected(theta) + square(theta))
        assert part.evaluate(theta)[1] == expected.evaluate(theta)[1]
    assert total.first(1000) is total
    nested = total.minibatch(torch.tensor([5, 6, 7])).minibatch(torch.tensor([2, 0]))
    assert torch.equal(nested(theta), total.minibatch(torch.tensor([7, 5]))(theta))


def test_descriptions_name_all_terms_and_weights():
    loss = network_loss().label(dataset="zoo")
    total = (loss + 0.5 * penalty(square)).label(note="mine")
    said = json.loads(json.dumps(total.describe()))
    assert (said["dataset"], said["note"], said["n_samples"]) == ("zoo", "mine", loss.n_samples)
    assert [term["weight"] for term in said["terms"]] == [1.0, 0.5]
    assert said["terms"][1]["function"] == "square"
    assert loss.fingerprint() in total.fingerprint()
    others = [loss, loss + penalty(square), 0.5 * loss + 0.5 * penalty(square), loss + 0.5 * total]
    assert len({each.fingerprint() for each in (total, *others)}) == 5


# ---------------------------------------------------------------------- several data sets


def two_data_sets():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    g = torch.Generator().manual_seed(1)
    sets = [
        TensorDataset(
            torch.randn(n, 3, generator=g, dtype=double), torch.randn(n, 2, generator=g, dtype=double)
        )
        for n in (6, 9)
    ]
    return net, *(LossFunction(data, nn.MSELoss(), net, batch_size=4) for data in sets)


def test_several_data_sets_of_one_net(generator):
    net, a, b = two_data_sets()
    total = a + 2.0 * b
    theta, v = a.parameters(), drawn(a, 0, generator)
    before = copy.deepcopy(net.state_dict())
    lin = total.linearize(theta)
    assert torch.allclose(lin.hvp(v), a.hvp(theta, v) + 2 * b.hvp(theta, v), rtol=1e-14, atol=1e-15)
    assert all(torch.equal(before[k], t) for k, t in net.state_dict().items())
    assert total.n_samples == a.n_samples == 6
    for call in (
        lambda: total.minibatch(torch.tensor([0])),
        lambda: total.subset([0]),
        lambda: total.first(2),
    ):
        with pytest.raises(InvalidInputError, match="one data set; this one is made of 2, of 6, 9 samples"):
            call()
    with pytest.raises(InvalidInputError, match="batch_size needs a loss with one data set"):
        gradflow.integrate(total, method="sgd", lr=0.1, batch_size=2, max_steps=1)
    with pytest.raises(InvalidInputError, match="abridged_size needs a loss with one data set"):
        gradflow.integrate(total, method="gd", lr=0.1, n_eigs=1, abridged_size=2, max_steps=1)
    run = gradflow.integrate(total, method="gd", lr=0.05, max_steps=3)
    assert float(run.train_loss[-1]) < float(run.train_loss[0])


def test_graphs_of_several_data_sets_are_kept_if_they_fit_together():
    net, a, b = two_data_sets()
    needed = [loss.kept_bytes(double) for loss in (a, b)]
    budget = max(needed) + 1
    tight = [
        LossFunction(loss.data.dataset, nn.MSELoss(), net, batch_size=4, memory_budget=budget)
        for loss in (a, b)
    ]
    assert all(loss.keeps_graphs(double) for loss in tight)
    total = tight[0] + tight[1]
    assert not total.keeps_graphs(double)
    assert (a + b).keeps_graphs(double)
    theta = a.parameters()
    assert torch.equal(total.hvp(theta, theta), (a + b).hvp(theta, theta))


# ---------------------------------------------------------------------- mistakes


def test_losses_of_unlike_parameters_are_refused():
    def of(net):
        return LossFunction(TensorDataset(torch.ones(4, 6), torch.ones(4, 2)), nn.MSELoss(), net)

    with torch.random.fork_rng():
        one = of(nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 2)))
        larger = of(nn.Linear(6, 2))
        renamed = of(nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 2)))
    with pytest.raises(InvalidInputError, match=r"the same θ, got 20 and 14 parameters"):
        one + larger
    with pytest.raises(InvalidInputError, match=r"differ in 1\.weight, 1\.bias, 2\.weight, 2\.bias"):
        one + renamed
    assert isinstance(one + of(copy.deepcopy(one.net)), LossFunction)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight):
    with pytest.raises(InvalidInputError, match="the weight of a loss to be finite"):
        weight * penalty(square)


def test_only_losses_add_up():
    loss = penalty(square)
    for wrong in (3.0, square, None):
        with pytest.raises(InvalidTypeError, match=r"Expected a loss to add to a loss.*gradflow\.penalty"):
            loss + wrong
    with pytest.raises(InvalidTypeError, match="the weight of a loss to be a number, got CallableLoss"):
        loss * loss
    with pytest.raises(InvalidInputError, match="needs a network; this loss is a callable"):
        (loss + loss).parameters()
    with pytest.raises(InvalidTypeError, match="Expected a callable theta -> scalar, got float"):
        penalty(0.1)


# ---------------------------------------------------------------------- where losses are used


def test_the_check_looks_at_the_sum():
    loss = network_loss()
    assert (loss + penalty(square)).check().passed

    def detached(theta):
        return (theta * theta.detach()).sum()

    with pytest.warns(gradflow.errors.CheckWarning, match="The gradient isn't that of the loss"):
        report = (loss + penalty(detached)).check()
    assert not report["gradient"].passed
    assert "samples" in report


def test_the_spectrum_of_a_sum_is_shifted_by_the_penalty():
    loss = network_loss("mlp-mse")
    theta = loss.parameters()
    plain = SpectrumService(loss).top(2, theta, tol=1e-8).values
    total = SpectrumService(loss + 0.5 * penalty(square)).top(2, theta, tol=1e-8).values
    assert torch.allclose(total, plain + 1.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("auto", {"t_max": 0.5, "save_every": 0.25}),
        ("rk4", {"t_max": 0.5, "save_every": 0.25}),
        ("gd", {"lr": 0.05, "max_steps": 4}),
        ("sgd", {"lr": 0.05, "max_steps": 4, "batch_size": 3}),
        ("lbfgs", {"lr": 0.05, "max_steps": 2}),
        ("esgd", {"lr": 0.01, "max_steps": 2}),
    ],
)
def test_every_kind_of_method_takes_a_sum(method, options):
    """As it takes the same criterion with the penalty inside."""
    case = zoo.make("mlp-ce")

    def penalized(output, target):
        return case.criterion(output, target) + 0.1 * sum(p.square().sum() for p in case.net.parameters())

    inside = LossFunction(case.dataset, penalized, case.net)
    total = LossFunction(case.dataset, case.criterion, case.net) + 0.1 * penalty(square)
    runs = [gradflow.integrate(loss, method=method, n_eigs=1, **options) for loss in (total, inside)]
    assert runs[0].train_loss.values == pytest.approx(runs[1].train_loss.values, rel=1e-9)
    assert runs[0].params.values == pytest.approx(runs[1].params.values, rel=1e-7, abs=1e-9)
    assert runs[0].eigenvalue.values == pytest.approx(runs[1].eigenvalue.values, rel=1e-3)


def test_another_weight_is_another_run(tmp_path):
    loss = network_loss()
    path = tmp_path / "run.nc"
    options = {"method": "gd", "lr": 0.05, "max_steps": 4, "resume": "auto", "out": path}
    with gradflow.integrate(loss + 0.1 * penalty(square), **options) as run:
        recorded = run.train_loss.values
    with gradflow.integrate(loss + 0.1 * penalty(square), **options) as again:
        assert np.array_equal(again.train_loss.values, recorded)
    with pytest.raises(gradflow.errors.ResumeError, match="data"):
        gradflow.integrate(loss + 0.2 * penalty(square), **options)


def test_the_landscape_of_a_sum():
    loss = network_loss()
    total = loss + penalty(square)
    theta = loss.parameters()
    ours, plain = (
        gradflow.landscape.random_directions(each, theta, n=1, normalize="filter")[0]
        for each in (total, loss)
    )
    assert torch.equal(ours.vector, plain.vector)


# ---------------------------------------------------------------------- kinds


def test_every_kind_is_a_loss_function():
    loss = network_loss()
    bowl = LossFunction.from_callable(square)
    for each in (loss, bowl, loss + bowl, loss.minibatch(torch.tensor([1])), loss.subset([1]), 2.0 * loss):
        assert isinstance(each, LossFunction)
        assert each.source is each  # the name of old
        assert isinstance(copy.copy(each), type(each))
        assert each.fingerprint()  # some of which is kept
        theta = torch.ones(each.n_parameters or 3, dtype=torch.float64)
        for other in (copy.deepcopy(each), pickle.loads(pickle.dumps(each))):
            assert torch.equal(other(theta), each(theta))
            assert other.fingerprint() == each.fingerprint()
    assert list(inspect.signature(LossFunction).parameters)[:3] == ["dataset", "criterion", "net"]
    assert "memory_budget" in inspect.signature(LossFunction).parameters


def test_the_class_of_all_losses_is_not_that_of_a_network():
    class Mine(LossFunction):
        pass

    case = zoo.make("mlp-mse")
    with pytest.raises(InvalidTypeError, match=r"derive from gradflow\.loss\.NetworkLoss"):
        Mine(case.dataset, case.criterion, case.net)


def test_mini_batches_of_other_samples_have_other_fingerprints():
    loss = network_loss()
    rows = [[0, 1], [1, 0], [0, 2], [0, 1, 1]]
    found = {loss.minibatch(torch.tensor(each)).fingerprint() for each in rows}
    assert len(found) == len(rows)
    assert loss.minibatch(torch.tensor([0, 1])).fingerprint() in found


def test_a_mini_batch_knows_its_net_and_samples():
    loss = network_loss(batch_size=4)
    part = loss.minibatch(torch.tensor([2, 0, 2, 1, 3]))
    assert (part.n_samples, part.n_outputs, part.classifies) == (5, loss.n_outputs, True)
    theta = part.parameters()
    assert torch.equal(theta, loss.parameters())
    assert part.evaluate(theta)[0] == float(part(theta))
    assert torch.equal(part.subset([1, 3])(theta), loss.subset([0, 1])(theta))
    assert part.check().passed
    up, down = (part.hvp((1 + h) * theta, theta) for h in (1e-5, -1e-5))
    assert torch.allclose(
        part.linearize(theta).third(theta) @ theta, (up - down) / 2e-5, rtol=1e-6, atol=1e-8
    )
    part.label(batch=1)
    assert "batch" not in loss.describe()
