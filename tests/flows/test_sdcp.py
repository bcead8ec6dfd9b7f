"""The small semidefinite complementarity problem: closed forms, made-up solutions, and a solver of another kind."""

import time

import numpy as np
import pytest

from gradflow.flows.central.sdcp import TOLERANCE, smat, solve, svec


def rotation(k, rng):
    return np.linalg.qr(rng.standard_normal((k, k)))[0]


def pair(k, rank, rng):
    """X, S ⪰ 0 with XS = 0 and ranks that add up to k."""
    W, sizes = rotation(k, rng), np.exp(rng.standard_normal(k))
    X = (W[:, :rank] * sizes[:rank]) @ W[:, :rank].T
    S = (W[:, rank:] * sizes[rank:]) @ W[:, rank:].T
    return svec(X), svec(S)


def operator(k, decades, rng):
    """A positive definite β whose eigenvalues span some decades."""
    m = k * (k + 1) // 2
    Q = rotation(m, rng)
    return (Q * np.logspace(0, -decades, m)) @ Q.T


def kkt(solution, alpha, beta):
    """The three conditions, computed from what was given and relative to its size."""
    x = solution.x
    slack = alpha + beta @ x
    size = np.linalg.norm(alpha) + np.linalg.norm(beta @ x)
    length = np.linalg.norm(x) or 1.0
    least = np.linalg.eigvalsh(smat(x))[0] / length, np.linalg.eigvalsh(smat(slack))[0] / size
    return max(0.0, -least[0], -least[1], abs(x @ slack) / (length * size))


def by_projected_gradient(alpha, beta, n=20_000):
    """The minimum of ½⟨X, β[X]⟩ + ⟨A, X⟩ over X ⪰ 0 by accelerated projected gradient steps with restarts."""
    step, x = 1.0 / np.linalg.norm(beta, 2), np.zeros_like(alpha)
    y, t = x, 1.0
    for _ in range(n):
        values, vectors = np.linalg.eigh(smat(y - step * (beta @ y + alpha)))
        new = svec((vectors * np.maximum(values, 0)) @ vectors.T)
        if (y - new) @ (new - x) > 0:
            t = 1.0
        grown = 0.5 + np.sqrt(0.25 + t * t)
        if np.linalg.norm(new - x) < 1e-15:
            break
        y, x, t = new + (t - 1) / grown * (new - x), new, grown
    return x


# ---------------------------------------------------------------------- coordinates


def test_coordinates_keep_inner_products_and_are_row_by_row():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 5, 4, 4))
    A, B = A + A.swapaxes(1, 2), B + B.swapaxes(1, 2)
    assert np.array_equal(smat(svec(A)), A) or np.allclose(smat(svec(A)), A, rtol=1e-15)
    assert np.allclose((svec(A) * svec(B)).sum(-1), np.trace(A @ B, axis1=1, axis2=2), rtol=1e-13)
    M = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 5.0], [3.0, 5.0, 6.0]])
    r = np.sqrt(2.0)
    assert np.allclose(svec(M), [1, 2 * r, 3 * r, 4, 5 * r, 6], rtol=1e-15)


@pytest.mark.parametrize("m", [2, 4, 5, 7])
def test_a_number_of_entries_that_no_matrix_has_is_refused(m):
    with pytest.raises(ValueError, match="1, 3, 6, 10"):
        smat(np.zeros(m))


def test_shapes_and_numbers_are_checked():
    with pytest.raises(ValueError, match=r"beta of shape \(3, 3\)"):
        solve(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        solve(np.array([np.nan]), np.eye(1))


# ---------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("a", "b", "x"), [(-3.0, 0.5, 6.0), (3.0, 0.5, 0.0), (3.0, 0.0, 0.0), (0.0, 1.0, 0.0)]
)
def test_one_direction_is_the_positive_part(a, b, x):
    solution = solve(np.array([a]), np.array([[b]]))
    assert solution.status == "solved"
    assert solution.x[0] == pytest.approx(x, rel=1e-15)


def test_a_multiple_of_the_identity_projects():
    rng = np.random.default_rng(1)
    for k in (2, 3, 5, 8):
        A = smat(rng.standard_normal(k * (k + 1) // 2))
        values, W = np.linalg.eigh(A)
        solution = solve(svec(A), 0.5 * np.eye(k * (k + 1) // 2))
        assert solution.status == "solved"
        assert np.allclose(smat(solution.x), 2 * (W * np.maximum(-values, 0)) @ W.T, rtol=0, atol=1e-10)


def test_diagonal_matrices_stay_diagonal_and_decouple():
    weights = np.array([0.3, 7.0, 2.0, 5.0, 1.0, 0.1])  # of the entries 11, 12, 13, 22, 23, 33
    solution = solve(svec(np.diag([-1.0, 2.0, -3.0])), np.diag(weights))
    assert np.allclose(smat(solution.x), np.diag([1 / 0.3, 0.0, 30.0]), rtol=0, atol=1e-10)


def test_off_diagonal_entries_that_beta_does_not_see_stay_zero():
    """RMSProp on a diagonal Hessian: every direction for itself."""
    beta = np.diag([2.0, 0.0, 0.0, 4.0, 0.0, 8.0])
    solution = solve(svec(-np.diag([1.0, 1.0, 1.0])), beta)
    assert solution.status == "solved"
    assert np.allclose(smat(solution.x), np.diag([1 / 2, 1 / 4, 1 / 8]), rtol=1e-14, atol=0)
    assert solution.condition == np.inf


# ---------------------------------------------------------------------- made-up solutions


@pytest.mark.parametrize("decades", [0, 4, 8])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6])
def test_solutions_of_every_rank_are_found(k, decades):
    rng = np.random.default_rng([k, decades])
    for trial in range(15):
        x, slack = pair(k, trial % (k + 1), rng)
        beta = operator(k, decades, rng)
        alpha = slack - beta @ x
        solution = solve(alpha, beta)
        assert solution.status == "solved"
        assert kkt(solution, alpha, beta) <= TOLERANCE
        assert np.linalg.norm(solution.x - x) <= 1e-8 * 10 ** (decades / 2) * max(1.0, np.linalg.norm(x))


def test_twenty_directions():
    rng = np.random.default_rng(5)
    x, slack = pair(20, 12, rng)
    beta = operator(20, 4, rng)
    alpha = slack - beta @ x
    solution = solve(alpha, beta)
    assert solution.status == "solved"
    assert np.linalg.norm(solution.x - x) <= 1e-7 * np.linalg.norm(x)


def test_a_degenerate_solution_is_found():
    """A direction in which both X and the slack are zero."""
    rng = np.random.default_rng(6)
    for k in (2, 3, 4):
        W = rotation(k, rng)
        x = svec(np.outer(W[:, 0], W[:, 0]))
        slack = svec(np.outer(W[:, 1], W[:, 1])) if k > 2 else np.zeros(3)
        beta = operator(k, 2, rng)
        alpha = slack - beta @ x
        solution = solve(alpha, beta)
        assert solution.status == "solved"
        assert np.linalg.norm(solution.x - x) <= 1e-6


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_solver_of_another_kind_agrees(k):
    rng = np.random.default_rng(k)
    m = k * (k + 1) // 2
    for _ in range(4):
        alpha, N = rng.standard_normal(m), rng.standard_normal((3 * m, m))
        beta = 0.5 * N.T @ N
        expected = by_projected_gradient(alpha, beta)
        solution = solve(alpha, beta)
        assert solution.status == "solved"
        assert np.linalg.norm(solution.x - expected) <= 1e-9 * max(1.0, np.linalg.norm(expected))


# ---------------------------------------------------------------------- scale, start, rounding


@pytest.mark.parametrize(("a", "b"), [(1e-12, 1.0), (1e12, 1.0), (1.0, 1e-12), (1e-9, 1e12), (1e30, 1e-30)])
def test_scales_do_not_matter(a, b):
    rng = np.random.default_rng(7)
    x, slack = pair(3, 2, rng)
    beta = operator(3, 3, rng)
    alpha = slack - beta @ x
    plain, scaled = solve(alpha, beta), solve(a * alpha, b * beta)
    assert plain.status == scaled.status == "solved"
    assert np.allclose(scaled.x * (b / a), plain.x, rtol=0, atol=1e-8)
    assert scaled.condition == pytest.approx(plain.condition, rel=1e-6)


def test_a_start_near_the_solution_saves_iterations():
    rng = np.random.default_rng(8)
    cold = warm = 0
    for _ in range(20):
        x, slack = pair(4, 2, rng)
        beta = operator(4, 3, rng)
        alpha = slack - beta @ x
        first = solve(alpha, beta)
        again = solve(alpha, beta, start=first.x)
        assert again.status == "solved"
        cold, warm = cold + first.n_iterations, warm + again.n_iterations
    assert warm < 0.5 * cold


def test_slight_asymmetry_and_negative_eigenvalues_are_rounding():
    rng = np.random.default_rng(9)
    N = rng.standard_normal((2, 6))  # rank 2 of 6
    beta, x = N.T @ N, svec(np.diag([1.0, 2.0, 3.0]))
    alpha = -beta @ x
    noise = 1e-16 * rng.standard_normal((6, 6))
    solution = solve(alpha, beta + noise - 1e-15 * np.eye(6))
    assert solution.status == "solved"
    assert np.allclose(N @ solution.x, N @ x, rtol=1e-9)


# ---------------------------------------------------------------------- without a unique solution, or any


@pytest.mark.parametrize("k", [2, 3, 4, 6])
def test_where_x_is_not_unique_the_drift_is(k):
    rng = np.random.default_rng(k)
    m = k * (k + 1) // 2
    for n in (1, m // 2, m - 1):
        for rank in range(k + 1):
            x, slack = pair(k, rank, rng)
            N = rng.standard_normal((n, m))
            alpha = slack - N.T @ (N @ x)
            solution = solve(alpha, N.T @ N)
            assert solution.status == "solved"
            assert np.linalg.norm(N @ (solution.x - x)) <= 1e-7 * max(1.0, np.linalg.norm(N @ x))
            assert np.linalg.norm(solution.x) <= 2.0 * np.linalg.norm(x) + 1e-6
            if rank == k:
                assert solution.condition == np.inf


def test_the_condition_is_that_of_beta_on_the_face_of_the_solution():
    """β is singular, but not where X = diag(x, 0) can vary."""
    beta = np.diag([0.25, 0.0, 1.0])
    solution = solve(svec(np.diag([-1.0, 1.0])), beta)
    assert np.allclose(smat(solution.x), np.diag([4.0, 0.0]), rtol=0, atol=1e-9)
    assert solution.condition == pytest.approx(1.0)
    both = solve(svec(np.diag([-1.0, -1.0])), np.diag([0.25, 0.5, 1.0]))
    assert both.condition == pytest.approx(4.0)


@pytest.mark.parametrize("fall", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_problem_without_a_solution_is_told(k, fall):
    rng = np.random.default_rng(k)
    m = k * (k + 1) // 2
    for trial in range(8):
        W = rotation(k, rng)[:, : 1 + trial % k]
        D = svec(W @ W.T) / np.sqrt(W.shape[1])
        N = rng.standard_normal((m - 1, m))
        N -= np.outer(N @ D, D)
        alpha = rng.standard_normal(m)
        alpha -= (alpha @ D + fall) * D
        assert solve(alpha, N.T @ N).status == "unsolvable"


def test_no_curvature_gradient_at_all():
    assert solve(np.array([-1.0]), np.zeros((1, 1))).status == "unsolvable"
    assert solve(svec(np.diag([1.0, -1.0])), np.zeros((3, 3))).status == "unsolvable"
    assert solve(svec(np.diag([1.0, 0.0])), np.zeros((3, 3))).status == "solved"


# ---------------------------------------------------------------------- speed


@pytest.mark.parametrize(("k", "milliseconds"), [(1, 1.0), (3, 10.0), (6, 30.0)])
def test_it_is_fast(k, milliseconds):
    rng = np.random.default_rng(11)
    taken = []
    for trial in range(11):
        x, slack = pair(k, trial % (k + 1), rng)
        beta = operator(k, 3, rng)
        alpha = slack - beta @ x
        start = time.perf_counter()
        solve(alpha, beta)
        taken.append(time.perf_counter() - start)
    assert 1e3 * np.median(taken) < milliseconds
