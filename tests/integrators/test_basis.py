"""The basis of a Krylov space: orthonormal to rounding, and coordinates that give vectors back."""

import numpy as np
import pytest
import torch

from gradflow.integrators.phi.basis import Basis
from gradflow.integrators.phi.spaces import KrylovSpace

DTYPES = [torch.float32, torch.float64]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def defect(rows):
    rows = rows.double()
    return float((rows @ rows.T - torch.eye(len(rows), dtype=torch.float64)).abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_that_are_nearly_dependent_become_orthonormal(dtype):
    """Each is new by some 100 machine epsilons, so that one pass of Gram–Schmidt would leave errors of 1e-2."""
    eps = torch.finfo(dtype).eps
    basis, first = Basis(500, 10, like=torch.empty(0, dtype=dtype)), normal(500, dtype=dtype)
    for seed in range(30):
        vector = first + 100 * eps * normal(500, seed=seed + 1, dtype=dtype)
        z = basis.take(vector)
        assert len(basis) == len(z) == seed + 1
        again = basis.combine(z)
        assert float((again - vector).norm()) < 20 * eps * float(vector.norm())
    assert defect(basis.rows) < 20 * eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_in_the_span_adds_nothing(dtype):
    basis = Basis(200, 4, like=torch.empty(0, dtype=dtype))
    vectors = normal(3, 200, dtype=dtype)
    for vector in vectors:
        basis.take(vector)
    z = basis.take(vectors.T @ torch.tensor([1.0, -2.0, 3.0], dtype=dtype))
    assert len(basis) == len(z) == 3
    assert np.array_equal(basis.take(torch.zeros(200, dtype=dtype)), np.zeros(3))
    tiny = 1e-30 * normal(200, seed=5, dtype=dtype)  # whose squares underflow in float32
    assert len(basis.take(tiny)) == len(basis) == 4
    assert defect(basis.rows) < 20 * torch.finfo(dtype).eps


def test_a_wrong_promise_of_zeros_costs_a_pass_and_nothing_else():
    basis, honest = (Basis(200, 40, like=torch.empty(0)) for _ in range(2))
    for seed in range(8):
        vector = normal(200, seed=seed, dtype=torch.float32)
        z, expected = basis.take(vector, known_from=max(0, len(basis) - 1)), honest.take(vector)
        assert np.allclose(z, expected, atol=1e-5)
    assert defect(basis.rows) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_krylov_space_stays_orthonormal_after_eigenvectors_have_converged(dtype):
    """Which is when the Lanczos recurrence alone loses it; and with a second vector, whose images enter in between."""
    λ = torch.cat([torch.tensor([900.0, 300.0, 100.0]), torch.logspace(1, -4, 197)]).to(dtype)
    space = KrylovSpace(torch.diag(λ), capacity=60)
    space.coordinates(normal(200, dtype=dtype))
    space.eigenvalues(30)
    space.coordinates(normal(200, seed=1, dtype=dtype))
    space.eigenvalues(60)
    eps = torch.finfo(dtype).eps
    assert defect(space._Q.rows) < 20 * eps
    Q, T = space._Q.rows.double(), torch.from_numpy(space._T[: len(space._Q)][:, space._A])
    H = torch.diag(λ.double())
    assert float((H @ Q[space._A].T - Q.T @ T).norm()) < 100 * eps * 900
