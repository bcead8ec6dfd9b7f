"""The accuracy as a by-product of the forward pass of the gradient."""

import pytest
import torch
from helpers import zoo
from torch import nn
from torch.utils.data import TensorDataset

from gradflow import LossFunction, penalty

SIZES = [{}, {"batch_size": 4}, {"batch_size": 4, "memory_budget": 1}]


@pytest.mark.parametrize("sizes", SIZES, ids=["one-chunk", "kept", "rebuilt"])
@pytest.mark.parametrize("name", ["mlp-ce", "conv", "attention", "batch-norm-train"])
def test_it_is_that_of_evaluate_to_the_bit(name, sizes, generator):
    case = zoo.make(name)
    plain = LossFunction(case.dataset, case.criterion, case.net, **sizes)
    if not plain.classifies:
        pytest.skip("targets aren't classes")
    for loss in (plain, 0.5 * plain + penalty(lambda x: x.square().sum()), plain.minibatch(torch.arange(3))):
        for _ in range(4):
            theta = plain.parameters() + torch.randn(
                plain.n_parameters, generator=generator, dtype=torch.float64
            )
            expected = loss.evaluate(theta)[1]
            value, gradient, accuracy = loss.evaluated(theta, accuracy=True)
            assert float(accuracy) == expected
            assert torch.equal(value, loss.gradient(theta)[0])
            assert torch.equal(gradient, loss.gradient(theta)[1])
            lin = loss.linearize(theta, accuracy=True)
            assert float(lin.accuracy) == expected
            lin.hvp(theta)  # builds graphs again where they weren't kept
            assert float(lin.accuracy) == expected
            assert torch.equal(lin.gradient, loss.linearize(theta).gradient)


def test_it_is_not_there_unless_asked_for():
    case = zoo.make("mlp-ce")
    loss = LossFunction(case.dataset, case.criterion, case.net)
    theta = loss.parameters()
    assert loss.evaluated(theta).accuracy is None
    assert loss.linearize(theta).accuracy is None
    regression = zoo.make("mlp-mse")
    loss = LossFunction(regression.dataset, regression.criterion, regression.net)
    assert loss.evaluated(loss.parameters(), accuracy=True).accuracy is None
    bowl = penalty(lambda x: x.square().sum())
    assert bowl.linearize(torch.ones(2), accuracy=True).accuracy is None


def test_one_forward_pass_gives_both():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x)

    with torch.random.fork_rng():
        net = Counting(3, 2)
    loss = LossFunction(
        TensorDataset(torch.ones(6, 3), torch.tensor([0, 1, 1, 0, 1, 1])), nn.CrossEntropyLoss(), net
    )
    theta = loss.parameters()
    for evaluate in (loss.evaluated, loss.linearize):
        Counting.calls = 0
        assert evaluate(theta, accuracy=True).accuracy.item() in {2 / 6, 4 / 6}
        assert Counting.calls == 1
