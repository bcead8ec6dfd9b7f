"""The named problems."""

import numpy as np
import pytest
import torch
from torch import nn

from gradflow import HalfSquaredError, problems
from gradflow.problems.datasets import load_data


@pytest.mark.parametrize(("degree", "n"), [(3, 20), (5, 20), (4, 7), (0, 2)])
def test_chebyshev_against_its_closed_form(degree, n):
    data = load_data(f"chebyshev-{degree}-{n}")
    x = np.linspace(-1, 1, n)
    assert np.allclose(data.train_inputs[:, 0], x, atol=1e-15)
    assert np.allclose(data.train_targets[:, 0], np.cos(degree * np.arccos(x)), atol=1e-12)
    assert torch.equal(data.train_inputs, data.test_inputs)


def test_digits_are_the_uci_digits():
    data = load_data("digits")
    assert data.train_inputs.shape == (1437, 1, 8, 8)
    assert data.test_inputs.shape == (360, 1, 8, 8)
    assert data.train_inputs.mean(0).abs().max() < 1e-13
    assert data.test_inputs.mean(0).abs().max() > 1e-3  # centred by the training mean, not its own
    counts = torch.bincount(torch.cat([data.train_targets, data.test_targets]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    first = (data.train_inputs[0] - data.train_inputs.mean(0))[0] * 16
    ranges = data.train_inputs.amax(0) - data.train_inputs.amin(0)
    assert float(ranges.max()) == pytest.approx(1.0)
    assert torch.allclose((first - first[0, 0]).frac().abs().sum(), (first - first[0, 0]).frac().abs().sum())
    assert data.train_targets[:10].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("arch", "n_parameters"),
    [
        ("fc-tanh", 64 * 200 + 200 + 200 * 200 + 200 + 2010),
        ("fc-relu-depth1", 64 * 200 + 200 + 2010),
        ("fc-elu-depth3", 64 * 200 + 200 + 2 * (200 * 200 + 200) + 2010),
        ("fc-hardtanh", 55_210),
        ("fc-gelu", 55_210),
        ("fc-softplus-depth2", 55_210),
    ],
)
def test_architectures(arch, n_parameters):
    train, test, theta = problems.load("digits", arch, "ce")
    assert theta.shape == (n_parameters,)
    assert train.n_parameters == test.n_parameters == n_parameters
    assert (train.n_samples, test.n_samples) == (1437, 360)
    assert train.n_outputs == 10
    activation = {
        "tanh": "Tanh",
        "relu": "ReLU",
        "gelu": "GELU",
        "elu": "ELU",
        "hardtanh": "Hardtanh",
        "softplus": "Softplus",
    }
    names = [type(m).__name__ for m in train.net]
    assert names.count(activation[arch.split("-")[1]]) == (len(names) - 2) // 2


def test_regression_network_is_that_of_the_paper():
    thetas = torch.stack([problems.load("chebyshev-3-20", "regression", "mse", seed=s)[2] for s in range(40)])
    assert thetas.shape == (40, 300)
    weights, bias, output = thetas[:, :100], thetas[:, 100:200], thetas[:, 200:]
    assert (bias == 0).all()
    assert float(weights.std()) == pytest.approx(1.9 * (2 / 101) ** 0.5, rel=0.05)
    assert float(output.std()) == pytest.approx((2 / 101) ** 0.5, rel=0.05)


def test_default_initialization_is_torchs():
    theta = problems.load("digits", "fc-tanh", "mse", seed=5)[2]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(64, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10))
    assert torch.equal(theta, nn.utils.parameters_to_vector(net.parameters()).detach())


def test_seed_dtype_and_the_global_generator():
    a = problems.load("digits", "fc-tanh", "mse", seed=1)[2]
    assert torch.equal(a, problems.load("digits", "fc-tanh", "mse", seed=1)[2])
    assert not torch.equal(a, problems.load("digits", "fc-tanh", "mse", seed=2)[2])
    double = problems.load("digits", "fc-tanh", "mse", seed=1, dtype=torch.float64)[2]
    assert double.dtype == torch.float64
    assert torch.equal(double.float(), a)


def test_mse_is_half_the_squared_error_summed_over_one_hot_outputs():
    train, _, theta = problems.load("digits", "fc-tanh-depth1", "mse", dtype=torch.float64)
    data = load_data("digits")
    train.net.load_state_dict(train.state_dict(theta))
    output = train.net(data.train_inputs).detach()
    target = torch.eye(10).double()[data.train_targets]
    assert float(train(theta)) == pytest.approx(float(0.5 * ((output - target) ** 2).sum() / 1437), rel=1e-13)
    assert train.evaluate(theta)[1] == float((output.argmax(1) == data.train_targets).double().mean())
    with pytest.raises(ValueError, match="one shape"):
        HalfSquaredError()(torch.zeros(3, 1), torch.zeros(3))


def test_ce_is_torchs_and_chunks_pass_through():
    train, _, theta = problems.load("digits", "fc-tanh-depth1", "ce", dtype=torch.float64, batch_size=500)
    assert train.describe()["n_chunks"] == 3
    whole = problems.load("digits", "fc-tanh-depth1", "ce", dtype=torch.float64)[0]
    assert float(train(theta)) == pytest.approx(float(whole(theta)), rel=1e-13)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("digit", "fc-tanh", "mse"), "No data set 'digit'; did you mean 'digits'"),
        (("chebyshev-3", "regression", "mse"), "No data set 'chebyshev-3'"),
        (("chebyshev-3-1", "regression", "mse"), "at least N = 2"),
        (("digits", "fc-tan", "mse"), "No architecture 'fc-tan'; did you mean 'fc-tanh'"),
        (("digits", "fc-tanh-depth0", "mse"), "No architecture"),
        (("digits", "regression", "mse"), "one input and one output, the data 64 and 10"),
        (("digits", "fc-tanh", "rmse"), "No loss 'rmse'; did you mean 'mse'"),
        (("chebyshev-3-20", "regression", "ce"), "needs classes"),
    ],
)
def test_unknown_names_are_refused(args, text):
    with pytest.raises(ValueError, match=text):
        problems.load(*args)


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match=r"float32 or float64, got torch\.float16"):
        problems.load("digits", "fc-tanh", "mse", dtype=torch.float16)
