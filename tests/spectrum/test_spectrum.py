"""The eigensolvers against dense eigh, on spectra that are hard, and the service around them."""

import numpy as np
import pytest
import torch
from helpers import zoo

from gradflow import LossFunction, SpectrumService, problems
from gradflow.errors import InvalidInputError, UnknownNameError
from gradflow.spectrum.backends import BACKENDS
from gradflow.spectrum.density import SpectralDensity
from gradflow.spectrum.operators import Preconditioned
from gradflow.spectrum.service import _BasisHistory

P = 120


def spectrum(name):
    linear = torch.linspace(0, 1, P, dtype=torch.float64)
    return {
        "indefinite": 2 * linear - 1,
        "negative": -1 - 4 * linear,
        "outliers": torch.cat([torch.tensor([100.0, 50.0, 30.0, 20.0, 10.0, 8.0]).double(), linear[6:]]),
        "clustered": torch.cat([5 + 1e-7 * torch.arange(6.0).double(), linear[6:]]),
        "repeated": torch.cat([torch.full((6,), 5.0).double(), torch.full((P - 6,), 1.0).double()]),
        "negative-dominates": torch.cat([torch.tensor([10.0, 5.0, 4.0, 3.0]).double(), -100 * linear[4:]]),
        "low-rank": torch.cat([torch.tensor([3.0, 2.0]).double(), torch.zeros(P - 2).double()]),
        "zero": torch.zeros(P).double(),
        "identity": torch.ones(P).double(),
    }[name]


SPECTRA = [
    "indefinite", "negative", "outliers", "clustered", "repeated", "negative-dominates", "low-rank", "zero", "identity",
]  # fmt: skip


def matrix(eigenvalues, seed=0):
    g = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))[0]
    A = (Q * eigenvalues) @ Q.T
    return (A + A.T) / 2


def check(pairs, A, k, tol):
    """What must hold of any result: its numbers are what it says they are."""
    A = A.double()
    V = pairs.vectors.double()
    eps = torch.finfo(pairs.vectors.dtype).eps
    norm = float(torch.linalg.matrix_norm(A, 2))
    assert pairs.values.dtype == pairs.residuals.dtype == torch.float64
    assert len(pairs.values) == len(pairs.residuals) == len(pairs.converged) == V.shape[1] == k
    assert torch.allclose(V.T @ V, torch.eye(k).double(), atol=200 * eps)
    true_residuals = (A @ V - V * pairs.values).norm(dim=0) / (norm or 1.0)
    # the scale is known from below, so that residuals are reported from above
    assert (true_residuals <= pairs.residuals * (1 + 1e-6) + 50 * eps).all()
    assert torch.equal(pairs.converged, pairs.residuals <= tol)
    assert (pairs.values.diff() <= 1e-12 + 10 * eps * norm).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("k", [1, 3, 6, 50, P - 1, P])
@pytest.mark.parametrize("backend", ["block-krylov", "dense", "eigsh", "lobpcg"])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_against_dense_eigh(name, backend, k, dtype):
    A = matrix(spectrum(name)).to(dtype)
    expected = torch.linalg.eigvalsh(A.double()).flip(0)
    norm = float(expected.abs().max())
    tol = 1e-8 if dtype == torch.float64 else 1e-5
    service = SpectrumService(A, backend=backend, max_hvps=5000)
    top = service.top(k, tol=tol)
    check(top, A, k, tol)
    if backend == "lobpcg" and dtype == torch.float32 and not top.converged.all():
        return  # SciPy's stagnates on products in float32; it is flagged, which check() has seen
    assert top.converged.all()
    assert (top.values - expected[:k]).abs().max() <= 2 * tol * norm
    assert top.n_hvp == service.n_hvps


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("name", SPECTRA)
def test_bottom_is_the_other_end(name, backend):
    A = matrix(spectrum(name))
    expected = torch.linalg.eigvalsh(A)
    bottom = SpectrumService(A, backend=backend, max_hvps=20_000).bottom(2, tol=1e-4)
    if backend == "power" and name == "outliers" and not bottom.converged.all():
        return  # |λ_min| is 0.01 % of the shift that the method needs; it says so
    assert bottom.converged.all()
    assert (bottom.values - expected[:2]).abs().max() <= 2e-4 * float(expected.abs().max())


def test_the_power_method_finds_the_algebraic_top():
    A = matrix(spectrum("negative-dominates"))
    pairs = SpectrumService(A, backend="power", max_hvps=20_000).top(1, tol=1e-3)
    assert pairs.converged.all()
    assert float(pairs.values[0]) == pytest.approx(10.0, abs=0.2)


@pytest.mark.parametrize("backend", ["block-krylov", "eigsh", "lobpcg", "power"])
def test_what_is_not_converged_is_flagged(backend):
    A = matrix(2 * torch.linspace(0, 1, 400, dtype=torch.float64) - 1)
    pairs = SpectrumService(A, backend=backend, max_hvps=30).top(3, tol=1e-8)
    check(pairs, A, 3, 1e-8)
    assert not pairs.converged.all()
    assert (pairs.residuals > 1e-8).any()


def test_not_a_number_is_not_converged():
    A = matrix(spectrum("outliers"))
    A[3, 3] = float("nan")
    pairs = SpectrumService(A).top(2)
    assert not torch.isfinite(pairs.values).any()
    assert not pairs.converged.any()


@pytest.mark.parametrize("n", [1, 2, 5, 32, 33])
def test_small_matrices_every_k(n):
    A = matrix(torch.linspace(-1, 2, n, dtype=torch.float64))
    expected = torch.linalg.eigvalsh(A).flip(0)
    for k in range(1, n + 1):
        pairs = SpectrumService(A).top(k, tol=1e-10)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, expected[:k], atol=1e-9)


def test_dense_is_used_only_where_it_is_cheap():
    A = matrix(spectrum("outliers"))
    assert SpectrumService(A).top(1).n_hvp < P
    assert SpectrumService(A[:32, :32].contiguous()).top(1).n_hvp == 32
    assert SpectrumService(A).top(40).n_hvp == P


def test_warm_start_along_a_path_of_crossing_eigenvalues():
    """Each eigenvalue is followed by its vector, and one that overtakes from below isn't missed."""
    A = matrix(torch.cat([spectrum("outliers"), torch.linspace(0, 1, 280, dtype=torch.float64)]))
    values, vectors = torch.linalg.eigh(A)
    u = vectors[:, 60:61]  # an eigenvector of the bulk, λ ≈ 0.5, that becomes the largest
    assert 0 < float(values[60]) < 1
    service = SpectrumService()
    cold, warm = 0, 0
    for s in torch.linspace(0, 1, 40):
        M = A + 150 * float(s) * (u @ u.T)
        expected = torch.linalg.eigvalsh(M).flip(0)
        pairs = service.top(3, M, tol=1e-4)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, expected[:3], atol=3e-2)
        warm += pairs.n_hvp
        cold += SpectrumService().top(3, M, tol=1e-4).n_hvp
    assert warm < 0.7 * cold


@pytest.mark.parametrize("edge", [1.0, 8.0])
@pytest.mark.parametrize("k", [3, 6, 10])
@pytest.mark.parametrize("multiplicity", [1, 2, 3, 5, 10])
def test_a_cold_solve_finds_every_copy_of_an_eigenvalue(multiplicity, k, edge):
    n = 400
    values = edge * torch.linspace(0, 1, n, dtype=torch.float64)
    top = 10 * 1.4 ** torch.arange(9, -1, -1, dtype=torch.float64)
    values[: 10 * multiplicity] = top.repeat_interleave(multiplicity)
    expected = values.sort(descending=True).values[:k]
    A = matrix(values)
    for seed in range(4):
        pairs = SpectrumService(A, seed=seed).top(k)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, expected, rtol=0.02)


@pytest.mark.parametrize("c", [2.0**-60, 2.0**60])
def test_the_unit_of_the_eigenvalues_changes_nothing(c):
    """A power of two scales every number exactly: cold, then warm, all results are the same bit for bit."""
    values = spectrum("outliers")[:6].repeat_interleave(2)
    values = torch.cat([values, torch.linspace(0, 3, 300, dtype=torch.float64)])
    A = matrix(values)
    B = A + 0.3 * matrix(values.flip(0), seed=1)
    one, other = SpectrumService(), SpectrumService()
    for each in (A, B):
        expected, pairs = one.top(6, each), other.top(6, c * each)
        assert torch.equal(pairs.values, c * expected.values)
        assert torch.equal(pairs.vectors, expected.vectors)
        assert torch.equal(pairs.residuals, expected.residuals)
        assert pairs.scale == c * expected.scale
        assert pairs.n_hvp == expected.n_hvp


@pytest.mark.parametrize("angle", [0.03, 0.15, 0.4])
@pytest.mark.parametrize("multiplicity", [1, 2, 3, 10])
def test_eigenvalues_of_any_multiplicity_are_followed_as_their_vectors_turn(multiplicity, angle):
    """From good start vectors and from poor ones: no copy of an eigenvalue is taken for the next."""
    n, k = 300, 6
    values = torch.linspace(0, 1, n, dtype=torch.float64)
    values[: 4 * multiplicity] = (
        torch.tensor([100.0, 50.0, 30.0, 20.0]).double().repeat_interleave(multiplicity)
    )
    expected = values.sort(descending=True).values[:k]
    g = torch.Generator().manual_seed(0)
    turned = torch.eye(n, dtype=torch.float64)
    service = SpectrumService()
    for _ in range(12):
        for j in range(4 * multiplicity):  # each turns towards some vector of the bulk
            i = int(torch.randint(100, n, (1,), generator=g))
            a, b = turned[:, j].clone(), turned[:, i].clone()
            turned[:, j] = np.cos(angle) * a + np.sin(angle) * b
            turned[:, i] = np.cos(angle) * b - np.sin(angle) * a
        A = (turned * values) @ turned.T
        pairs = service.top(k, (A + A.T) / 2)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, expected, atol=0.02 * 100)
    cold = sum(SpectrumService(seed=s).top(k, A).n_hvp for s in range(3)) / 3
    assert service.n_hvps / 12 < cold


def test_a_smooth_path_costs_a_product_for_each_pair_and_two_that_look_further():
    """The start vectors, extrapolated and a step of the power method better, need no correction."""
    n = 400
    values = torch.cat([spectrum("outliers")[:6], torch.linspace(0, 3, n - 6, dtype=torch.float64)])
    K = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / n**0.5
    service = SpectrumService()
    for t in range(12):
        turned = torch.linalg.matrix_exp(0.01 * t * (K - K.T))
        A = (turned * values) @ turned.T
        pairs = service.top(6, (A + A.T) / 2)
        assert pairs.converged.all()
        assert t < 2 or pairs.n_hvp == 6 + 2


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0])
def test_start_vectors_that_are_no_directions_are_left_out(bad):
    A = matrix(spectrum("outliers"))
    start = torch.linalg.eigh(A).eigenvectors[:, -4:].flip(1)
    start[:, 1] = bad
    for vectors in (start, torch.full_like(start, bad), start[:, :1]):
        pairs = SpectrumService(A).top(3, start=vectors)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, torch.tensor([100.0, 50.0, 30.0]).double(), atol=0.1)


def test_results_do_not_depend_on_the_global_generator():
    A = matrix(spectrum("indefinite"))
    first = SpectrumService(A).top(3)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(SpectrumService(A).top(3).vectors, first.vectors)
    assert not torch.equal(SpectrumService(A, seed=1).top(3).vectors, first.vectors)


# ---------------------------------------------------------------------- Hessians


@pytest.fixture(scope="module")
def network():
    train, _, theta = problems.load("chebyshev-5-20", "regression", "mse", dtype=torch.float64)
    return train, theta


def test_hessian_eigenpairs_against_dense_and_scipy(network):
    train, theta = network
    H = train.hvp(theta, torch.eye(len(theta), dtype=torch.float64))
    assert torch.allclose(H, H.T, atol=1e-13)
    expected = torch.linalg.eigvalsh(H).flip(0)
    for backend in ("block-krylov", "eigsh"):
        pairs = SpectrumService(train, backend=backend, max_hvps=2000).top(6, theta, tol=1e-9)
        check(pairs, H, 6, 1e-9)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, expected[:6], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_net_has_each_eigenvalue_as_often_as_outputs(dtype):
    """The Hessian of the squared error is I ⊗ XᵀX/n: ten copies of each, none to be taken for the next."""
    train, _, _ = problems.load("digits", "fc-tanh", "mse", dtype=dtype)
    data = train.data.dataset
    with torch.random.fork_rng():
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).to(dtype)
    loss = LossFunction(data, train.criterion, net)
    theta = loss.parameters()
    X = torch.cat([data.tensors[0].flatten(1), torch.ones(len(data), 1)], 1).double()
    largest = torch.linalg.eigvalsh(X.T @ X / len(data))[-1]
    for k in (2, 6, 10):
        pairs = SpectrumService(loss).top(k, theta)
        assert pairs.converged.all()
        assert torch.allclose(pairs.values, largest.expand(k), rtol=1e-4)


def test_the_same_point_is_not_computed_again(network):
    train, theta = network
    service = SpectrumService(train)
    first = service.top(4, theta, tol=1e-4)
    assert first.n_hvp > 0
    for again in (theta, theta.clone(), train.linearize(theta)):
        pairs = service.top(2, again, tol=1e-3)
        assert pairs.n_hvp == 0
        assert torch.equal(pairs.values, first.values[:2])
        assert torch.equal(pairs.vectors, first.vectors[:, :2])
        assert torch.equal(pairs.residuals, first.residuals[:2])
        assert pairs.converged.tolist() == [True, True]
    assert service.n_hvps == first.n_hvp
    assert service.known(2, theta, tol=1e-3) is not None
    assert service.known(5, theta, tol=1e-3) is None
    assert service.known(2, theta, tol=1e-20) is None
    assert service.known(2, theta + 1, tol=1e-3) is None
    assert service.top(5, theta, tol=1e-4).n_hvp > 0
    assert service.top(2, theta + 1e-3).n_hvp > 0


def test_another_loss_at_the_same_point_is_another_operator():
    case = zoo.make("mlp-mse", n=40)
    X, y = case.tensors
    whole = LossFunction(case.dataset, case.criterion, case.net)
    half = LossFunction(torch.utils.data.TensorDataset(X[:20], y[:20]), case.criterion, case.net)
    theta = whole.parameters()
    service = SpectrumService(whole)
    a = service.top(1, theta, tol=1e-8).values
    b = service.top(1, half.linearize(theta), tol=1e-8).values
    eye = torch.eye(len(theta), dtype=torch.float64)
    for value, loss in ((a, whole), (b, half)):
        assert float(value) == pytest.approx(float(torch.linalg.eigvalsh(loss.hvp(theta, eye))[-1]), rel=1e-7)
    assert abs(float(a - b)) > 1e-3


def test_any_symmetric_operator_will_do(network):
    train, theta = network
    d = torch.linspace(0.5, 2.0, len(theta), dtype=torch.float64)

    class Preconditioned:
        def __init__(self, lin):
            self.lin, self.shape, self.dtype, self.device = lin, lin.shape, lin.dtype, lin.device

        def __matmul__(self, V):
            return d[:, None] * (self.lin @ (d[:, None] * V))

    H = train.hvp(theta, torch.eye(len(theta), dtype=torch.float64))
    expected = torch.linalg.eigvalsh(d[:, None] * H * d).flip(0)
    pairs = SpectrumService().top(3, Preconditioned(train.linearize(theta)), tol=1e-8)
    assert torch.allclose(pairs.values, expected[:3], rtol=1e-6)


def test_a_preconditioned_operator_is_symmetric_and_has_its_spectrum():
    """P^{−1/2} H P^{−1/2} has the eigenvalues of P⁻¹ H."""
    H, d = matrix(spectrum("indefinite")), torch.linspace(0.5, 2.0, P, dtype=torch.float64)
    operator = Preconditioned(H, d)
    expected = H / d.sqrt()[:, None] / d.sqrt()
    assert torch.allclose(operator @ torch.eye(P, dtype=torch.float64), expected, atol=1e-14)
    values = torch.linalg.eigvals(H / d[:, None]).real.sort(descending=True).values
    assert torch.allclose(SpectrumService().top(3, operator, tol=1e-8).values, values[:3], rtol=1e-9)
    d[0] = 0.0  # the direction is left out
    left = Preconditioned(H, d) @ torch.eye(P, dtype=torch.float64)
    assert not left[0].any()
    assert not left[:, 0].any()
    assert torch.allclose(left[1:, 1:], expected[1:, 1:], atol=1e-14)


def test_bases_are_extrapolated_along_the_path_of_theta():
    """V + c (V − V′), however V′ was turned in its span; c is at most 1.5, and 1 where a θ is not known."""
    g = torch.Generator().manual_seed(0)
    V, W = torch.linalg.qr(torch.randn(20, 6, generator=g, dtype=torch.float64))[0].split(3, 1)
    angle = torch.tensor([0.1, 0.2, 0.3]).double()
    before = V * angle.cos() + W * angle.sin()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    origin, e = torch.zeros(2, dtype=torch.float64), torch.tensor([0.6, 0.8], dtype=torch.float64)

    def ahead(theta, thetas):
        history = _BasisHistory().then(V, None).then(before @ turn, thetas[0]).then(V, thetas[1])
        return history.ahead(theta)

    for theta, thetas, c in [
        (2.5 * e, (origin, 2 * e), 0.25),
        (7.0 * e, (2 * e, 5 * e), 2 / 3),
        (9.0 * e, (2 * e, 3 * e), 1.5),
        (9.0 * e, (e, e), 0.0),
        (None, (origin, e), 1.0),
        (e, (None, e), 1.0),
        (e, (e, None), 1.0),
    ]:
        assert torch.allclose(ahead(theta, thetas), V + c * (V - before), atol=1e-14)
    assert torch.equal(_BasisHistory().then(V, origin).ahead(e), V)
    assert torch.equal(_BasisHistory().then(V[:, :2], origin).then(V, e).ahead(2 * e), V)


def test_a_matrix_is_symmetric_to_rounding():
    eigenvalues = spectrum("outliers")
    Q = torch.linalg.qr(torch.randn(P, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    A = (Q * eigenvalues) @ Q.T
    A[0, 1] += 1e-14 * float(A.abs().max())
    assert not torch.equal(A, A.T)
    assert float(SpectrumService(A).top(1).values) == pytest.approx(100.0, rel=1e-6)


def test_density_integrates_to_the_moments_of_the_spectrum():
    ev = spectrum("outliers")
    A = matrix(ev)
    density = SpectrumService(A).density(n_vectors=200, n_steps=20)
    assert torch.allclose(density.weights.sum(1), torch.ones(200).double(), atol=1e-12)
    assert density.n_hvp == 200 * 20
    for power in (1, 2):
        rows = (density.weights * density.nodes**power).sum(1)
        expected = float((ev**power).mean())
        assert abs(float(rows.mean()) - expected) < 4 * float(rows.std()) / 200**0.5
    x = torch.linspace(-20, 120, 2801, dtype=torch.float64)
    values, error = density.smoothed(x, sigma=1.0)
    assert float(torch.trapezoid(values, x)) == pytest.approx(1.0, abs=1e-6)
    true = torch.exp(-0.5 * (x[:, None] - ev) ** 2).mean(1) / (2 * torch.pi) ** 0.5
    assert ((values - true).abs() < 5 * error + 1e-3).all()


def test_density_and_its_standard_error_are_those_of_the_vectors():
    """Two rules of two nodes, by hand."""
    nodes = torch.tensor([[0.0, 2.0], [1.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    x, sigma = 1.5, 0.5

    def gauss(node):
        return np.exp(-(((x - node) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))

    first = 0.25 * gauss(0.0) + 0.75 * gauss(2.0)
    second = 0.5 * gauss(1.0) + 0.5 * gauss(3.0)
    density, error = SpectralDensity(nodes, weights, 4).smoothed(torch.tensor([x]), sigma)
    assert float(density) == pytest.approx((first + second) / 2, rel=1e-12)
    assert float(error) == pytest.approx(abs(first - second) / 2, rel=1e-12)  # √(s²/2), s² = (a − b)²/2
    _, unknown = SpectralDensity(nodes[:1], weights[:1], 2).smoothed(torch.tensor([x]), sigma)
    assert unknown.isnan().all()


def test_density_of_an_exhausted_krylov_space_keeps_its_weight():
    density = SpectrumService(matrix(spectrum("repeated"))).density(n_vectors=3, n_steps=10)
    assert torch.allclose(density.weights.sum(1), torch.ones(3).double())
    assert density.n_hvp <= 9


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda s: s.top(0), "k ≥ 1, got 0"),
        (lambda s: s.top(121), "got k = 121"),
        (lambda s: s.top(2, torch.tensor([[1.0, 5.0], [0.0, 2.0]])), "symmetric matrix, got one with max"),
        (lambda s: s.top(1, LossFunction.from_callable(torch.sum)), "pass θ here"),
        (lambda s: s.density(n_vectors=0), "n_vectors ≥ 1"),
        (lambda s: SpectrumService(max_hvps=0), "max_hvps ≥ 1"),
        (lambda s: s.top(2.0), "k to be an int, got float"),
        (lambda s: s.top(2, tol=0.0), "tol > 0"),
        (lambda s: s.top(2, torch.zeros(P)), "needs a loss"),
        (lambda s: s.top(2, torch.zeros(3, 4)), r"square operator of shape \(P, P\), got shape \(3, 4\)"),
        (lambda s: s.top(2, "H"), "LossFunction, a linearization, a symmetric torch.Tensor"),
        (lambda s: s.top(2, torch.eye(3, dtype=torch.int64)), "float32 or float64"),
        (lambda s: SpectrumService().top(1), "Say where"),
    ],
)
def test_bad_calls_are_refused(call, text):
    with pytest.raises((InvalidInputError, TypeError), match=text):
        call(SpectrumService(matrix(spectrum("outliers"))))


def test_unknown_backends_are_refused_with_the_valid_ones():
    with pytest.raises(
        UnknownNameError, match=r"did you mean 'lobpcg'.*block-krylov, dense, eigsh, lobpcg, power"
    ):
        SpectrumService(backend="lobpgc")


class Spread:
    """σI + Q diag(λ − σ) Qᵀ in float32, each product rounded once: its eigenvectors Q have no entry that is large."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, values, rest, size):
        g = torch.Generator().manual_seed(0)
        self.Q = torch.linalg.qr(torch.randn(size, len(values), generator=g, dtype=torch.float64))[0]
        self.values, self.rest, self.shape = values, rest, (size, size)

    def __matmul__(self, block):
        x = block.double()
        return (self.rest * x + self.Q @ ((self.values - self.rest)[:, None] * (self.Q.T @ x))).float()


@pytest.mark.parametrize("values", [[9, 5, 3, 2], [9, 9, 5, 5], [-1, -1, -1, -2]])
def test_ritz_values_of_large_operators_in_float32_are_summed_in_float64(values):
    exact = torch.tensor(values, dtype=torch.float64)
    operator = Spread(exact, -3.0, 200_000)
    pairs = SpectrumService().top(4, operator, tol=1e-4)
    assert pairs.converged.all()
    # Left are the rounding errors of single entries, which average out; sums in float32 are off by 3e-5 to 5e-5.
    assert ((pairs.values - exact).abs() < 3e-8 * pairs.scale).all()
    V = pairs.vectors.double()
    assert ((V.T @ V - torch.eye(4)).abs() < 3e-7).all()


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 1e15])
def test_residuals_neither_under_nor_overflow_in_float32(scale):
    A = (matrix(spectrum("outliers")) * scale).float()
    pairs = SpectrumService(A).top(2, tol=1e-4)
    assert pairs.converged.all()
    assert torch.allclose(pairs.values / scale, torch.tensor([100.0, 50.0]).double(), rtol=1e-4)
    assert (pairs.residuals > 0).all()


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_no_backend_fails_on_what_is_not_a_number(backend):
    A = matrix(spectrum("outliers"))
    A[3, 3] = A[0, 0] = float("nan")
    pairs = SpectrumService(A, backend=backend, max_hvps=200).top(2)
    assert not pairs.converged.any()


def test_a_smaller_solve_after_a_larger_one_starts_from_what_it_needs():
    A = matrix(torch.cat([spectrum("outliers"), torch.linspace(0, 1, 300, dtype=torch.float64)]))
    service = SpectrumService()
    service.top(30, A)
    assert service.top(1, A).n_hvp <= 8


def test_the_former_name_of_warm_start_names_the_present_one():
    with pytest.raises(AttributeError, match=r"SpectrumService\.offer is called warm_start now"):
        SpectrumService(torch.eye(2, dtype=torch.float64)).offer(None, None)
