"""Events: located where a dense solution has them, recorded, ends where asked for, and gone on with."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import gradflow
from gradflow import Event
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError

double = torch.float64
START = torch.tensor([1.0, 1.0], dtype=double)


def sharpening(x):
    return 0.5 * (x[0] * x[1] - 3) ** 2 + 0.5 * (x[1] - x[0]) ** 2


def sharpness(x):
    """λ₁ on the diagonal x₀ = x₁, where the flow stays: 2x² − 3 + … along (1, 1)."""
    H = torch.autograd.functional.hessian(sharpening, torch.as_tensor(x, dtype=double))
    return float(torch.linalg.eigvalsh(H)[-1])


def on_the_diagonal(value):
    """The time at which the flow's first coordinate, an ODE in one dimension, has a value."""
    run = solve_ivp(
        lambda t, x: -(x**2 - 3) * x, (0, 5), [1.0], "DOP853", rtol=1e-12, atol=1e-12, dense_output=True
    )
    return brentq(lambda t: run.sol(t)[0] - value, 0, 5, xtol=1e-13)


def run(method="dopri8", events=(), **options):
    options = {"t_max": 3.0, "save_every": 1.0} | options
    return gradflow.integrate(sharpening, START, method=method, events=events, **options)


TIGHT = {
    "dopri5": {"rtol": 1e-9, "atol": 1e-11},
    "dopri8": {"rtol": 1e-9, "atol": 1e-11},
    "exprb43": {"rtol": 1e-8, "atol": 1e-10},
    "rkc": {"rtol": 1e-8, "atol": 1e-10},
    "rk4": {"alpha": 0.05},
    "scipy:Radau": {"rtol": 1e-9, "atol": 1e-11},
}


@pytest.mark.parametrize("method", TIGHT)
def test_a_crossing_is_where_the_flow_has_it(method):
    first = Event(lambda point: point.theta[0], 1.2, name="first")
    ds = run(method, [first], **TIGHT[method])
    (i,) = np.flatnonzero(ds.event_first)
    assert abs(float(ds.time[i]) - on_the_diagonal(1.2)) < 2e-6
    assert ds.theta.values[i, 0] == pytest.approx(1.2, abs=2e-6)
    assert ds.attrs["status"] == "t_max"
    assert ds.event_first.attrs["long_name"] == "1 where first crosses 1.2"
    assert ds.event_first.dtype == np.int8
    rest = ds.isel(time=[j for j in range(ds.sizes["time"]) if j != i])
    assert np.allclose(rest.time, [0, 1, 2, 3])
    assert int(rest.event_first.sum()) == 0


@pytest.mark.parametrize("method", TIGHT)
def test_a_terminal_event_ends_the_run_there(method):
    ds = run(method, [Event("sharpness", 5.0, direction="rising", terminal=True)], **TIGHT[method])
    assert ds.attrs["status"] == "event"
    assert ds.attrs["success"]
    assert ds.attrs["message"].endswith(f"At t = {float(ds.time[-1]):.9g}: sharpness rises to 5.")
    assert sharpness(ds.params.values) == pytest.approx(5.0, abs=1e-5)
    assert np.array_equal(ds.params, ds.theta[-1])
    assert ds.event_sharpness.values.tolist() == [0] * (ds.sizes["time"] - 1) + [1]
    assert float(ds.train_loss[-1]) == pytest.approx(float(sharpening(torch.from_numpy(ds.params.values))))


@pytest.mark.parametrize("method", ["gd", "adam"])
def test_an_optimiser_has_events_at_its_steps(method):
    ds = run(method, [Event("sharpness", 5.0, terminal=True)], lr=0.02, save_every=None)
    λ = [sharpness(x) for x in ds.theta.values[-2:]]
    assert λ[0] < 5.0 <= λ[1]
    assert ds.attrs["status"] == "event"
    assert ds.event_sharpness.values[-1] == 1


def test_gradient_descent_stops_at_the_edge_of_stability():
    lr = 0.35
    ds = run(
        "gd",
        [Event("sharpness", 2 / lr, direction="rising", terminal=True)],
        lr=lr,
        max_steps=200,
        t_max=None,
    )
    assert ds.attrs["status"] == "event"
    λ = [sharpness(x) for x in ds.theta.values]
    assert max(λ[:-1]) < 2 / lr <= λ[-1]


def test_directions():
    def wave(point):
        return np.cos(4 * point.t)

    def crossings(direction):
        ds = run("exprb43", [Event(wave, direction=direction, name="wave")], save_every=3.0, max_step=0.1)
        return ds.time.values[ds.event_wave == 1]

    down, up = np.pi / 8 + np.arange(0, 6, 2) * np.pi / 4, np.pi / 8 + np.arange(1, 6, 2) * np.pi / 4
    assert np.allclose(crossings("falling"), down[down < 3], atol=2e-7)
    assert np.allclose(crossings("rising"), up[up < 3], atol=2e-7)
    assert len(crossings("either")) == len(crossings("falling")) + len(crossings("rising"))


def test_what_comes_after_a_terminal_event_does_not_happen():
    first = Event(lambda point: point.theta[0], 1.1, terminal=True, name="first")
    second = Event(lambda point: point.theta[0], 1.2, name="second")
    ds = run("exprb43", [second, first], max_step=3.0)
    assert float(ds.theta[-1, 0]) == pytest.approx(1.1, abs=1e-5)
    assert int(ds.event_second.sum()) == 0
    assert int(ds.event_first[-1]) == 1


def test_two_events_at_one_time_share_a_record():
    events = [
        Event(lambda point: point.theta[0], 1.2, name="x0"),
        Event(lambda point: 10 * point.theta[0], 12.0, name="scaled"),
    ]
    ds = run("exprb43", events)
    times = [float(ds.time[np.flatnonzero(ds[f"event_{name}"])[0]]) for name in ("x0", "scaled")]
    assert times[0] == pytest.approx(times[1], abs=1e-6)


@pytest.mark.parametrize("method", ["exprb43", "rkc", "dopri5", "rk4"])
def test_a_flow_ends_where_the_loss_is_the_goal(method):
    ds = run(method, loss_goal=0.5, save_every=None)
    assert ds.attrs["status"] == "loss_goal"
    assert float(ds.train_loss[-1]) == pytest.approx(0.5, abs=1e-5)
    assert float(ds.train_loss[-1]) <= 0.5
    assert not [name for name in ds if name.startswith("event")]


def test_a_goal_that_is_reached_already_ends_the_run_at_once():
    ds = run("exprb43", loss_goal=100.0)
    assert (ds.attrs["status"], ds.sizes["time"], ds.attrs["n_steps"]) == ("loss_goal", 1, 0)


def test_the_accuracy_is_looked_at_after_every_step():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.randn(60, 3, dtype=double), torch.randint(0, 2, (60,))
        net = torch.nn.Linear(3, 2).to(double)
    y[X[:, 0] > 0], y[X[:, 0] <= 0] = 1, 0
    loss = gradflow.LossFunction(torch.utils.data.TensorDataset(X, y), torch.nn.CrossEntropyLoss(), net)
    ds = gradflow.integrate(loss, method="gd", lr=0.1, acc_goal=0.97, max_steps=1000, save_every=1e3)
    every = gradflow.integrate(loss, method="gd", lr=0.1, max_steps=int(ds.attrs["n_steps"]))
    assert ds.attrs["status"] == "acc_goal"
    assert (every.train_accuracy.values[:-1] < 0.97).all()
    assert float(every.train_accuracy[-1]) >= 0.97
    flow = gradflow.integrate(loss, method="exprb43", acc_goal=0.97, t_max=500.0)
    assert flow.attrs["status"] == "acc_goal"
    assert float(flow.train_accuracy[-1]) >= 0.97


def test_mini_batches_are_looked_at_at_the_records():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X = torch.randn(40, 2, dtype=double)
        net = torch.nn.Linear(2, 1).to(double)
    data = torch.utils.data.TensorDataset(X, X @ torch.tensor([[1.0], [-2.0]], dtype=double))
    loss = gradflow.LossFunction(data, torch.nn.MSELoss(), net)
    options = {
        "method": "sgd",
        "lr": 0.05,
        "batch_size": 8,
        "max_steps": 300,
        "save_every": gradflow.steps(7),
    }
    ds = gradflow.integrate(loss, events=[Event("loss", 0.01, terminal=True)], **options)
    assert ds.attrs["status"] == "event"
    assert int(ds.step[-1]) % 7 == 0
    assert float(ds.train_loss[-1]) <= 0.01 < float(ds.train_loss[-2])
    assert int(ds.event_loss[-1]) == 1


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("exprb43", {}),
        ("rk4", {}),
        ("dopri8", {}),
        ("expeuler", {"stiff_dim": 1, "step_size": "ErrorControl(rtol=1e-3)"}),
    ],
)
def test_events_do_not_change_the_run(method, options):
    """But for records at their times; what locating them costs is counted as observing."""
    bare = run(method, save_every=0.5, **options)
    watched = run(method, [Event("sharpness", 5.0), Event("gradient_norm", 1.0)], save_every=0.5, **options)
    assert watched.attrs["n_gradients_observing"] > bare.attrs["n_gradients_observing"]
    kept = watched.isel(time=np.flatnonzero(np.isin(watched.time, bare.time)))
    assert watched.sizes["time"] == bare.sizes["time"] + 2
    for name in bare.variables:
        if name != "wall_time":
            assert np.array_equal(kept[name], bare[name], equal_nan=True), name


def test_looking_within_a_step_leaves_later_eigensolves_as_they_are():
    """A doubled step of expeuler solves for eigenpairs in its middle, also where it is taken to locate an event."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 40, generator=generator, dtype=double)
    start = torch.randn(40, generator=generator, dtype=double)

    def loss(x):
        return 0.5 * x @ (A @ A.T / 40) @ x + 0.05 * (x**4).sum()

    options = {"method": "expeuler", "stiff_dim": 3, "step_size": "ErrorControl(rtol=1e-3)", "t_max": 1.0}
    bare = gradflow.integrate(loss, start, save_every=1.0, **options)
    watched = gradflow.integrate(loss, start, save_every=1.0, events=[Event("loss", 5.0)], **options)
    assert int(watched.event_loss.sum()) == 1
    assert np.array_equal(watched.params, bare.params)
    for name in ("n_gradients", "n_hvps"):
        assert int(watched[name][-1]) == int(bare[name][-1])
        assert watched.attrs[f"{name}_observing"] > bare.attrs[f"{name}_observing"]


@pytest.mark.parametrize(("first", "last"), [(0.1, 0.9), (0.1, 1.1), (-1.0, 0.2)])
def test_a_crossing_where_there_is_no_number_is_found_at_the_next_that_there_is(first, last):
    """Between the ends of a step, at the end of one, and from the start."""

    def gap(point):
        return np.nan if first < point.t < last else point.t - 0.5

    ds = gradflow.integrate(
        lambda x: 0.5 * (x**2).sum(),
        torch.ones(2, dtype=double),
        method="exprb43",
        step_size=1.0,
        t_max=3.0,
        save_every=3.0,
        events=[Event(gap, terminal=True)],
    )
    at = {0.9: 1.0, 1.1: 2.0, 0.2: None}[last]
    assert ds.attrs["status"] == (
        "t_max" if at is None else "event"
    )  # before the first number there is no side
    assert float(ds.time[-1]) == (3.0 if at is None else at)


def test_a_resumed_run_has_the_events_of_the_uninterrupted_one(tmp_path):
    def events():
        return [Event("sharpness", 5.0), Event(lambda point: point.theta[0], 1.5, name="late")]

    class Died(Exception):
        pass

    def dies(report):
        if report.step == 5:
            raise Died

    options = {"rtol": 1e-6, "atol": 1e-8, "checkpoint_every": 1e-9}
    whole = run("exprb43", events(), out=tmp_path / "whole.nc", **options)
    with pytest.raises(Died):
        run("exprb43", events(), out=tmp_path / "cut.nc", callback=dies, **options)
    resumed = run("exprb43", events(), resume=tmp_path / "cut.nc", **options)
    for name in whole.variables:
        if name != "wall_time":
            assert np.array_equal(whole[name], resumed[name], equal_nan=True), name
    with pytest.raises(gradflow.errors.ResumeError, match="events was"):
        run("exprb43", events()[:1], out=tmp_path / "whole.nc", resume="auto", **options)


def test_the_report_of_a_step_that_was_cut_short_is_of_its_end():
    reports = []
    ds = run("exprb43", [Event("sharpness", 5.0, terminal=True)], callback=reports.append)
    assert reports[-1].t == float(ds.time[-1])
    assert np.array_equal(reports[-1].theta, ds.params)
    assert sum(r.dt for r in reports) == pytest.approx(reports[-1].t)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Event("sharpnes", 1.0), UnknownNameError, "No quantity 'sharpnes'; did you mean 'sharpness'?"),
        (lambda: Event("accuracy", 0.5), InvalidInputError, "needs a loss whose targets are classes"),
        (lambda: Event(3.0, 1.0), InvalidTypeError, "Expected an event's quantity as a name or a function"),
        (lambda: Event("loss", "1"), InvalidTypeError, "Expected the threshold of an event to be a number"),
        (lambda: Event("loss", float("nan")), InvalidInputError, "Expected the threshold of an event to be finite"),
        (lambda: Event("loss", 1.0, direction="up"), InvalidInputError, 'direction as "either", "rising" or "falling"'),
        (lambda: Event("loss", 1.0, name="a b"), InvalidInputError, "name of letters, digits and _, got 'a b'"),
        (lambda: Event(lambda point: point.theta, 1.0), InvalidTypeError, "quantity of an event as a number"),
        (lambda: "sharpness", InvalidTypeError, "Expected events as a sequence of gradflow.Event, got str."),
        (lambda: [("sharpness", 2.0)], InvalidTypeError, "Expected events as gradflow.Event(…), got tuple"),
        (lambda: [Event("loss", 1.0), Event("loss", 2.0)], InvalidInputError, "Two events have the name 'loss'"),
    ],
)  # fmt: skip
def test_bad_events_are_refused(make, error, message):
    def use():
        made = make()
        run("exprb43", [made] if isinstance(made, Event) else made)

    with pytest.raises(error) as caught:
        use()
    assert message in str(caught.value)


def test_a_flow_cannot_take_the_variable_of_an_event():
    class Climb(gradflow.Flow):
        name = "climb"
        variables = {"event_loss": gradflow.Variable()}

        def velocity(self, point):
            return point.gradient

        def measure(self, point):
            return {"event_loss": 1.0}

    with pytest.raises(
        InvalidInputError, match="records 'event_loss', which is a variable of the run or an event"
    ):
        run("rk4", [Event("loss", 1.0)], flow=Climb())


def test_one_event_needs_no_list():
    assert run("exprb43", Event("sharpness", 5.0, terminal=True)).attrs["status"] == "event"


def test_a_terminal_event_is_an_end():
    assert run("exprb43", Event("sharpness", 5.0, terminal=True), t_max=None).attrs["status"] == "event"
    with pytest.raises(InvalidInputError, match="The run has no end"):
        run("exprb43", Event("sharpness", 5.0), t_max=None)
