"""The step size of exponential Euler: 1/|λ_{k+1}|, by pairs that serve for a few steps."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import gradflow
from gradflow import problems
from gradflow.integrators.step_size import BulkEigenvalueCap
from gradflow.integrators.step_size.bulk import neglected, pairs_of_step
from gradflow.spectrum import Eigenpairs

double = torch.float64


def made(values, vectors, residual=0.0):
    values = torch.as_tensor(values, dtype=double)
    residuals = torch.full_like(values, residual)
    return Eigenpairs(values, vectors, residuals, 1, residuals == 0, float(values.abs().max()))


def orthonormal(n, seed):
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=double))[0]


@pytest.mark.parametrize("turned", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("rest", [2.0, -1.0])
def test_what_held_pairs_neglect_is_the_norm_of_what_they_leave(turned, rest):
    """Against the dense norm, where the eigenvalues that aren't known are |λ_{k+1}|; else it is a bound."""
    values = torch.tensor([50.0, 9.0, 4.0, rest], dtype=double)
    V = orthonormal(8, 0)
    W = torch.linalg.qr(V + turned * orthonormal(8, 1))[0]
    W = W * torch.sign((V * W).sum(0))
    now, held = made(values, V[:, :4]), made(values[:3], W[:, :3])
    for unknown, is_norm in ((abs(rest), True), (0.1, False)):
        spectrum = torch.cat([values, torch.full((4,), unknown, dtype=double)])
        H = V @ torch.diag(spectrum) @ V.T
        left = torch.linalg.matrix_norm(H - W[:, :3] @ torch.diag(values[:3]) @ W[:, :3].T, 2)
        expected = max(0.0, float(left) / abs(rest) - 1)
        if is_norm:
            assert neglected(now, held) == pytest.approx(expected, rel=1e-9, abs=1e-10)
        else:
            assert neglected(now, held) >= expected - 1e-12
    if not turned:
        assert neglected(now, held) < 1e-10


@dataclass
class Turning:
    """A point whose eigenvectors turn in the plane of the largest and a small eigenvalue."""

    angle: float
    growth: float = 0.0
    residual: float = 0.0
    step: int = 0
    asked: list = field(default_factory=list)
    kept: dict = field(default_factory=dict)
    z = torch.zeros(5, dtype=double)

    def rates(self, k, *, tol):
        self.asked.append((self.step, tol))
        c, s = math.cos(self.step * self.angle), math.sin(self.step * self.angle)
        V = torch.eye(5, dtype=double)
        V[:, 0], V[:, 4] = torch.tensor([c, 0, 0, 0, s]), torch.tensor([-s, 0, 0, 0, c])
        values = [40.0, 20.0, 4.0 * (1 + self.growth * self.step)]
        return made(values[:k], V[:, :k], min(self.residual, tol))

    def redo(self, key, value):
        self.kept[key] = value

    def work(self, key, make):
        return self.kept.get(key, make())


def proposals(point, n, fresh=(), **options):
    rule = BulkEigenvalueCap(
        **{"k": 2, "max_step": 1.0, "warmup_iters": 0, "warmup_factor": 1.0, "tol": 1e-2} | options
    )
    found, state = [], None
    for point.step in range(n):
        found.append(rule.propose(point, 0.0, point.step, state, fresh=point.step in fresh))
        state = found[-1].state
    return found


def measured(point):
    return sorted({step for step, _ in point.asked})


def test_pairs_serve_longer_while_they_hardly_turn():
    still, turning = Turning(0.0), Turning(0.3)
    proposals(still, 20, serves=5)
    assert measured(still) == [0, 1, 3, 7, 12, 17]
    proposals(turning, 6, serves=5)
    assert measured(turning) == [0, 1, 2, 3, 4, 5]
    slowly = Turning(0.02)  # 40 · 0.02 n beside 4: too much after four steps
    proposals(slowly, 16, serves=5)
    assert 1 < max(np.diff(measured(slowly))) < 5
    each = Turning(0.0)
    proposals(each, 6)
    assert measured(each) == list(range(6))


def test_a_step_that_raised_the_loss_has_pairs_measured_again():
    point = Turning(0.0)
    proposals(point, 12, fresh=(9, 10), serves=5)
    assert measured(point) == [0, 1, 3, 7, 9, 10, 11]  # how long those before have served says nothing


def test_the_first_eigenvalue_outside_is_extrapolated_while_it_grows():
    grows, falls = Turning(0.0, growth=0.01), Turning(0.0, growth=-0.01)
    found = proposals(grows, 12, serves=5)
    assert [each.h for each in found[1:]] == pytest.approx([1 / (4 + 0.04 * n) for n in range(1, 12)])
    assert [each.h for each in proposals(falls, 7, serves=5)][3:] == pytest.approx([1 / (4 - 0.12)] * 4)
    assert float(pairs_of_step(grows).values[2]) == pytest.approx(4.44)
    assert found[8].pairs is not None
    assert found[8].pairs.vectors.shape == (5, 3)


def test_residuals_are_a_tenth_of_the_first_eigenvalue_outside():
    """max|λ| is 40, so that 1e-2 is enough beside 4, and 2.5e-3 where steps are limited by 1/max_step = 1."""
    for residual, options, tolerances in (
        (1e-2, {}, [1e-2]),
        (1.0, {"tol": 5e-2}, [5e-2, 1e-2]),
        (1.0, {"tol": 1e-4}, [1e-4]),
        (1.0, {"tol": 5e-2, "serves": 1}, [5e-2]),
    ):
        point = Turning(0.0, residual=residual)
        proposals(point, 1, **{"serves": 5} | options)
        assert [tol for _, tol in point.asked] == pytest.approx(tolerances)
    stiffer = Turning(0.0, growth=-0.24, residual=1.0)  # at the second step λ₃ is 4 · 0.76
    proposals(stiffer, 2, serves=5)
    assert [tol for _, tol in stiffer.asked] == pytest.approx([1e-2, 1e-2, 0.1 * 4 * 0.76 / 40])


def test_held_pairs_cost_a_third_of_the_products_and_no_accuracy():
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=double)
    times = {"t_max": 20.0, "save_every": 20.0}
    exact = gradflow.integrate(train, theta, method="exprb43", rtol=1e-5, atol=1e-7, **times).params.values
    held = gradflow.integrate(train, theta, method="expeuler", **times)
    every_step = BulkEigenvalueCap(1, 1.0, 0, 1.0, 1e-3)
    fresh = gradflow.integrate(train, theta, method="expeuler", step_size=every_step, **times)
    error, of_fresh = (np.linalg.norm(ds.params - exact) for ds in (held, fresh))
    assert error < 1.01 * of_fresh
    assert int(held.n_gradients[-1]) == int(fresh.n_gradients[-1])
    assert int(held.n_hvps[-1]) < int(fresh.n_hvps[-1]) / 3
