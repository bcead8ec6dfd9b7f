"""What is recorded at the second-order midpoints of an optimiser's iterates, and that nothing else notices."""

import numpy as np
import pytest
import torch
from helpers.problems import chebyshev
from test_resume import dies_after, differences, run_and_resume

import gradflow
from gradflow import Observer, Variable, open_run, steps

double = torch.float64
SCALE = torch.tensor([19.5, 2.0, 1.0], dtype=double)


def bowl(x):
    """A quadratic that gradient descent with lr 0.1 crosses from side to side along the first coordinate."""
    return 0.5 * (SCALE * x**2).sum()


def descend(loss=bowl, theta=None, **kwargs):
    theta = torch.ones(3, dtype=double) if theta is None else theta
    return gradflow.integrate(loss, theta, **({"method": "gd", "lr": 0.1, "max_steps": 12} | kwargs))


def by_hand(theta):
    """Midpoints of recorded iterates; NaN at the first and the last."""
    middle = np.full_like(theta, np.nan)
    middle[1:-1] = (theta[:-2] + 2 * theta[1:-1] + theta[2:]) / 4
    return middle


def test_the_midpoints_are_those_of_three_iterates():
    run = descend(midpoint=True, n_eigs=2, n_projections=4)
    middle = by_hand(run.theta.values)
    assert np.allclose(run.midpoint_theta, middle, rtol=1e-14, atol=1e-16, equal_nan=True)
    assert np.allclose(run.midpoint_train_loss, 0.5 * middle**2 @ SCALE.numpy(), rtol=1e-13, equal_nan=True)
    slope = np.linalg.norm(middle * SCALE.numpy(), axis=1)
    assert np.allclose(run.midpoint_gradient_norm, slope, rtol=1e-13, equal_nan=True)
    assert np.allclose(run.midpoint_eigenvalue[1:-1], [[19.5, 2.0]])
    off = (run.theta.values - middle) ** 2
    assert np.allclose(run.oscillation_variance, off.sum(1), rtol=1e-12, equal_nan=True)
    assert np.allclose(run.oscillation_along, off[:, :2], rtol=1e-9, atol=1e-18, equal_nan=True)
    assert np.allclose(run.midpoint_projection, by_hand(run.projection.values), atol=1e-13, equal_nan=True)
    assert np.isnan(run.midpoint_train_loss.values[[0, -1]]).all()
    assert run.oscillation_along.dims == ("time", "eig")
    # An iterate is on the side that the factor 1 − ηλ = −0.95 takes it to, the midpoint near the axis.
    assert float(abs(run.theta[5, 0])) > 1000 * float(abs(run.midpoint_theta[5, 0]))


@pytest.mark.parametrize(
    ("method", "options"),
    [("gd", {"lr": 0.1}), ("adam", {"lr": 0.01}), ("lbfgs", {"lr": 0.5, "max_iter": 3}), ("elra", {})],
)
def test_the_run_and_its_records_do_not_notice(method, options):
    train, test, theta = chebyshev()
    options = {
        "method": method, "max_steps": 8, "n_eigs": 2, "n_projections": 3, "test": test,
        "observe": {"bend": lambda point: point.hvp(point.gradient).norm()}, **options,
    }  # fmt: skip
    bare, watched = (gradflow.integrate(train, theta, midpoint=m, **options) for m in (False, True))
    for name in bare.variables:
        if name != "wall_time":
            assert np.array_equal(bare[name], watched[name], equal_nan=True), name
    assert np.allclose(watched.midpoint_theta, by_hand(bare.theta.values), atol=1e-13, equal_nan=True)
    assert "midpoint_train_loss" not in bare
    # The midpoint's spectrum and its loss share one gradient; each of 7 midpoints takes one.
    extra = watched.attrs["n_gradients_observing"] - bare.attrs["n_gradients_observing"]
    assert extra == 7
    assert watched.attrs["n_hvps_observing"] > bare.attrs["n_hvps_observing"]


def test_each_quantity_has_its_own_cadence():
    every = descend(midpoint=True, n_eigs=2)
    sparse = descend(
        midpoint=True, save_every=steps(4), n_eigs=2, eigs_every=steps(3), params_every=[0.55], n_projections=2,
        projections_every=steps(6),
    )  # fmt: skip
    rows = sparse.step.values
    assert rows.tolist() == [0, 3, 4, 6, 8, 9, 12]
    assert np.array_equal(sparse.midpoint_train_loss, every.midpoint_train_loss[rows], equal_nan=True)
    assert np.array_equal(sparse.oscillation_variance, every.oscillation_variance[rows], equal_nan=True)
    due = {name: rows[np.isfinite(sparse[name].values[:, 0])].tolist() for name in (
        "midpoint_eigenvalue", "oscillation_along", "midpoint_theta", "midpoint_projection", "eigenvalue",
    )}  # fmt: skip
    assert due == {
        "midpoint_eigenvalue": [3, 6, 9], "oscillation_along": [3, 6, 9], "midpoint_theta": [6],
        "midpoint_projection": [6], "eigenvalue": [0, 3, 6, 9, 12],
    }  # fmt: skip


def test_the_record_of_an_event_has_its_midpoint():
    event = gradflow.Event("loss", 7.0, direction="falling")
    run = descend(midpoint=True, save_every=steps(6), events=[event])
    at = int(np.flatnonzero(run.event_loss)[0])
    assert int(run.step[at]) not in {0, 6, 12}
    assert np.isfinite(run.midpoint_train_loss[at])
    ends = descend(midpoint=True, events=[gradflow.Event("loss", 6.0, terminal=True)])
    assert ends.attrs["status"] == "event"
    assert np.isfinite(ends.midpoint_train_loss).values.tolist() == [False] + [True] * (
        len(ends.time) - 2
    ) + [False]


@pytest.mark.parametrize(
    ("method", "lr", "cadence", "cut"),
    [("gd", 0.1, 1, 5), ("rmsprop", 0.01, 3, 6), ("gd", 0.1, 3, 7)],  # a record waits at 5 and 6, none at 7
)
def test_a_resumed_run_has_the_same_midpoints(method, lr, cadence, cut, tmp_path):
    train, test, theta = chebyshev()
    kwargs = {
        "method": method, "lr": lr, "max_steps": 10, "save_every": steps(cadence), "n_eigs": 2, "abridged_size": 10,
        "n_projections": 3, "test": test, "midpoint": True,
    }  # fmt: skip
    whole, again = run_and_resume(tmp_path / "x.nc", cut, train, theta, **kwargs)
    assert differences(whole, again) == []
    assert np.isfinite(whole.midpoint_train_loss[1:-1]).all()
    if method == "rmsprop":
        assert np.isfinite(whole.midpoint_effective_eigenvalue[1:-1]).all()


def test_a_record_on_disk_lacks_its_midpoint_until_the_next_step(tmp_path):
    """What was on disk before the step that a run died in is whole."""
    path = tmp_path / "x.nc"

    def look(report):
        if report.step == 6:
            seen.append(open_run(path).load())

    seen = []
    whole = descend(midpoint=True, out=path, sync_every=0, callback=look)
    assert seen[0].step.values.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(seen[0].midpoint_train_loss, whole.midpoint_train_loss[:6], equal_nan=True)
    late = tmp_path / "late.nc"
    with pytest.raises(Exception, match="at step 6"):
        descend(midpoint=True, out=late, sync_every=1e9, callback=dies_after(5))
    left = open_run(late)
    assert np.array_equal(left.train_loss, whole.train_loss[:6])
    assert np.isfinite(left.midpoint_train_loss).values.tolist() == [False] + [True] * 5


def test_runs_with_and_without_are_not_the_same_run(tmp_path):
    path = tmp_path / "x.nc"
    descend(midpoint=True, out=path).close()
    descend(midpoint=True, out=path, resume="auto").close()
    with pytest.raises(gradflow.errors.ResumeError, match="midpoint was true, is false"):
        descend(out=path, resume="auto")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rk4", "t_max": 1.0}, r"rk4 follows a flow, which doesn't oscillate"),
        ({"method": "sgd", "lr": 0.1, "batch_size": 5}, r"Midpoints need steps that see all of the data"),
    ],
)
def test_midpoints_are_refused_where_there_are_none(options, message):
    train, _, theta = chebyshev()
    with pytest.raises(gradflow.GradflowError, match=message):
        gradflow.integrate(train, theta, max_steps=3, midpoint=True, **options)


class Slope(Observer):
    """The length of the oscillation, and the gradient where it is averaged out."""

    variables = {"slope": Variable(("param",), "gradient"), "swing": Variable(long_name="oscillation")}
    at_midpoint = True

    def measure(self, point):
        return {"slope": point.gradient, "swing": point.oscillation.norm()}


def test_an_observer_of_a_users_own_may_be_at_the_midpoint():
    run = descend(midpoint=True)
    own = descend(observe=[Slope(every=steps(2))])
    assert "midpoint_train_loss" not in own
    rows = [2, 4, 6, 8, 10]
    assert np.flatnonzero(np.isfinite(own.swing)).tolist() == rows
    assert np.allclose(own.swing[rows] ** 2, run.oscillation_variance[rows], rtol=1e-14)
    assert np.allclose(own.slope[rows], run.midpoint_theta[rows] * SCALE.numpy(), rtol=1e-14)
    with pytest.raises(gradflow.GradflowError, match="rk4 follows a flow"):
        gradflow.integrate(bowl, torch.ones(3), method="rk4", t_max=1.0, observe=[Slope()])


def test_vectors_that_missed_the_tolerance_are_not_computed_again():
    train, _, theta = chebyshev()
    options = {"method": "gd", "lr": 0.1, "max_steps": 3, "n_eigs": 2, "eigs_tol": 1e-18, "midpoint": True}
    run = gradflow.integrate(train, theta, **options)
    assert float(run.midpoint_eigenvalue_residual[1, 0]) > 1e-18
    assert np.isfinite(run.oscillation_along[1:-1]).all()
    bare = gradflow.integrate(train, theta, **options | {"midpoint": False})
    records, midpoints = 4, 2
    per_record = bare.attrs["n_hvps_observing"] / records
    extra = run.attrs["n_hvps_observing"] - bare.attrs["n_hvps_observing"]
    assert extra <= 1.1 * midpoints * per_record
