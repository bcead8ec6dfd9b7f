"""The eigensolver within a memory budget."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from gradflow import LossFunction, SpectrumService
from gradflow.spectrum import block_krylov


def problem(**options):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(50, 10, generator=generator), torch.randn(50, 4, generator=generator))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 30), nn.Tanh(), nn.Linear(30, 4)).double()
    return LossFunction(data, nn.MSELoss(), net, **options)


@pytest.mark.parametrize("k", [1, 4])
def test_few_vectors_where_memory_is_short(k, monkeypatch):
    seen = []
    grow = block_krylov._SearchSpace.grow

    def growing(space, block):
        grown = grow(space, block)
        seen.append(space._V.shape[0])
        return grown

    monkeypatch.setattr(block_krylov._SearchSpace, "grow", growing)
    plenty, short = problem(), problem(batch_size=50)
    theta = plenty.parameters()
    short.memory_budget = 10 * 2 * 8 * len(theta)  # room for ten
    exact = torch.linalg.eigvalsh(plenty.hvp(theta, torch.eye(len(theta), dtype=theta.dtype))).flip(0)[:k]
    most = []
    for loss in (plenty, short):
        seen.clear()
        pairs = SpectrumService(loss, max_hvps=2000).top(k, theta, tol=1e-6)
        assert bool(pairs.converged.all())
        torch.testing.assert_close(pairs.values, exact, rtol=1e-8, atol=0)
        most.append(max(seen))
    assert most == [4 * k + 20, 16]
