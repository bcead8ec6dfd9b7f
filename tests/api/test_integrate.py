"""The driver through integrate(): times, cadences, ends, failures, and that observing changes nothing."""

import math

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import zoo
from helpers.methods import FLOWS, METHODS
from helpers.problems import stretched_bowl as bowl

import gradflow
from gradflow import LossFunction, problems, steps
from gradflow.driver.clock import Clock, fit_step, underflows
from gradflow.driver.schedule import AtTimes, EverySteps, EveryTime, Schedule
from gradflow.flows import Field
from gradflow.flows.point import all_finite
from gradflow.observe.group import Observers
from gradflow.status import Status

IDS = [m.name for m in METHODS]


ONES = torch.ones(3, dtype=torch.float64)


@pytest.fixture(scope="module")
def chebyshev():
    return problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)


# ---------------------------------------------------------------------- times and cadences


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_first_record_is_the_initial_state_and_last_the_final_one(method, chebyshev):
    train, _, theta = chebyshev
    ds = gradflow.integrate(
        train, theta, method=method.name, t_max=1.0, save_every=0.3, n_eigs=2, **method.options
    )
    assert float(ds.time[0]) == 0.0
    assert int(ds.step[0]) == 0
    assert np.array_equal(ds.theta[0], theta)
    assert np.array_equal(ds.params_initial, theta)
    assert np.array_equal(ds.theta[-1], ds.params)
    assert float(ds.train_loss[-1]) == float(train(torch.from_numpy(ds.params.values)))
    assert int(ds.step[-1]) == ds.attrs["n_steps"]
    assert np.isfinite(ds.eigenvalue.values).all()
    assert ds.attrs["status"] == "t_max"
    assert ds.attrs["success"] == 1


@pytest.mark.parametrize("method", FLOWS, ids=[m.name for m in FLOWS])
def test_flows_are_recorded_at_the_times_asked_for(method, chebyshev):
    train, _, theta = chebyshev
    options = {"method": method.name, **method.options}
    ds = gradflow.integrate(train, theta, t_max=1.0, save_every=0.3, **options)
    assert ds.time.values == pytest.approx([0.0, 0.3, 0.6, 0.9, 1.0], abs=1e-12)
    ds = gradflow.integrate(train, theta, t_max=1.0, save_at=[0.25, 0.5], **options)
    assert ds.time.values == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=1e-12)
    assert float(ds.time[-1]) == 1.0
    ds = gradflow.integrate(train, theta, t_max=1.0, save_at=[0.0, 0.25, 1.0], save_every=0.5, **options)
    assert ds.time.values == pytest.approx([0.0, 0.25, 0.5, 1.0], abs=1e-12)
    assert float(ds.time[-1]) == 1.0
    assert len(gradflow.integrate(train, theta, t_max=0.5, **options).time) == 201


def test_a_method_with_an_interpolant_is_not_cut_short_by_save_times(chebyshev):
    train, _, theta = chebyshev
    rare = gradflow.integrate(train, theta, method="expeuler", t_max=3.0, save_every=3.0)
    often = gradflow.integrate(train, theta, method="expeuler", t_max=3.0, save_every=0.01)
    assert often.attrs["n_steps"] == rare.attrs["n_steps"]
    assert np.array_equal(often.params, rare.params)
    assert len(often.time) == 301
    # and what is recorded in between lies on the trajectory
    fine = gradflow.integrate(train, theta, method="rk4", t_max=3.0, save_every=0.01)
    distance = gradflow.compare(often, fine).relative_distance
    assert float(distance[1:].max()) < 0.05
    assert (np.diff(often.train_loss) < 0).all()


def test_gd_time_is_steps_times_lr_exactly(chebyshev):
    train, _, theta = chebyshev
    ds = gradflow.integrate(train, theta, method="gd", lr=0.1, t_max=10.0)
    assert ds.time.values.tolist() == [k * 0.1 for k in range(101)]
    assert ds.attrs["n_steps"] == 100


def test_discrete_methods_record_at_the_first_step_at_or_after():
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.05, save_every=0.25)
    assert ds.time.values == pytest.approx([0.0, 0.3, 0.5, 0.8, 1.0, 1.1])
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=0.7, save_at=[0.3, 0.65])
    assert ds.step.values.tolist() == [0, 3, 7]
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=23, save_every=steps(10))
    assert ds.step.values.tolist() == [0, 10, 20, 23]


def test_quantities_have_cadences_of_their_own():
    ds = gradflow.integrate(
        bowl, ONES, method="gd", lr=0.1, max_steps=12, save_every=steps(6), n_eigs=1, eigs_every=steps(4),
        n_projections=2, projections_every=steps(3), params_every=0.5,
    )  # fmt: skip
    assert ds.step.values.tolist() == [0, 3, 4, 5, 6, 8, 9, 10, 12]
    due = {
        name: ds.step.values[np.isfinite(ds[name].values[:, 0])].tolist()
        for name in ("eigenvalue", "projection", "theta")
    }
    assert due == {"eigenvalue": [0, 4, 8, 12], "projection": [0, 3, 6, 9, 12], "theta": [0, 5, 10, 12]}
    assert np.isfinite(ds.train_loss).all()


@pytest.mark.parametrize("method", ["rk4", "rkc"])
def test_recorded_scalars_are_those_of_the_recorded_state(method, chebyshev):
    train, _, theta = chebyshev
    reports = []
    ds = gradflow.integrate(
        train,
        theta,
        method=method,
        t_max=1.0,
        save_every=steps(1),
        params_every=steps(1),
        callback=reports.append,
    )
    for i, state in enumerate(torch.from_numpy(ds.theta.values)):
        value, gradient = train.gradient(state)
        assert float(ds.train_loss[i]) == pytest.approx(float(value), rel=1e-12)
        assert float(ds.gradient_norm[i]) == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert ds.step.values.tolist() == [0, *(r.step for r in reports)]
    assert ds.time.values.tolist() == [0.0, *(r.t for r in reports)]
    assert ds.step_size.values[1:].tolist() == [r.dt for r in reports]
    assert ds.n_gradients.values[1:].tolist() == [r.n_gradients for r in reports]
    assert ds.n_hvps.values[1:].tolist() == [r.n_hvps for r in reports]
    assert np.isnan(ds.step_size[0])


def test_theta_is_recorded_by_default_for_small_problems_only():
    small = gradflow.integrate(bowl, torch.ones(1000), method="gd", lr=0.1, max_steps=1)
    large = gradflow.integrate(bowl, torch.ones(1001), method="gd", lr=0.1, max_steps=1)
    asked = gradflow.integrate(
        bowl, torch.ones(1001), method="gd", lr=0.1, max_steps=1, params_every=steps(1)
    )
    assert ["theta" in ds for ds in (small, large, asked)] == [True, False, True]


def test_schedule_names_each_time_once():
    schedule = Schedule({"a": [EveryTime(0.1)], "b": [AtTimes((0.2, 0.25)), EverySteps(2)]})
    due = schedule.due(0.0, 0.3, 2, 3e-10, at_end=False)
    assert [t for t, _ in due] == pytest.approx([0.1, 0.2, 0.25, 0.3])
    assert [sorted(g) for _, g in due] == [["a"], ["a", "b"], ["b"], ["a", "b"]]
    assert schedule.due(0.0, 0.3, 2, 3e-10, at_end=True) == [(0.3, frozenset("ab"))]
    assert schedule.next_time(0.2, 1e-9) == 0.25
    assert Schedule({"a": [EverySteps(3)]}).next_time(0.0, 0.0) == math.inf


@pytest.mark.parametrize("dt", [0.1, 0.3, 1 / 3, 1e-3, 7.0])
def test_every_multiple_of_a_cadence_is_met_once(dt):
    schedule = Schedule({"a": [EveryTime(dt)]})
    met, t = [], 0.0
    for n in range(1, 1500):
        end = n * dt * 0.7
        met += [time for time, _ in schedule.due(t, end, n, 1e-9 * dt, at_end=False)]
        t = end
    assert np.allclose(met, dt * np.arange(1, len(met) + 1), rtol=1e-12)
    assert len(met) == int(1499 * 0.7 + 1e-6)


def test_the_clock_does_not_lose_small_steps():
    clock = Clock()
    for _ in range(100_000):
        clock.add(0.1)
    assert clock.t == pytest.approx(10_000, abs=1e-11)
    assert abs(sum([0.1] * 100_000) - 10_000) > 1e-9  # what a plain sum gives


def test_steps_are_fitted_to_a_target():
    assert fit_step(0.3, 0.3, 1.0, 1.2) == (pytest.approx(0.2), True)
    assert fit_step(0.3, 0.3, 1.0, 1.3 + 1e-11) == (pytest.approx(0.3), True)
    assert fit_step(0.3, 0.3, 1.0, 1.4) == (pytest.approx(0.2), False)
    assert fit_step(0.3, 0.3, 1.0, 9.0) == (0.3, False)
    assert underflows(1e-17, 1.0)
    assert not underflows(1e-9, 1.0)
    assert not underflows(1e-300, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("entries", "finite"),
    [
        ([1.0, -2.0], True),
        ([], True),
        ([math.inf, -math.inf], False),
        ([0.0, math.nan], False),
        ([-math.inf], False),
        (["largest", "largest"], True),  # their sum is not
    ],
)
def test_what_is_finite(entries, finite, dtype):
    largest = torch.finfo(dtype).max
    values = [largest if entry == "largest" else entry for entry in entries]
    assert all_finite(torch.tensor(values, dtype=dtype)) is finite


# ---------------------------------------------------------------------- observing


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("problem", ["regression", "conv"])
def test_observing_never_changes_the_run(method, problem):
    if problem == "regression":
        train, test, theta = problems.load("chebyshev-5-20", "regression", "mse", dtype=torch.float64)
    else:
        case = zoo.make("conv")
        train = test = LossFunction(case.dataset, case.criterion, case.net, batch_size=4)
        theta = train.parameters()
    options = {"method": method.name, "t_max": 4.0, "save_every": 4.0, **method.options}
    # What lands on times is watched by steps.
    cls = gradflow.integrators.METHODS[method.name]
    every = 0.5 if cls.interpolates or cls.discrete else steps(2)
    bare = gradflow.integrate(train, theta, **options)
    watched = gradflow.integrate(
        train,
        theta,
        test=test,
        n_eigs=3,
        eigs_every=every,
        eigs_tol=1e-6,
        n_projections=5,
        projections_every=steps(3),
        params_every=steps(1),
        **options,
    )
    assert np.array_equal(bare.params, watched.params)
    assert bare.attrs["n_steps"] == watched.attrs["n_steps"]
    for name in ("n_gradients", "n_hvps", "time", "train_loss"):
        assert float(bare[name][-1]) == float(watched[name][-1])
    assert watched.attrs["n_hvps_observing"] > 0
    assert bare.attrs["n_hvps_observing"] == 0


def test_the_cost_of_observing_is_that_of_its_fields_each_once():
    loss = LossFunction.from_callable(bowl)
    one, other = Field(loss), Field(loss)
    for field, n in ((one, 3), (other, 5)):
        for _ in range(n):
            field.linearize(ONES).hvp(torch.eye(3, dtype=torch.float64))
    both, alone = Observers([one, other], {}, 3), Observers([one], {}, 3)
    assert (alone.n_gradients, alone.n_hvps) == (3, 9)
    assert (both.n_gradients, both.n_hvps) == (8, 24)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_runs_can_be_repeated_bit_for_bit(method, chebyshev):
    train, _, theta = chebyshev
    a, b = (
        gradflow.integrate(
            train, theta, method=method.name, t_max=2.0, n_eigs=2, n_projections=3, **method.options
        )
        for _ in range(2)
    )
    for name in a.variables:
        if name != "wall_time":
            assert np.array_equal(a[name], b[name], equal_nan=True), name


def test_recorded_eigenvalues_are_those_at_the_record(chebyshev):
    train, _, theta = chebyshev
    eye = torch.eye(len(theta), dtype=torch.float64)
    for method in METHODS:
        ds = gradflow.integrate(
            train,
            theta,
            method=method.name,
            t_max=3.0,
            save_every=1.0,
            n_eigs=3,
            eigs_tol=1e-6,
            **method.options,
        )
        for row in range(ds.sizes["time"]):
            H = train.hvp(torch.from_numpy(ds.theta.values[row]), eye)
            expected = torch.linalg.eigvalsh(H).flip(0)[:3]
            assert np.allclose(ds.eigenvalue[row], expected, atol=1e-6 * float(expected[0]))
            assert (ds.eigenvalue_residual[row] <= 1e-6).all()


def test_test_set_and_accuracy_are_recorded():
    train, test, theta = problems.load("digits", "fc-tanh-depth1", "ce")
    ds = gradflow.integrate(train, theta, method="gd", lr=0.5, max_steps=20, save_every=steps(10), test=test)
    for row, where in ((0, theta), (-1, torch.from_numpy(ds.params.values))):
        assert (float(ds.test_loss[row]), float(ds.test_accuracy[row])) == test.evaluate(where)
        assert float(ds.train_accuracy[row]) == train.evaluate(where)[1]
    assert float(ds.train_accuracy[-1]) > 0.8


def test_projections_keep_distances_and_are_the_same_everywhere(device):
    from gradflow.observe import RandomProjection

    P = 10_000  # more than two blocks
    projection = RandomProjection(50, P, seed=7)
    R = projection(torch.eye(P, dtype=torch.float64)[0])
    assert R.shape == (50,)
    x = torch.arange(P, dtype=torch.float64).sin()
    expected = projection(x)
    assert torch.allclose(projection(x.to(device, torch.float32)), expected, atol=1e-4)
    regenerated = RandomProjection(50, P, seed=7, memory_budget=0)
    assert torch.equal(regenerated(x), expected)
    assert not regenerated._kept
    assert not torch.equal(RandomProjection(50, P, seed=8)(x), expected)
    assert float(expected.norm() / x.norm()) == pytest.approx(1.0, abs=0.35)
    many = RandomProjection(4000, 200, seed=1)
    G = torch.stack([many(e) for e in torch.eye(200)[:5]])
    assert torch.allclose(G @ G.T, torch.eye(5).double(), atol=0.1)
    # pinned: files of different machines must be comparable
    pinned = torch.tensor([-0.0414844012, 0.2409580342, 0.2176745978], dtype=torch.float64)
    assert torch.allclose(R[:3], pinned, atol=1e-7), R[:3]


# ---------------------------------------------------------------------- ends


def test_ends_that_the_user_sets_are_successes():
    def run(**kwargs):
        return gradflow.integrate(bowl, ONES, method="gd", lr=0.1, **kwargs)

    ds = run(max_steps=5)
    assert (ds.attrs["status"], ds.attrs["n_steps"], ds.attrs["success"]) == ("max_steps", 5, 1)
    ds = run(loss_goal=0.5, t_max=100.0)
    assert (ds.attrs["status"], ds.attrs["success"]) == ("loss_goal", 1)
    assert float(ds.train_loss[-1]) <= 0.5 < float(ds.train_loss[-2])
    ds = run(max_wall_time=0.05)
    assert (ds.attrs["status"], ds.attrs["success"]) == ("max_wall_time", 1)
    seen = []
    ds = run(t_max=100.0, callback=lambda report: seen.append(report) or report.step == 7)
    assert (ds.attrs["status"], ds.attrs["n_steps"], ds.attrs["success"]) == ("callback", 7, 1)
    assert [r.step for r in seen] == list(range(1, 8))
    assert seen[2].t == pytest.approx(0.3)
    ds = run(loss_goal=1e9, t_max=1.0)
    assert (ds.attrs["status"], ds.attrs["n_steps"], len(ds.time)) == ("loss_goal", 0, 1)


@pytest.mark.parametrize("method", ["gd", "rk4", "expeuler"])
def test_accuracy_goal_ends_the_run_at_a_complete_record(method):
    train, _, theta = problems.load("digits", "fc-tanh-depth1", "ce")
    options = {"lr": 0.5} if method == "gd" else {}
    ds = gradflow.integrate(
        train,
        theta,
        method=method,
        t_max=50.0,
        save_every=1.0,
        acc_goal=0.8,
        n_eigs=1,
        eigs_every=50.0,
        **options,
    )
    assert ds.attrs["status"] == "acc_goal"
    assert float(ds.train_accuracy[-1]) >= 0.8 > float(ds.train_accuracy[0])
    assert float(ds.time[-1]) < 50
    assert np.isfinite(ds.eigenvalue.values[-1]).all()
    assert float(train(torch.from_numpy(ds.params.values))) == pytest.approx(
        float(ds.train_loss[-1]), rel=1e-6
    )


def test_successes_are_the_ends_that_were_asked_for():
    asked = {"t_max", "max_steps", "max_wall_time", "loss_goal", "acc_goal", "event", "callback"}
    assert {status.code for status in Status if status.success} == asked


def test_divergence_returns_the_record_with_a_warning():
    with pytest.warns(gradflow.IntegrationWarning, match=r"stopped being finite.*smaller steps"):
        ds = gradflow.integrate(lambda x: (x**4).sum(), ONES * 3, method="gd", lr=1.0, t_max=100.0)
    assert ds.attrs["status"] == "not_finite"
    assert ds.attrs["success"] == 0
    assert np.isfinite(ds.train_loss).all()
    assert np.isfinite(ds.params).all()
    assert int(ds.step[-1]) == ds.attrs["n_steps"] == len(ds.time) - 1


def test_divergence_raises_on_request_with_the_record():
    with pytest.raises(gradflow.IntegrationError, match="stopped being finite") as error:
        gradflow.integrate(
            lambda x: (x**4).sum(), ONES * 3, method="gd", lr=1.0, t_max=100.0, on_failure="raise"
        )
    failure = error.value
    assert failure.status == "not_finite"
    assert failure.t == float(failure.dataset.time[-1]) > 0
    assert failure.step == int(failure.dataset.step[-1])
    assert failure.loss == float(failure.dataset.train_loss[-1])


def test_a_pole_underflows_and_does_not_hang():
    """L = −log(1 − t)-like: the flow reaches a pole in finite time."""
    with pytest.warns(gradflow.IntegrationWarning):
        ds = gradflow.integrate(
            lambda x: -1 / (1 - x).abs().sum(), torch.full((1,), 0.5, dtype=torch.float64), method="rk4", t_max=10.0,
            max_steps=20_000,
        )  # fmt: skip
    assert ds.attrs["status"] in {"step_underflow", "not_finite", "no_sharpness"}
    assert float(ds.time[-1]) < 1.0


def test_no_usable_sharpness_is_a_status():
    def kink(x):
        """Finite gradient, but no second derivative at 0."""
        return (x.abs() ** 1.5).sum()

    start = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    with pytest.warns(gradflow.IntegrationWarning, match="No step could be sized"):
        ds = gradflow.integrate(kink, start, method="rk4", t_max=1.0)
    assert ds.attrs["status"] == "no_sharpness"
    assert len(ds.time) == 1


def test_the_built_in_cap_is_a_failure(monkeypatch):
    monkeypatch.setattr("gradflow.driver.stop_conditions.STEP_CAP", 10)
    with pytest.warns(gradflow.IntegrationWarning, match="built-in cap"):
        ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=100.0)
    assert (ds.attrs["status"], ds.attrs["n_steps"]) == ("step_cap", 10)
    assert gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=20).attrs["n_steps"] == 20


# ---------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("kwargs", "kind", "text"),
    [
        ({}, ValueError, "The run has no end: give t_max"),
        ({"t_max": 0.0}, ValueError, "t_max > 0, got 0.0"),
        ({"t_max": -1.0}, ValueError, "t_max > 0"),
        ({"t_max": math.nan}, ValueError, "t_max to be finite"),
        ({"t_max": math.inf}, ValueError, "t_max to be finite"),
        ({"t_max": "1"}, TypeError, "t_max to be a number, got str"),
        ({"t_max": 1.0, "save_every": 0.0}, ValueError, "save_every > 0"),
        ({"t_max": 1.0, "save_every": "often"}, TypeError, r"save_every as a time \(a number\), gradflow.steps"),
        ({"t_max": 1.0, "save_at": [0.5, 0.2]}, ValueError, "save_at to increase"),
        ({"t_max": 1.0, "save_at": [0.5, 0.5]}, ValueError, "save_at to increase"),
        ({"t_max": 1.0, "save_at": [0.5, 2.0]}, ValueError, "save_at within t_max = 1.0, got 2.0"),
        ({"t_max": 1.0, "save_at": [-0.5]}, ValueError, "save_at to hold finite times"),
        ({"t_max": 1.0, "save_at": 0.5}, TypeError, "save_at as a sequence"),
        ({"t_max": 1.0, "n_eigs": 4}, ValueError, "n_eigs ≤ P = 3, got 4"),
        ({"t_max": 1.0, "n_eigs": -1}, ValueError, "n_eigs ≥ 0"),
        ({"t_max": 1.0, "n_eigs": 1.5}, TypeError, "n_eigs to be an int"),
        ({"t_max": 1.0, "eigs_tol": 0.0}, ValueError, "eigs_tol > 0"),
        ({"t_max": 1.0, "n_projections": -2}, ValueError, "n_projections ≥ 0"),
        ({"t_max": 1.0, "max_steps": 0}, ValueError, "max_steps ≥ 1"),
        ({"t_max": 1.0, "max_wall_time": 0.0}, ValueError, "max_wall_time > 0"),
        ({"t_max": 1.0, "loss_goal": "low"}, TypeError, "loss_goal to be a number"),
        ({"t_max": 1.0, "acc_goal": 0.9}, ValueError, "acc_goal needs a loss whose targets are classes"),
        ({"t_max": 1.0, "eigs_every": 0.5}, ValueError, "eigs_every has nothing to measure: give n_eigs ≥ 1"),
        ({"t_max": 1.0, "save_at": "12"}, TypeError, "save_at as a sequence of times, got str"),
        ({"t_max": 10**400}, ValueError, "t_max to be finite"),
        ({"t_max": 1.0, "n_eigs": "2"}, TypeError, "n_eigs to be an int"),
        ({"t_max": 1.0, "projection_seed": 2**64}, ValueError, "projection_seed < 2⁶⁴"),
        ({"t_max": 1.0, "method_options": "lr"}, TypeError, "method_options as a mapping"),
        ({"t_max": 1.0, "method": gradflow.RK4}, TypeError, r"got the class: RK4\(…\)"),
        ({"tmax": 1.0}, TypeError, "no option 'tmax'; did you mean 't_max'"),
        ({"t_max": 1.0, "on_failure": []}, ValueError, "on_failure as"),
        ({"t_max": 1.0, "on_failure": "ignore"}, ValueError, "on_failure as"),
        ({"t_max": 1.0, "callback": 3}, TypeError, "callback as a callable"),
        ({"t_max": 1.0, "test": bowl}, TypeError, "test as a LossFunction"),
        ({"t_max": 1.0, "sync_every": -1.0}, ValueError, "sync_every ≥ 0"),
        ({"t_max": 1.0, "checkpoint_every": 0.0}, ValueError, "checkpoint_every > 0"),
        ({"t_max": 1.0, "params": None}, ValueError, "needs a network; this loss is a callable"),
        ({"t_max": 1.0, "params": torch.ones(3, dtype=torch.int64)}, TypeError, "float32 or float64"),
        ({"t_max": 1.0, "params": torch.ones(3, 1)}, ValueError, r"got \(3, 1\)"),
        ({"t_max": 1.0, "params": torch.ones(0)}, ValueError, r"got \(0,\)"),
        ({"t_max": 1.0, "params": [1.0]}, TypeError, "torch.Tensor, got list"),
        ({"t_max": 1.0, "params": torch.full((3,), math.nan)}, ValueError, "finite loss and gradient at the initial θ"),
        ({"t_max": 1.0, "loss": torch.nn.Linear(1, 1)}, TypeError, "LossFunction or a callable"),
        ({"t_max": 1.0, "loss": None}, TypeError, "LossFunction or a callable"),
        ({"t_max": 1.0, "method": 4}, TypeError, "method as a name, an integrator, or a class"),
        ({"t_max": 1.0, "lr": None}, TypeError, "lr to be a number"),
    ],
)  # fmt: skip
def test_mistakes_raise_at_once(kwargs, kind, text, tmp_path):
    arguments = {"loss": bowl, "params": ONES, "method": "gd", "lr": 0.1, "out": tmp_path / "x.nc"} | kwargs
    with pytest.raises(kind, match=text):
        gradflow.integrate(**arguments)
    assert not list(tmp_path.iterdir())


def test_required_options_are_named():
    with pytest.raises(TypeError, match="Method 'gd' needs lr: pass lr="):
        gradflow.integrate(bowl, ONES, method="gd", t_max=1.0)


def test_steps_is_a_positive_int():
    for bad, kind in (
        (0, ValueError),
        (-1, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        ("3", TypeError),
    ):
        with pytest.raises(kind):
            steps(bad)
    assert repr(steps(3)) == "steps(n=3, of=None)"


def test_params_are_neither_changed_nor_followed():
    theta = ONES.clone()

    def stop(report):
        theta.fill_(99.0)

    ds = gradflow.integrate(bowl, theta, method="gd", lr=0.1, max_steps=3, callback=stop)
    assert np.allclose(ds.params_initial, 1.0)
    assert np.allclose(ds.params, [0.9**3, 0.75**3, 0.6**3])


def test_progress_shows_time_loss_and_cost(capsys):
    gradflow.integrate(bowl, ONES, method="rk4", t_max=20.0, progress=True)
    shown = capsys.readouterr().err
    assert all(part in shown for part in ("100%", "t 20", "loss ", "λ₁ 4", "gradients ", "H·v "))
    gradflow.integrate(bowl, ONES, method="rk4", t_max=1.0)
    assert capsys.readouterr().err == ""


def test_numpy_scalars_are_numbers():
    ds = gradflow.integrate(
        bowl,
        ONES,
        method="gd",
        lr=np.float32(0.125),
        t_max=np.float64(1),
        n_eigs=np.int64(1),
        save_every=steps(np.int64(2)),
    )
    assert ds.step.values.tolist() == [0, 2, 4, 6, 8]


def test_times_that_differ_by_rounding_are_one():
    ds = gradflow.integrate(
        bowl, ONES, method="rk4", t_max=1.0, save_every=0.1, save_at=[0.3 - 1e-8, 0.3, 0.7]
    )
    assert ds.attrs["status"] == "t_max"
    assert np.allclose(ds.time, sorted([*np.arange(11) * 0.1, 0.3 - 1e-8]), atol=1e-12)


@pytest.mark.parametrize("method", ["rk4", "rkc"])
def test_a_record_due_within_rounding_of_the_end_is_the_end(method):
    t_max = 1.0 + 4e-13
    ds = gradflow.integrate(bowl, ONES, method=method, t_max=t_max, save_every=0.25)
    assert ds.time.values.tolist() == [0.0, 0.25, 0.5, 0.75, t_max]


def test_save_times_are_met_to_a_billionth_of_a_step_however_late():
    """A time that is 3e-10 of t before the end of a step is itself, and no more than 1e-9 h before, that end."""
    ends = []
    gradflow.integrate(
        bowl, 100 * ONES, method="rkc", t_max=5.0, max_step=0.05, callback=lambda r: ends.append((r.t, r.dt))
    )
    t, h = ends[len(ends) // 2]
    assert t > 20 * h
    near, same = t * (1 - 3e-10), ends[-5][0] - 3e-10 * ends[-5][1]
    ds = gradflow.integrate(bowl, 100 * ONES, method="rkc", t_max=5.0, max_step=0.05, save_at=[near, same])
    assert ds.time.values.tolist() == [0.0, near, ends[-5][0], 5.0]


def test_cadences_far_below_the_steps_do_not_hang():
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.0, save_every=1e-30)
    assert ds.attrs["n_steps"] == 10
    times = list(np.linspace(0, 1, 100_001)[1:])
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.01, t_max=1.0, save_at=times)
    assert len(ds.time) == 101


def test_the_spectral_density_is_recorded_on_its_grid(tmp_path):
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    x = np.linspace(-1.0, 6.0, 141)
    shared = {"method": "gd", "lr": 0.1, "max_steps": 4, "density_at": x, "density_every": gradflow.steps(2)}
    ds = gradflow.integrate(train, theta, out=tmp_path / "x.nc", **shared)
    assert ds.spectral_density.dims == ds.spectral_density_error.dims == ("time", "x")
    assert np.array_equal(ds.x, x)
    due = np.isfinite(ds.spectral_density.values).all(1)
    assert due.tolist() == [True, False, True, False, True]
    assert ds.attrs["n_hvps_observing"] == 3 * 10 * 80
    λ = torch.linalg.eigvalsh(train.linearize(theta) @ torch.eye(300, dtype=torch.float64)).numpy()
    σ = 0.05
    expected = np.exp(-0.5 * ((x[:, None] - λ) / σ) ** 2).mean(1) / (σ * np.sqrt(2 * np.pi))
    density, error = ds.spectral_density.values[0], ds.spectral_density_error.values[0]
    assert np.all(np.abs(density - expected) < 6 * error + 1e-3 * expected.max())
    assert float(np.trapezoid(density, x)) == pytest.approx(1, abs=0.02)
    plain = gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=4)
    assert np.array_equal(plain.theta, ds.theta)
    again = gradflow.integrate(train, theta, **shared)
    assert np.array_equal(again.spectral_density, ds.spectral_density, equal_nan=True)


@pytest.mark.parametrize(
    ("grid", "text"),
    [
        ([1.0], "at least two"),
        ([1.0, 0.5], "increasing"),
        ([0.0, float("nan")], "finite"),
        (["a"], "sequence of numbers"),
    ],
)
def test_a_grid_that_is_none_is_refused(grid, text):
    with pytest.raises(gradflow.GradflowError, match=text):
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(2), method="gd", lr=0.1, max_steps=1, density_at=grid
        )
    with pytest.raises(gradflow.GradflowError, match="give density_at"):
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(2), method="gd", lr=0.1, max_steps=1, density_every=1.0
        )


# ---------------------------------------------------------------------- cadences of each kind


def known(array):
    return array.time.values[np.isfinite(array.values.reshape(len(array), -1)[:, 0])]


def test_every_group_takes_times_one_by_one():
    train, test, theta = problems.load("digits", "fc-tanh-depth1", "mse")
    times = {
        "save": [0.5],
        "eigs": np.geomspace(0.1, 1, 3),
        "projections": (0.2, 0.7),
        "test": [0.4],
        "params": [0.9],
    }
    run = gradflow.integrate(
        train, theta, method="rk4", t_max=1.0, test=test, n_eigs=1, n_projections=2,
        **{f"{name}_every": each for name, each in times.items()},
    )  # fmt: skip
    found = {
        "eigs": run.eigenvalue, "projections": run.projection, "test": run.test_loss, "params": run.theta,
    }  # fmt: skip
    for name, array in found.items():
        assert np.allclose(known(array), sorted({0.0, *times[name], 1.0})), name
    assert np.isfinite(run.train_loss).all()
    assert np.isfinite(run.train_accuracy).all()
    union = {0.0, 1.0, *(float(t) for each in times.values() for t in each)}
    assert np.allclose(run.time, sorted(union))


def test_test_metrics_are_measured_when_they_are_due_alone(monkeypatch):
    train, test, theta = problems.load("digits", "fc-tanh-depth1", "mse")
    calls = []
    evaluate = test.evaluate
    monkeypatch.setattr(test, "evaluate", lambda θ: calls.append(1) or evaluate(θ))
    gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=20, test=test, test_every=steps(10))
    assert len(calls) == 3


@pytest.mark.parametrize("lr", [0.1, 0.07, 0.3])
@pytest.mark.parametrize("method", ["auto", "rk4", "expeuler"])
def test_steps_of_a_size_are_the_same_times_for_optimiser_and_flow(lr, method, chebyshev):
    """Bit for bit, so that xarray aligns them."""
    train, _, theta = chebyshev
    every = steps(3, of=lr)
    shared = {"t_max": 30 * lr, "save_every": every, "n_projections": 2}
    gd = gradflow.integrate(train, theta, method="gd", lr=lr, **shared)
    flow = gradflow.integrate(train, theta, method=method, **shared)
    named = [k * 3 * lr for k in range(1, 10)]
    assert set(named) <= set(gd.time.values) & set(flow.time.values)
    one, two = xr.align(gd, flow, join="inner")
    assert len(one.time) >= 10
    difference = gradflow.compare(gd, flow)
    n = len(difference.time)
    assert n in {len(one.time), len(one.time) + 1}  # the ends may differ by rounding
    assert np.allclose(
        difference.distance[:10], np.linalg.norm(one.theta - two.theta, axis=1)[:10], rtol=1e-12, atol=0
    )


def test_steps_of_a_size_come_as_they_do_in_gradient_descent():
    cadence = gradflow.driver.cadence("save_every", steps(7, of=0.01))
    t, times = 0.0, []
    for _ in range(2000):
        t = cadence.next_after(t)
        times.append(t)
    assert times == [7 * k * 0.01 for k in range(1, 2001)]


@pytest.mark.parametrize(
    ("cadence", "kind", "text"),
    [
        ([0.5, 0.2], ValueError, "eigs_every to increase strictly"),
        ([2.0], ValueError, "eigs_every within t_max = 1.0"),
        (["soon"], TypeError, "eigs_every as a sequence of times"),
        (np.array([[0.1]]), TypeError, "eigs_every as a sequence of times"),
        ("1,2", TypeError, "eigs_every as a time"),
    ],
)
def test_cadences_that_are_none(cadence, kind, text):
    with pytest.raises(kind, match=text):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.0, n_eigs=1, eigs_every=cadence)
    for of, error in ((0.0, ValueError), (-1, ValueError), ("1", TypeError), (math.inf, ValueError)):
        with pytest.raises(error, match="the size of steps"):
            steps(2, of=of)
    with pytest.raises(ValueError, match="test_every has nothing to measure: give test"):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.0, test_every=0.5)


# ---------------------------------------------------------------------- spectra of a part of the data


@pytest.mark.parametrize("method", ["rk4", "exprb32"])
def test_recorded_spectra_are_those_of_the_first_samples(method):
    """And the run, with the λ₁ that it measures for its steps, is the same bit for bit."""
    train, _, theta = problems.load("chebyshev-5-20", "regression", "mse", dtype=torch.float64)
    kwargs = {"method": method, "t_max": 2.0, "save_every": 0.5, "n_eigs": 3, "eigs_tol": 1e-8}
    if method == "exprb32":
        kwargs["dense"] = False
    whole = gradflow.integrate(train, theta, **kwargs)
    part = gradflow.integrate(train, theta, abridged_size=7, **kwargs)
    assert np.array_equal(whole.theta, part.theta)
    assert np.array_equal(whole.sharpness_used, part.sharpness_used, equal_nan=True)
    assert np.array_equal(whole.n_hvps, part.n_hvps)
    X, y = train.source.data.dataset.tensors
    first = gradflow.LossFunction(
        torch.utils.data.TensorDataset(X[:7], y[:7]), gradflow.HalfSquaredError(), train.source.net
    )
    for θ, λ in zip(part.theta.values, part.eigenvalue.values, strict=True):
        H = first.hvp(torch.from_numpy(θ), torch.eye(300, dtype=torch.float64))
        assert np.allclose(λ, torch.linalg.eigvalsh(H).flip(0)[:3], rtol=1e-6)
    assert not np.allclose(part.eigenvalue, whole.eigenvalue, rtol=1e-2)


def test_abridged_spectra_keep_the_ghost_batches():
    train, _, theta = problems.load("digits", "cnn-bn-tanh", "mse", batch_size=100)
    assert train.first(250).n_samples == 250
    assert train.first(250).describe()["batch_size"] == 100
    assert train.first(250).describe()["first"] == 250
    assert train.first(5000) is train
    total = sum(
        float(train.first(n)(theta)) * n * sign for n, sign in ((200, 1), (100, -1))
    )  # the second ghost batch alone
    X, y = (t[100:200] for t in train.source.data.dataset.tensors)
    second = gradflow.LossFunction(
        torch.utils.data.TensorDataset(X, y), gradflow.HalfSquaredError(), train.source.net
    )
    assert total / 100 == pytest.approx(float(second(theta)), rel=1e-5)


def test_abridged_sizes_that_are_none():
    for n, kind in ((0, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(kind, match="abridged_size"):
            gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.0, n_eigs=1, abridged_size=n)
    with pytest.raises(ValueError, match="needs a loss with data; this one is a callable"):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, t_max=1.0, n_eigs=1, abridged_size=2)
