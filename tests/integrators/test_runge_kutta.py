"""Explicit Runge–Kutta methods: their tableaus against the theory and other libraries, and what a step costs."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import DOP853, RK23, RK45, solve_ivp
from scipy.integrate._ivp.rk import rk_step

import gradflow
from gradflow import LossFunction, problems
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError
from gradflow.integrators import METHODS, EmbeddedPair, Field, FixedTableau, StepSize, Tableau
from gradflow.integrators.step_size import Proposal

#: The nodes as published.
NODES = {
    "midpoint": "0 1/2",
    "heun2": "0 1",
    "heun3": "0 1/3 2/3",
    "rk4": "0 1/2 1/2 1",
    "adaptive_heun": "0 1",
    "fehlberg2": "0 1/2 1",
    "bosh3": "0 1/2 3/4",
    "dopri5": "0 1/5 3/10 4/5 8/9 1",
    "tsit5": "0 161/1000 327/1000 9/10 0.9800255409045097 1",
    "dopri8": "0 1/18 1/12 1/8 5/16 3/8 59/400 93/200 5490023248/9719169821 13/20 1201146811/1299019798 1 1",
    "dop853": " ".join(map(repr, map(float, DOP853.C[:12]))),
}
PAIRS = [name for name in NODES if METHODS[name].tableau.error is not None]
DENSE = [name for name in NODES if METHODS[name].tableau.dense is not None]
INTERPOLATING = [name for name in NODES if METHODS[name].interpolates]
#: Gradients of a step that is accepted, and of an attempt that is rejected.
COSTS = {
    "midpoint": (2, 1), "heun2": (2, 1), "heun3": (3, 2), "rk4": (4, 3), "adaptive_heun": (2, 1),
    "fehlberg2": (3, 2), "bosh3": (3, 3), "dopri5": (6, 6), "tsit5": (6, 6), "dopri8": (13, 12),
    "dop853": (12, 11),
}  # fmt: skip


def matrix(rows, n):
    A = np.zeros((n, n))
    for i, row in enumerate(rows):
        A[i, : len(row)] = row
    return A


def with_end(tableau):
    """A and the nodes with the step's end as one more stage."""
    return matrix([*tableau.A, tableau.b], len(tableau.b) + 1)


def trees(A):
    """Elementary weights of the rooted trees up to order 5: (order, 1/γ, Φ), with Φ by stage.

    Hairer, Nørsett & Wanner (1993), table II.2.2.
    """
    one = np.ones(len(A))
    c = A @ one
    Ac, Acc = A @ c, A @ c**2
    AAc = A @ Ac
    return [
        (1, 1, one),
        (2, 1 / 2, c),
        (3, 1 / 3, c**2), (3, 1 / 6, Ac),
        (4, 1 / 4, c**3), (4, 1 / 8, c * Ac), (4, 1 / 12, Acc), (4, 1 / 24, AAc),
        (5, 1 / 5, c**4), (5, 1 / 10, c**2 * Ac), (5, 1 / 15, c * Acc), (5, 1 / 30, c * AAc), (5, 1 / 20, Ac**2),
        (5, 1 / 20, A @ c**3), (5, 1 / 40, A @ (c * Ac)), (5, 1 / 60, A @ Acc), (5, 1 / 120, A @ AAc),
    ]  # fmt: skip


# ---------------------------------------------------------------------- the coefficients


@pytest.mark.parametrize("name", NODES)
def test_rows_sum_to_the_published_nodes_and_weights_to_one(name):
    table = METHODS[name].tableau
    nodes = [float(Fraction(c)) for c in NODES[name].split()]
    assert [sum(row) for row in table.A] == pytest.approx(
        nodes, abs=1e-14 if name.startswith("dop") else 2e-15
    )
    assert sum(table.b) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("name", NODES)
def test_the_conditions_of_order_hold_up_to_the_order_and_no_further(name):
    method = METHODS[name]
    b, A = np.array(method.tableau.b), matrix(method.tableau.A, len(method.tableau.b))
    misses = [(order, abs(b @ Φ - wanted)) for order, wanted, Φ in trees(A)]
    assert max(miss for order, miss in misses if order <= method.order) < 2e-14
    if method.order < 5:
        assert max(miss for order, miss in misses if order == method.order + 1) > 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_the_error_estimate_is_of_the_order_that_is_claimed(name):
    """b − b̂ misses nothing below order q, so that the estimate is O(h^q), and something of order q."""
    method = METHODS[name]
    error = np.array(method.tableau.error)
    A = with_end(method.tableau)[: len(error), : len(error)]
    parts = [(order, abs(error @ Φ)) for order, _, Φ in trees(A)]
    assert max(part for order, part in parts if order < method.error_order) < 1e-14
    if method.error_order <= 5:
        assert max(part for order, part in parts if order == method.error_order) > 1e-4


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("s", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_dense_weights_meet_the_conditions_of_order_four_anywhere_in_the_step(name, s):
    table = METHODS[name].tableau
    weights = np.array(table.dense) @ s ** np.arange(1, len(table.dense[0]) + 1)
    for order, wanted, Φ in trees(with_end(table)):
        if order <= 4:
            assert weights @ Φ == pytest.approx(wanted * s**order, abs=1e-13)
    if s == 1.0:
        assert weights == pytest.approx([*table.b, 0.0], abs=2e-14)


def test_dopri5_interpolates_as_scipys_RK45():
    assert np.array(METHODS["dopri5"].tableau.dense) == pytest.approx(RK45.P, abs=1e-15)


@pytest.mark.parametrize("name", ["dopri5", "dopri8", "bosh3", "adaptive_heun", "fehlberg2"])
def test_the_coefficients_are_torchdiffeqs(name):
    ours, theirs = METHODS[name].tableau, METHODS[f"torchdiffeq:{name}"].solver.tableau
    n = len(ours.b)
    rows = [np.zeros(0), *(row.numpy()[:i] for i, row in enumerate(theirs.beta, start=1))][:n]
    assert matrix(ours.A, n) == pytest.approx(matrix(rows, n), abs=1e-14)
    assert ours.b == pytest.approx(theirs.c_sol.numpy()[:n], abs=1e-15)
    # Theirs has the opposite sign for adaptive_heun, and Shampine's two thirds of the estimate for dopri5.
    factor = {"adaptive_heun": -1, "dopri5": 2 / 3}.get(name, 1)
    assert factor * np.array(ours.error) == pytest.approx(
        theirs.c_error.numpy()[: len(ours.error)], abs=1e-15
    )
    assert not theirs.c_sol.numpy()[n:].any()
    assert not theirs.c_error.numpy()[len(ours.error) :].any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"A": ((), (1 / 2, 1 / 2))}, "Expected 2 rows of A with 0 to 1 entries"),
        ({"b": (1 / 2, 1 / 3)}, "weights b with the sum 1, got 0.83"),
        ({"error": (1.0,)}, "Expected 2 or 3 entries in error, got 1"),
        ({"error": (1.0, -0.5)}, "error estimate with the sum 0, got 0.5"),
        ({"dense": ((1.0,),)}, "Expected 2 or 3 entries in dense, got 1"),
        ({"dense": ((1.0, 0.0), (0.0, 1.0))}, r"rows of dense with the sums b = \(0, 1\), got \[1.0, 1.0\]"),
        ({"dense": ((1.0, -1.0), (0.0, 1.0), (1.0, 0.0))}, r"got \[0.0, 1.0, 1.0\]"),
    ],
)
def test_a_tableau_that_does_not_fit_is_refused(changed, message):
    midpoint = {"A": ((), (1 / 2,)), "b": (0, 1)}
    Tableau(**midpoint, error=(-1.0, 1.0), dense=((1.0, -1.0), (0.0, 1.0), (1.0, -1.0)))
    with pytest.raises(InvalidInputError, match=message):
        Tableau(**(midpoint | changed))


# ---------------------------------------------------------------------- a step


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("z", [-0.3, -1.7, -3.4, 0.8])
def test_a_step_of_the_linear_test_equation_is_the_stability_polynomial(name, z):
    """R(z) = 1 + Σₖ zᵏ⁺¹ bᵀAᵏ1, which is that of the exponential up to the order."""
    method = METHODS[name]
    b, A = np.array(method.tableau.b), matrix(method.tableau.A, len(method.tableau.b))
    powers = [b @ np.linalg.matrix_power(A, k) @ np.ones(len(b)) for k in range(len(b))]
    λ, start = 2.5, torch.tensor([3.0], dtype=torch.float64)
    field = Field(LossFunction.from_callable(lambda x: 0.5 * λ * (x**2).sum() * (-1 if z > 0 else 1)))
    end = method().step(field.at(start), abs(z) / λ, None).z
    R = 1 + sum(power * z ** (k + 1) for k, power in enumerate(powers))
    assert float(end) / 3.0 == pytest.approx(R, rel=1e-11)
    factorials = np.cumprod(np.arange(1, method.order + 1))
    assert powers[: method.order] == pytest.approx(1 / factorials, abs=1e-14)


@pytest.mark.parametrize("name", NODES)
def test_steps_are_stable_up_to_the_interval_and_no_further(name):
    method = METHODS[name]()
    field = Field(LossFunction.from_callable(lambda x: 0.5 * (x**2).sum()))
    one = torch.ones(1, dtype=torch.float64)
    sizes = np.linspace(0.05, 0.9999 * method.stability_interval, 50)
    assert max(abs(float(method.step(field.at(one), h, None).z)) for h in sizes) < 1
    assert abs(float(method.step(field.at(one), 1.0001 * method.stability_interval, None).z)) > 1


@pytest.mark.parametrize("n", [1, 3, 15])
def test_the_interval_of_many_euler_steps_is_theirs_together(n):
    step = Tableau(A=tuple((1 / n,) * i for i in range(n)), b=(1 / n,) * n)
    assert step.real_stability == pytest.approx(2.0 * n, rel=1e-9)


@pytest.mark.parametrize(("name", "theirs"), [("dopri5", RK45), ("bosh3", RK23)])
def test_a_step_and_its_error_are_scipys(name, theirs):
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)

    def f(t, y):
        return -train.gradient(torch.from_numpy(y))[1].numpy()

    K, h = np.empty((theirs.n_stages + 1, len(theta))), 0.2
    y, _ = rk_step(f, 0.0, theta.numpy(), f(0.0, theta.numpy()), h, theirs.A, theirs.B, theirs.C, K)
    result = METHODS[name]().step(Field(train).at(theta), h, None)
    assert result.z.numpy() == pytest.approx(y, abs=1e-14)
    assert result.error == pytest.approx(np.linalg.norm(h * K.T @ theirs.E), rel=1e-9)


@pytest.mark.parametrize("name", INTERPOLATING)
def test_the_interpolant_is_of_the_methods_order_but_for_one(name):
    """Half way through a step its error is that of a step of order 3 (cubic) or 4 (quartic), or of the method's."""
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    method, errors, hs = METHODS[name](), [], [0.4, 0.2, 0.1]
    exact = solve_ivp(
        lambda t, y: -train.gradient(torch.from_numpy(y))[1].numpy(),
        (0.0, 0.2), theta.numpy(), method=DOP853, rtol=1e-13, atol=1e-15, t_eval=[0.05, 0.1, 0.2],
    ).y.T[::-1]  # fmt: skip
    for h, expected in zip(hs, exact, strict=True):
        result = method.step(Field(train).at(theta), h, None)
        errors.append(np.linalg.norm(result.interpolant(0.5).numpy() - expected))
        assert torch.allclose(result.interpolant(1.0), result.z, rtol=0, atol=1e-13)
        assert torch.equal(result.interpolant(0.0), theta)
    slope = np.polyfit(np.log(hs), np.log(errors), 1)[0]
    order = {"dop853": 7}.get(name, min(method.order, 4 if name in DENSE else 3))
    assert slope > order + 0.7, errors


def test_a_step_of_dop853_its_error_and_its_interpolant_are_scipys():
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    h = 0.4
    theirs = DOP853(
        lambda t, y: -train.gradient(torch.from_numpy(y))[1].numpy(),
        0.0, theta.numpy(), 1.0, first_step=h, rtol=1e3, atol=0.0,
    )  # fmt: skip
    theirs.step()
    field = Field(train)
    result = METHODS["dop853"]().step(field.at(theta), h, None)
    assert result.z.numpy() == pytest.approx(theirs.y, abs=1e-14)
    scale = 1e3 * np.maximum(np.abs(theta.numpy()), np.abs(theirs.y))
    e5, e3 = (h * theirs.K.T @ weights for weights in (theirs.E5, theirs.E3))
    assert result.error == pytest.approx(e5 @ e5 / np.hypot(*map(np.linalg.norm, (e5, 0.1 * e3))), rel=1e-9)
    assert theirs._estimate_error_norm(theirs.K, h, scale) < 1  # so that the step was accepted as it is
    before, dense = field.cost.n_gradients, theirs.dense_output()
    for s in (0.1, 0.37, 0.8):
        assert result.interpolant(s).numpy() == pytest.approx(dense(s * h), abs=1e-14)
    assert field.cost.n_gradients == before + 3


@pytest.mark.parametrize("name", ["tsit5", "dopri5", "dop853"])
def test_the_rate_that_a_step_sees_is_the_stiff_modes(name):
    """Where stability limits the steps, the last stages differ by the stiffest mode, on a quadratic exactly."""
    λ = torch.tensor([40.0, 1.0, 0.1], dtype=torch.float64)
    field = Field(LossFunction.from_callable(lambda x: 0.5 * (λ * x**2).sum()))
    only = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert float(METHODS[name](cap=False).step(field.at(only), 0.1, None).pairs.values[0]) == pytest.approx(
        40.0
    )
    assert METHODS[name](cap=True).step(field.at(only), 0.1, None).pairs is None
    stepper = gradflow.solver(name, field.loss, torch.ones(3, dtype=torch.float64), cap=False, rtol=1e-3)
    for _ in range(30):
        report = stepper.step()
    point = Field(field.loss).at(report.theta)
    seen = METHODS[name](cap=False).step(point, report.dt, None).pairs
    assert 35 < float(seen.values[0]) <= 40 * (1 + 1e-9)
    assert not seen.converged.any()


@pytest.mark.parametrize("name", ["dopri5", "tsit5", "dopri8", "dop853"])
def test_the_flow_at_a_tight_tolerance_is_that_of_scipys_DOP853(name):
    train, _, theta = problems.load("chebyshev-4-20", "regression", "mse", dtype=torch.float64)
    times, shared = [1.3, 5.0], {"rtol": 1e-11, "atol": 1e-13, "t_max": 5.0}
    theirs = gradflow.integrate(train, theta, method="scipy:DOP853", save_at=times, **shared)
    ours = gradflow.integrate(train, theta, method=name, save_at=times, **shared)
    travelled = np.linalg.norm(theirs.theta.values[-1] - theta.numpy())
    assert np.abs(ours.theta.values - theirs.theta.values).max() < 1e-9 * travelled


# ---------------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Alternating(StepSize):
    """Steps of size 0.1, each of which is accepted at the second attempt."""

    def init(self, point, first_size):
        return 0

    def propose(self, point, t, step, state, *, fresh=False):
        return Proposal(0.1, state=state)

    def judge(self, point, h, result, state):
        return state % 2 == 1, state + 1


@pytest.mark.parametrize("name", NODES)
def test_a_step_costs_its_stages_and_an_attempt_no_first_stage(name):
    """The velocity at a step's end, of which the error estimate may know, is the next step's first stage."""
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    accepted, rejected = COSTS[name]
    for step_size, cost in ((0.1, accepted), (Alternating(), accepted + rejected)):
        by_hand = gradflow.solver(name, train, theta, step_size=step_size)
        counts = [1] + [by_hand.step().n_gradients for _ in range(4)]
        assert [after - before for before, after in pairwise(counts)] == [cost] * 4


def test_the_first_size_of_a_pair_costs_one_gradient_and_follows_the_tolerance_in_force():
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    sizes = {}
    for options in ({"rtol": 1e-4}, {"rtol": 1e-9}, {"step_size": "ErrorControl(rtol=1e-9)"}):
        field = Field(train)
        method = METHODS["dopri5"](**options)
        sizes[str(options)] = method.first_size(field.at(theta), None)
        assert field.cost.n_gradients == 2
    loose, tight, given = sizes.values()
    assert given == tight < loose / 2


# ---------------------------------------------------------------------- how they are asked for


def test_names_that_were_torchdiffeqs_take_what_they_took():
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    for name in ("midpoint", "heun2", "heun3"):
        ours, theirs = (
            gradflow.integrate(
                train, theta, method=method, step_size=0.05, t_max=1.0, save_every=0.33, loss_rtol=1e-3
            )
            for method in (name, f"torchdiffeq:{name}")
        )
        assert ours.attrs["n_steps"] == theirs.attrs["n_steps"] == 20
        assert ours.params.values == pytest.approx(theirs.params.values, abs=1e-13)
        assert ours.theta.values == pytest.approx(theirs.theta.values, abs=1e-13)
    capped = {"rtol": 1e-4, "atol": 1e-6, "cap": True, "sharpness_every": 2.0, "loss_rtol": 0.0}
    assert gradflow.integrate(train, theta, method="dopri5", t_max=1.0, **capped).attrs["success"]


@pytest.mark.parametrize("name", ["dopri5", "midpoint"])
def test_options_of_torchdiffeqs_solver_are_refused_with_the_name_of_its_method(name):
    with pytest.raises(
        UnknownOptionError, match=rf"options are those .*method='torchdiffeq:{name}', which takes"
    ):
        gradflow.solver(name, lambda x: (x**2).sum(), torch.ones(2), options={"safety": 0.5})
    with pytest.raises(UnknownOptionError, match=r"Method 'rkc' has no option 'options'"):
        gradflow.solver("rkc", lambda x: (x**2).sum(), torch.ones(2), options={"safety": 0.5})


def test_a_method_interpolates_where_its_tableau_or_its_order_allows_it():
    midpoint = METHODS["midpoint"].tableau

    class Third(FixedTableau):
        name, order, tableau = "third", 3, midpoint

    class Fourth(FixedTableau):
        name, order, tableau = "fourth", 4, midpoint

    class Dense(FixedTableau):
        name, order, tableau = "dense", 4, Tableau(midpoint.A, midpoint.b, dense=((1, -1), (0, 1)))

    class Never(FixedTableau):
        name, order, tableau, interpolates = "never", 2, midpoint, False

    assert [cls.interpolates for cls in (Third, Fourth, Dense, Never)] == [True, False, True, False]


def test_a_pair_without_an_estimate_is_refused():
    with pytest.raises(InvalidTypeError, match=r"Expected Lone, an embedded pair, .* from FixedTableau"):

        class Lone(EmbeddedPair):
            name, order, error_order, tableau = "lone", 2, 2, METHODS["midpoint"].tableau

    with pytest.raises(
        InvalidTypeError, match="Expected Orderless, an embedded pair, to have an error_order"
    ):

        class Orderless(EmbeddedPair):
            name, order, tableau = "orderless", 2, METHODS["adaptive_heun"].tableau
