"""Polyak's and Nesterov's momentum: torch's own steps, on a flow's clock, stable up to their thresholds."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import gradflow
from gradflow import problems

double = torch.float64
KINDS = {"polyak": False, "nesterov": True}


def in_plain_torch(net, criterion, inputs, targets, n, **options):
    """The training loop that everybody writes; θ after every step."""
    optimizer = torch.optim.SGD(net.parameters(), **options)
    thetas = []
    for _ in range(n):
        optimizer.zero_grad()
        criterion(net(inputs), targets).backward()
        optimizer.step()
        thetas.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(thetas)


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("arch", ["fc-tanh-depth1", "cnn-relu"])
def test_steps_are_torchs_bit_for_bit(method, arch):
    train, _, theta = problems.load("digits", arch, "ce")
    run = gradflow.integrate(
        train, theta, method=method, lr=0.05, momentum=0.8, max_steps=6, params_every=gradflow.steps(1)
    )
    net = train.source.net
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    expected = in_plain_torch(
        net, nn.CrossEntropyLoss(), *train.source.data.dataset.tensors, 6, lr=0.05, momentum=0.8, nesterov=KINDS[method]
    )  # fmt: skip
    nn.utils.vector_to_parameters(before, net.parameters())
    assert np.array_equal(run.theta.values[1:], expected.numpy())


@pytest.mark.parametrize("method", KINDS)
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


@pytest.mark.parametrize("method", KINDS)
def test_a_step_is_a_function_of_its_state(method):
    """A step that was refused, or is taken twice, leaves no trace in the momentum."""
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=double)
    integrator = gradflow.integrators.METHODS[method](lr=0.02)
    flow = gradflow.integrators.Flow(train)
    point = flow.at(theta)
    state = integrator.step(point, 0.2, integrator.init(point)).state
    kept = copy.deepcopy(integrator.portable(state)["saved"]["state"])
    first, second = (integrator.step(point, 0.2, state) for _ in range(2))
    assert torch.equal(first.theta, second.theta)
    assert not torch.equal(first.theta, theta)
    assert set(kept) == {"0.weight", "0.bias", "2.weight"}
    for name, each in integrator.portable(state)["saved"]["state"].items():
        assert torch.equal(each["momentum_buffer"], kept[name]["momentum_buffer"])


@pytest.mark.parametrize("method", KINDS)
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


def spectral_radius(method, λ, lr, β):
    """Of the linear map (θ, v) ↦ (θ', v') on ½λθ²."""
    v = np.array([λ, β])  # v' = λθ + βv
    θ = np.array([1.0, 0.0]) - lr * (np.array([λ, 0.0]) + β * v if KINDS[method] else v)
    return np.abs(np.linalg.eigvals(np.stack([θ, v]))).max()


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("β", [0.0, 0.5, 0.9, 0.99])
def test_thresholds_are_where_the_spectral_radius_is_one(method, β):
    lr = 0.1
    threshold = gradflow.integrators.METHODS[method](lr=lr, momentum=β).stability_threshold
    assert spectral_radius(method, threshold, lr, β) == pytest.approx(1.0, abs=1e-12)
    assert spectral_radius(method, 0.999 * threshold, lr, β) < 1
    assert spectral_radius(method, 1.001 * threshold, lr, β) > 1
    # and so it is for the method as it runs
    ends = []
    for λ in (0.98 * threshold, 1.02 * threshold):
        run = gradflow.integrate(
            lambda x, λ=λ: 0.5 * λ * (x**2).sum(), torch.ones(1, dtype=double), method=method, lr=lr, momentum=β,
            max_steps=1000, save_every=gradflow.steps(1000),
        )  # fmt: skip
        ends.append(float(run.train_loss[-1] / run.train_loss[0]))
        assert run.attrs["stability_threshold"] == threshold
    assert ends[0] < 1e-2
    assert ends[1] > 1e2


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"lr": 0.0}, ValueError, "lr > 0"),
        ({"lr": 0.1, "momentum": 1.0}, ValueError, "momentum < 1"),
        ({"lr": 0.1, "momentum": -0.1}, ValueError, "momentum ≥ 0"),
        ({"lr": 0.1, "momentum": "0.9"}, TypeError, "momentum to be a number"),
        ({"momentum": 0.9}, TypeError, "needs lr"),
        ({"lr": 0.1, "beta": 0.9}, TypeError, "no option 'beta'"),
    ],
)
def test_mistakes(options, kind, text):
    with pytest.raises(kind, match=text):
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(1, dtype=double), method="polyak", t_max=1.0, **options
        )


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
