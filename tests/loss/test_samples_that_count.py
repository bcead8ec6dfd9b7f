"""Which samples count in an accuracy and in a mini-batch, and which are classified right."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from gradflow import LossFunction
from gradflow.loss.accuracy import count_correct

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.0, 1.0, 5.0], [4.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("criterion", "output", "target", "expected"),
    [
        (nn.CrossEntropyLoss(), LOGITS, [0, 1, 0, 0], (3, 4)),
        (nn.CrossEntropyLoss(), LOGITS, [0, -100, 0, 1], (1, 3)),
        (nn.CrossEntropyLoss(ignore_index=0), LOGITS, [0, 1, 2, 1], (2, 3)),
        (nn.MSELoss(), LOGITS, [[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (2, 4)),
        (nn.MSELoss(), LOGITS, [[1.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (0, 0)),  # not one class each
        (nn.MSELoss(), LOGITS, [[0.5, 0.5, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], (0, 0)),
        (nn.BCEWithLogitsLoss(), LOGITS[:, :1] - 1, [[1.0], [0.0], [1.0], [0.0]], (2, 4)),
        (nn.BCEWithLogitsLoss(), LOGITS[:, 0], [0.0, 0.0, 0.0, 1.0], (3, 4)),  # a logit of 0 says 0
        (nn.BCEWithLogitsLoss(), LOGITS[:, 0], [0.2, 0.0, 0.0, 1.0], (0, 0)),
        (nn.MSELoss(), LOGITS[:, 0], [0.0, 0.0, 0.0, 1.0], None),
    ],
)
def test_samples_classified_right_are_counted(criterion, output, target, expected):
    counts = count_correct(criterion, output, torch.tensor(target))
    assert (None if counts is None else tuple(counts.tolist())) == expected


@pytest.mark.parametrize("labels", [[-100, -100, 1, 2], [0, 1, -100, 2]])
def test_a_mini_batch_has_the_loss_that_torch_gives_it(labels):
    """Also one in which no target counts: 0/0."""
    inputs = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    targets, criterion = torch.tensor(labels), nn.CrossEntropyLoss()
    with torch.random.fork_rng():
        net = nn.Linear(2, 3).double()
    loss = LossFunction(TensorDataset(inputs, targets), criterion, net)
    rows = torch.tensor([0, 1])
    got = loss.minibatch(rows)(loss.parameters())
    expected = criterion(net(inputs[rows]), targets[rows])
    assert torch.allclose(got, expected, rtol=1e-12, equal_nan=True)


def test_a_mini_batch_that_is_larger_than_all_is_one_mean():
    """Drawn with replacement; where all samples are one chunk, nothing says how chunks would be weighted."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(64, 5, generator=g, dtype=torch.float64)
    y = torch.randint(0, 3, (64,), generator=g)
    y[:40] = -100
    with torch.random.fork_rng():
        net = nn.Linear(5, 3).double()
    rows = torch.randint(0, 64, (100,), generator=g)
    for size in (None, 16):
        loss = LossFunction(TensorDataset(X, y), nn.CrossEntropyLoss(), net, batch_size=size)
        θ = loss.parameters()
        expected = nn.functional.cross_entropy(net(X[rows]), y[rows]).item()
        assert float(loss.minibatch(rows)(θ)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("labels", [[-100] * 4, [-100, -100, -100, 1], [-100, -100, 2, 1], [0, -100, 2, 1]])
def test_a_mini_batch_in_chunks_has_it_too(labels):
    inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    targets, criterion = torch.tensor([*labels, 0, 2]), nn.CrossEntropyLoss()
    with torch.random.fork_rng():
        net = nn.Linear(2, 3).double()
    loss = LossFunction(TensorDataset(inputs, targets), criterion, net, batch_size=2)
    got = loss.minibatch(torch.arange(4))(loss.parameters())
    expected = criterion(net(inputs[:4]), targets[:4])
    assert torch.allclose(got, expected, rtol=1e-12, equal_nan=True)
