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


def test_sums_over_many_parameters_keep_their_digits():
    from gradflow.spectrum import sums
    from gradflow.spectrum.eigenpairs import orthonormalize

    P = 2 * sums.LONG
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, P, generator=generator)
    rows /= rows.norm(dim=1, dtype=torch.float64)[:, None].float()
    exact = rows.double() @ rows.double().T
    assert float((rows @ rows.T - exact).abs().max()) > 1e-5  # what it is for
    assert float((sums.inner(rows, rows) - exact).abs().max()) < 3e-7
    V = orthonormalize(torch.cat([rows, rows[:1] + 1e-6 * rows[1:]]).T)
    assert V.shape == (P, 2)
    W = V.double()
    torch.testing.assert_close(W.T @ W, torch.eye(2, dtype=torch.float64), rtol=0, atol=3e-7)
    new = orthonormalize(torch.randn(P, 1, generator=generator), V)
    assert float((W.T @ new.double()).abs().max()) < 1e-8

    d = torch.linspace(0, 1, P) ** 4
    d[:3] = torch.tensor([5.0, 4.0, 3.0])

    class Diagonal:
        shape, dtype, device = (P, P), torch.float32, torch.device("cpu")

        def __matmul__(self, vectors):
            return d[:, None] * vectors

    pairs = SpectrumService(Diagonal()).top(1, tol=1e-3)
    assert bool(pairs.converged.all())
    assert float(pairs.values[0]) == pytest.approx(5, rel=1e-6)
    assert pairs.n_hvp < 30
