"""Named problems of symbols, points, matrices and images that came after those of Cohen et al."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gradflow
from gradflow.errors import InvalidInputError, UnknownNameError
from gradflow.problems import load
from gradflow.problems.datasets import load_data
from gradflow.problems.networks import make_network

PROBLEMS = {
    ("sort-5-4", "transformer", "ce"): (512, 128, 4),
    ("copy-4-3", "gpt", "ce"): (512, 128, 4),
    ("chars-32", "lstm", "ce"): (198, 49, 59),
    ("copy-4-3", "scan", "ce"): (512, 128, 4),
    ("sort-5-4", "lstm", "mse"): (512, 128, 20),
    ("moons", "fc-tanh", "ce"): (200, 200, 1),
    ("circles", "fc-tanh", "mse"): (200, 200, 2),
    ("completion-20-2", "factors", "mse"): (120, 280, 1),
    ("linear-50-50", "deep-linear-3-20-0.1", "mse"): (50, 50, 50),
    ("digits", "vit-tiny", "ce"): (1437, 360, 9),
}


@pytest.mark.parametrize("names", PROBLEMS, ids=" ".join)
def test_each_is_a_loss_with_exact_derivatives(names):
    # the self-check of derivatives is an error at construction
    train, test, theta = load(*names)
    assert (train.n_samples, test.n_samples, train.stiff_dim) == PROBLEMS[names]
    assert torch.equal(theta, load(*names, check=None)[2])
    assert not torch.equal(theta, load(*names, seed=1, check=None)[2])
    assert torch.allclose(
        train(theta).double(), load(*names, dtype=torch.float64, check=None)[0](theta.double()), rtol=1e-4
    )


def test_a_causal_network_doesnt_look_ahead():
    tokens = torch.randint(5, (3, 6), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 5
    for name, looks in (("gpt", False), ("lstm", False), ("scan", False), ("transformer", True)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = make_network(name, (6,), 5, 5)
        with torch.no_grad():
            before, after = net(tokens)[:, :4], net(changed)[:, :4]
        assert torch.allclose(before, after) != looks, name


def test_attention_is_torchs_own():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = make_network("gpt", (6,), 5, 5).blocks[0].double()
        x = torch.randn(2, 6, 64, dtype=torch.float64)
    q, k, v = block.qkv(block.before(x)).view(2, 6, 3, 4, 16).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 6, 64)
    y = x + block.join(mixed)
    torch.testing.assert_close(block(x), y + block.net(block.between(y)))


def test_what_the_data_are():
    data = load_data("sort-7-5")
    assert torch.equal(data.train_inputs.sort(1).values, data.train_targets)
    data = load_data("copy-7-5")
    assert torch.equal(data.train_inputs[:, :5], data.train_targets[:, 5:])
    assert set(data.train_targets[:, :5].flatten().tolist()) == {-100}
    assert data.n_classes == 8
    data = load_data("chars-40")
    assert torch.equal(data.train_inputs[0, 1:], data.train_targets[0, :-1])
    assert torch.equal(data.train_targets[0, -1], data.train_inputs[1, 0])
    data = load_data("completion-20-2")
    M = torch.zeros(20, 20, dtype=torch.float64)
    for cells, values in ((data.train_inputs, data.train_targets), (data.test_inputs, data.test_targets)):
        M[cells[:, 0], cells[:, 1]] = values[:, 0]
    assert int(torch.linalg.matrix_rank(M)) == 2
    assert float(M.square().mean()) == pytest.approx(1, rel=0.5)
    radii = load_data("circles").train_inputs.norm(dim=1)
    assert float(radii[:100].mean()) == pytest.approx(1, abs=0.05)
    assert float(radii[100:].mean()) == pytest.approx(0.5, abs=0.05)


def test_a_deep_linear_net_starts_as_small_as_it_says():
    train, _, theta = load("linear-50-50", "deep-linear-3-40-0.1", "mse", dtype=torch.float64)
    sizes = [float(w.std()) * w.shape[1] ** 0.5 for w in train.leaves(theta)]
    assert sizes == pytest.approx([0.1] * 3, rel=0.1)
    assert [tuple(w.shape) for w in train.leaves(theta)] == [(40, 50), (40, 40), (50, 40)]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("digits", "gpt", "ce"), "gpt is for symbols"),
        (("sort-4-4", "fc-tanh", "ce"), "fc-tanh is for values"),
        (("copy-4-4", "gpt", "mse"), "not all places count"),
        (("chars-1", "gpt", "ce"), "from 2 to"),
        (("sort-4-4", "factors", "mse"), "pairs"),
        (("sort-1-4", "gpt", "ce"), "two symbols"),
        (("completion-4-5", "factors", "mse"), "rank"),
        (("digits", "deep-linear-0-4", "ce"), "D ≥ 1"),
    ],
)
def test_what_doesnt_fit_is_refused(names, says):
    with pytest.raises(InvalidInputError, match=says):
        load(*names)


@pytest.mark.parametrize("name", ["sort-4", "chars-4-4", "nothing-3", "moons-2"])
def test_unknown_names(name):
    with pytest.raises(UnknownNameError):
        load_data(name)


def test_a_transformer_flows():
    train, _, theta = load("sort-4-3", "transformer", "ce", dtype=torch.float64)
    runs = [
        gradflow.integrate(train.first(32), theta, method=method, rtol=1e-5, t_max=2.0, save_every=1.0)
        for method in ("auto", "dopri5")
    ]
    np.testing.assert_allclose(runs[0].train_loss, runs[1].train_loss, rtol=1e-4)
    assert np.isfinite(runs[0].train_accuracy).all()
