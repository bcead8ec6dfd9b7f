"""The central flow against closed forms, and these against the optimisers; where the theory fails, that it does."""

import numpy as np
import pytest
import torch
from helpers import edge_problems as problems
from helpers.central_reference import GradientDescent, RMSProp, euler

import gradflow
from gradflow.errors import GradflowError, GradflowWarning

double = torch.float64
EULER = {"scheme": "euler", "substeps": 4, "threshold": 1.95}


def follow(problem, steps, **options):
    """The record of the central flow at some steps of the optimiser."""
    times = problem.time(np.asarray(steps, dtype=float))
    return gradflow.integrate(
        problem.loss,
        problem.start,
        flow="central",
        t_max=float(times[-1]),
        save_at=times,
        **problem.options,
        **options,
    )


def at(run, problem, steps):
    """The records at these steps: events may have added others."""
    times = problem.time(np.asarray(steps, dtype=float))
    index = np.array([np.argmin(np.abs(run.time.values - t)) for t in times])
    assert np.allclose(run.time.values[index], times, rtol=1e-9, atol=1e-9)
    return run.isel(time=index)


def modes(run, k):
    """The k largest eigenvalues of Σ, zero where there are fewer."""
    values = np.nan_to_num(run.sigma_eigenvalue.values)
    values = np.pad(values, ((0, 0), (0, max(0, k - values.shape[1]))))
    assert np.all(np.abs(values[:, k:]) <= 1e-9)
    return values[:, :k]


def away_from_events(problem, steps, distance):
    events = np.array([*problem.entries, *problem.leaves])
    return np.array([s for s in steps if np.all(np.abs(s - events) > distance)])


def check(problem, steps, *, theta, sigma, loss, distance=5.0, **options):
    """Compare a run with the closed form, to absolute errors of θ, of Σ's eigenvalues and of the predicted loss."""
    steps = away_from_events(problem, steps, distance)
    run = follow(problem, steps, **options)
    assert run.attrs["success"]
    here, exact = at(run, problem, steps), problem.exact(steps)
    k = exact["sigma_eigenvalue"].shape[1]
    assert np.abs(here.theta.values - exact["theta"]).max() <= theta
    assert np.abs(modes(here, k) - exact["sigma_eigenvalue"]).max() <= sigma
    assert np.abs(here.sigma_trace.values - exact["sigma_eigenvalue"].sum(1)).max() <= k * sigma
    assert np.abs(here.predicted_train_loss.values - exact["predicted_train_loss"]).max() <= loss
    assert np.array_equal(here.n_active.values, (exact["sigma_eigenvalue"] > 0).sum(1))
    return run


def check_events(run, problem, tolerance):
    """Entries and leaves happened at their steps, within some steps."""
    for name, expected in (("event_enter", problem.entries), ("event_leave", problem.leaves)):
        happened = run.time.values[run[name].values == 1] if name in run else np.empty(0)
        assert len(happened) == len(expected), name
        for found, step in zip(happened, expected, strict=True):
            early, late = problem.time(np.array([step - tolerance, step + tolerance]))
            assert early <= found <= late, name


# ---------------------------------------------------------------------- the closed forms

# problem, last step, largest errors of θ, Σ and the predicted loss, and whether events are to be looked at
FORMS = {
    "T1 plateau": (problems.plateau(), 800, 1e-3, 1e-5, 1e-3, True),
    "T2 circle": (problems.circle(damping=0.0), 600, 2e-4, 2e-5, 2e-4, False),
    "T2 from inside": (problems.circle_from_inside(), 4000, 2e-4, 2e-6, 2e-5, True),
    "T3 disc": (problems.disc(), 4000, 2e-4, 2e-6, 2e-5, True),
    "T4 commuting": (problems.matrix(commuting=True), 1500, 1e-3, 1e-5, 1e-3, True),
    "T5 scalar RMSProp": (problems.rmsprop_quadratic(), 1500, 1e-4, 1e-8, 1e-4, True),
    "T7 scalar RMSProp": (problems.rmsprop_sliding(), 4000, 2e-5, 1e-11, 1e-8, True),
    "T8 entering": (problems.schedule(y0=19.0), 5000, 1e-3, 1e-4, 1e-3, True),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_projected_scheme_follows_the_closed_form(name):
    problem, last, theta, sigma, loss, events = FORMS[name]
    run = check(problem, np.linspace(0, last, 21), theta=theta, sigma=sigma, loss=loss, rtol=1e-5)
    if events:
        check_events(run, problem, tolerance=1.0)


# The same by the authors' scheme, on shorter runs. Errors as the dense reference has them, which are the scheme's own.
EULER_FORMS = {
    "T1 plateau": (problems.plateau(), 400, 1.7e-3, 1e-9, 3e-4),
    "T2 circle": (problems.circle(damping=0.0), 200, 7e-4, 3e-5, 3e-4),
    "T8 schedule": (problems.schedule(slope=3.0, T=200.0), 450, 1.2e-3, 1e-7, 4e-3),
}


@pytest.mark.parametrize("name", EULER_FORMS)
def test_the_authors_scheme_follows_the_closed_form_to_its_own_error(name):
    problem, last, theta, sigma, loss = EULER_FORMS[name]
    check(problem, np.arange(0, last + 1, 10), theta=theta, sigma=sigma, loss=loss, **EULER)


def test_the_authors_scheme_has_order_one_across_an_entry():
    """T2 from inside: 2.7e-4, 1.3e-4 and 6.7e-5 with a = 0.02; ten times that with a = 0.2, in a tenth of the steps."""
    problem = problems.circle_from_inside(slope=0.2)
    steps = np.arange(0.0, 301.0, 10.0)
    exact = problem.exact(steps)["theta"]
    errors = [
        np.linalg.norm(
            at(follow(problem, steps, scheme="euler", substeps=n), problem, steps).theta.values - exact,
            axis=1,
        ).max()
        for n in (1, 2, 4)
    ]
    assert np.allclose(np.array(errors[:-1]) / errors[1:], 2.0, rtol=0.15)
    assert errors[-1] <= 7e-4


# ---------------------------------------------------------------------- T4, T6: where they end

RESTS = {
    "T4 matrix": (problems.matrix(), 6000, 1e-3, 1e-5, 1e-4),
    "T4b pushed": (problems.pushed_matrix(), 200, 1e-3, 1e-5, 2e-3),
    "T6 coupled": (problems.rmsprop_coupled(), 1200, 1e-6, 1e-9, 1e-7),
    "T6 diagonal": (problems.rmsprop_diagonal((10.0, 4.0)), 900, 1e-6, 1e-9, 1e-7),
}


@pytest.mark.filterwarnings(
    "ignore:The central flow's covariance isn't unique"
)  # T6 diagonal, beside the diagonal
@pytest.mark.parametrize(
    ("name", "scheme"),
    [*((name, {"rtol": 1e-5}) for name in RESTS), ("T4b pushed", EULER)],
)
def test_where_the_flow_comes_to_rest(name, scheme):
    problem, last, theta, sigma, loss = RESTS[name]
    check(problem, [float(last)], theta=theta, sigma=sigma, loss=loss, **scheme)


def test_the_gap_closes_as_the_matrix_is_pushed():
    """T4b between the entries: ḋ = −ηa₂₂ and d ln d/dφ = −a₂₂/a₁₂, with A in the eigenbasis of M at an angle φ."""
    problem = problems.pushed_matrix()
    A = problem.exact(0)["sigma"] / 2
    run = follow(problem, [49.0, 50.0, 51.0, 79.0, 80.0, 81.0, 109.0, 110.0, 111.0], rtol=1e-7)
    for step in (50.0, 80.0, 110.0):
        here = at(run, problem, [step - 1, step, step + 1])
        values, V = np.linalg.eigh(problems.matrix_of(here.theta.values))
        gap, a = 20.0 - values[:, 0], V[1].T @ A @ V[1]
        angle = np.unwrap(np.arctan2(V[:, 1, 1], V[:, 0, 1]), period=np.pi)
        assert (gap[2] - gap[0]) / 2 == pytest.approx(-problem.lr * a[0, 0], rel=1e-3)
        assert np.log(gap[2] / gap[0]) / (angle[2] - angle[0]) == pytest.approx(-a[0, 0] / a[0, 1], rel=3e-2)


# ---------------------------------------------------------------------- the dense reference


def test_the_authors_scheme_is_that_of_an_independent_dense_implementation():
    problem = problems.pushed_matrix()
    steps = np.arange(0.0, 181.0, 5.0)
    expected = euler(problem.loss, problem.start, GradientDescent(problem.lr), 180, save=steps.astype(int))
    here = at(follow(problem, steps, **EULER), problem, steps)
    assert np.abs(here.theta.values - expected.theta).max() <= 1e-7
    assert np.abs(here.sigma_trace.values - expected.sigma_trace).max() <= 1e-6
    assert np.abs(here.predicted_train_loss.values - expected.predicted_loss).max() <= 1e-5


@pytest.mark.parametrize(
    "make", [problems.rmsprop_coupled, problems.rmsprop_sliding], ids=["rmsprop", "scalar"]
)
def test_the_same_of_the_rmsprops(make):
    problem, o = make(), make().options
    steps = np.arange(0.0, 401.0, 20.0)
    rule = RMSProp(o["lr"], o["beta2"], scalar=o["rule"] == "scalar-rmsprop")
    expected = euler(problem.loss, problem.start, rule, 400, save=steps.astype(int))
    here = at(follow(problem, steps, **EULER), problem, steps)
    assert np.abs(here.theta.values - expected.theta).max() <= 1e-7
    assert np.abs(here.sigma_trace.values - expected.sigma_trace).max() <= 1e-6 * expected.sigma_trace.max()


# ---------------------------------------------------------------------- the optimisers


def test_gradient_descent_on_the_plateau_is_as_predicted():
    """A forcing of 1e-2 keeps x from underflowing; the 2-cycle x = ±σ, y = 2/η attracts for ηY < 2.5."""
    path = problems.discrete(problems.plateau(x=0.05, force=1e-2), 12_000)[-1000:]
    exact = problems.plateau().exact(np.array([6000.0]))
    assert np.mean(path[:, 0] ** 2) == pytest.approx(exact["sigma_eigenvalue"][0, 0], abs=1e-6)
    assert np.mean(path[:, 1]) == pytest.approx(20.0, abs=1e-5)
    assert exact["predicted_train_loss"][0] == pytest.approx(2.1, abs=1e-12)


def test_the_theory_fails_on_a_high_plateau_and_the_flow_with_it():
    """T1, Y = 26: gradient descent is chaotic with ⟨x²⟩ = 0.57 here, the central flow says 0.6."""
    problem = problems.plateau(26.0)
    run = follow(problem, [0.0, 400.0], rtol=1e-6)
    predicted = float(run.sigma_trace[-1])
    assert predicted == pytest.approx(0.6, abs=1e-4)
    path = problems.discrete(problems.plateau(26.0, x=0.05, force=1e-2), 30_000)[5000:]
    actual = np.mean(path[:, 0] ** 2)
    x, y = path[:-1].T
    drift = -(path[-1, 1] - path[0, 1]) / (0.1 * len(x))  # exactly, for any orbit
    assert np.mean(0.05 * (y - 26.0) + 0.5 * x**2) == pytest.approx(drift, abs=1e-9)
    assert actual < 0.985 * predicted


def test_midpoints_of_gradient_descent_slide_along_the_circle():
    plain = problems.circle()
    steps = np.arange(1.0, 600.0)
    exact = plain.exact(steps)
    variance = exact["sigma_eigenvalue"][:, 0]
    path = problems.discrete(
        problems.circle(x=np.sqrt(plain.exact(np.zeros(1))["sigma_eigenvalue"][0, 0])), 600
    )
    error = np.linalg.norm(problems.midpoints(path) - exact["theta"], axis=1)
    ratio = (path[1:-1, 0] ** 2 / variance)[300:]
    assert error.max() <= 1.3e-2
    assert error[300:].max() <= 2.4e-3
    assert 0.9987 <= ratio.min() <= ratio.max() <= 1.0


def test_gradient_descent_at_a_matrix_edge_oscillates_with_the_covariance():
    path = problems.discrete(problems.matrix(x=(0.1, -0.05), force=(1e-2, -2e-2)), 24_000)[8000:]
    covariance = path[:, :2].T @ path[:, :2] / len(path)
    above = problems.matrix().exact(0)["sigma"]
    assert np.abs(covariance - above).max() <= 1e-3
    M, goal = problems.matrix_of(path), problems._turned(0.6, (26.0, 23.0))
    covariance, n = path[:-1, :2].T @ path[:-1, :2] / (len(path) - 1), len(path) - 1
    drift = -2 * (M[-1] - M[0]) / (0.1 * n)  # exactly, for any orbit
    assert np.abs(covariance - 2 * 0.02 * (goal - M[:-1].mean(0)) - drift).max() <= 1e-9


@pytest.mark.parametrize(
    ("make", "n_steps"),
    [(problems.rmsprop_quadratic, 6000), (problems.rmsprop_coupled, 4000)],
    ids=["T5", "T6"],
)
def test_rmsprop_ends_in_the_cycle_with_the_predicted_covariance(make, n_steps):
    problem = make()
    path = problems.discrete(problem, n_steps)[-500:]
    exact = problem.exact(np.array([float(n_steps)]))
    values = np.linalg.eigvalsh(path.T @ path / len(path))[::-1]
    assert np.allclose(values, exact["sigma_eigenvalue"][0], rtol=1e-6, atol=1e-12)


def test_gradient_descent_with_a_schedule_oscillates_less_and_less():
    start = problems.schedule()
    path = problems.discrete(problems.schedule(x=np.sqrt(0.4)), 900)
    for step in (200, 400, 800):
        actual = np.mean(path[step - 100 : step + 101, 0] ** 2)
        assert actual == pytest.approx(
            start.exact(np.array([float(step)]))["sigma_eigenvalue"][0, 0], abs=1e-3
        )


# ---------------------------------------------------------------------- T9: what must fail, with advice


def test_a_start_above_the_edge_is_refused():
    with pytest.raises(GradflowError, match="warmup_steps"):
        gradflow.integrate(problems.plateau(bottom=21.0).loss, torch.tensor([0.0, 21.0], dtype=double),
                           flow="central", lr=0.1, t_max=1.0)  # fmt: skip
    with pytest.raises(GradflowError, match="warmup_steps"):
        gradflow.integrate(
            problems.quartic(S=21.0), torch.tensor([0.0], dtype=double), flow="central", lr=0.1, t_max=1.0
        )


@pytest.mark.parametrize("scheme", [{}, EULER], ids=["projected", "euler"])
def test_an_edge_that_nothing_can_hold_ends_the_run_with_advice(scheme):
    """λ₁ = 10 stays, ∇λ₁ = 0 at x = 0, and a rising learning rate pushes 2/η below it."""
    with pytest.warns(GradflowWarning):
        run = gradflow.integrate(
            problems.quartic(), torch.tensor([0.0], dtype=double), flow="central",
            lr=lambda step: 0.15 * (1 + step / 100), t_max=50.0, **scheme,
        )  # fmt: skip
    assert not run.attrs["success"]
    crossing = 0.15 * (100 / 3 + (100 / 3) ** 2 / 200)  # flow time where η = 0.2
    assert run.time.values[-1] <= crossing + 1.0


def test_dependent_curvature_gradients_leave_the_trace_open_and_are_told():
    """Two directions reach the edge at y = 20 together, at rates 1 and 2: only their joint push is determined."""

    def loss(w):
        y = w[2]
        return 0.5 * y * w[0] ** 2 + 0.5 * (20 + 2 * (y - 20)) * w[1] ** 2 + 0.025 * (y - 22) ** 2

    with pytest.warns(GradflowWarning, match="unique"):
        run = gradflow.integrate(loss, torch.tensor([0.0, 0.0, 19.0], dtype=double), flow="central", lr=0.1,
                                 t_max=40.0, save_at=[40.0], rtol=1e-6)  # fmt: skip
    assert run.theta.values[-1] == pytest.approx([0.0, 0.0, 20.0], abs=1e-3)
