"""The central flow: order, invariants, events, schedules, refusals, and what is recorded."""

import math

import numpy as np
import pytest
import torch
from helpers import zoo
from helpers.problems import chebyshev

import gradflow
from gradflow.errors import InvalidInputError, InvalidTypeError, NonFiniteLossError, UnknownOptionError
from gradflow.flows import CentralFlow, Field
from gradflow.flows.central.third import third_derivatives

double = torch.float64
LR = 0.1
TIGHT = {"rtol": 1e-8, "atol": 1e-11}


def valley(k, n, seed=0, turn=None):
    """½xᵀM(z)x and a slow bowl in z; M, k × k, is quadratic in z, and rises above the edge at the bowl's bottom."""
    g = torch.Generator("cpu").manual_seed(seed)
    m = k * (k + 1) // 2
    A = torch.randn(m, n, generator=g, dtype=double)
    B = 0.15 / n * torch.randn(m, n, n, generator=g, dtype=double)
    i, j = torch.triu_indices(k, k)
    first = torch.diag(14 + torch.arange(k, dtype=double))
    rise = torch.where(i == j, 11.0, 1.0).to(double)
    bottom = torch.linalg.lstsq(A, rise[:, None]).solution[:, 0]

    def loss(w):
        w = w if turn is None else turn.T @ w
        x, z = w[:k], w[k:]
        entries = A @ z + torch.einsum("mab,a,b->m", B, z, z)
        upper = torch.zeros(k, k, dtype=w.dtype).index_put((i, j), entries)
        M = first + upper + upper.T - torch.diag(torch.diag(upper))
        return 0.5 * x @ (M @ x) + 0.025 * ((z - bottom) ** 2).sum()

    return loss, torch.zeros(k + n, dtype=double)


def central(loss, start, t_max, **options):
    return gradflow.integrate(loss, start, flow="central", lr=LR, t_max=t_max, **options)


def on_edge(k, n, seed, t):
    """The valley, at a time at which all k directions are critical."""
    loss, start = valley(k, n, seed)
    run = central(loss, start, t, rtol=1e-6, save_at=[t])
    assert int(run.n_active[-1]) == k
    return loss, torch.from_numpy(run.theta.values[-1])


# ---------------------------------------------------------------------- the numerics


@pytest.mark.parametrize(("k", "n", "seed", "t"), [(1, 4, 0, 20.0), (2, 6, 1, 25.0), (3, 9, 0, 25.0)])
def test_the_projected_scheme_is_of_second_order(k, n, seed, t):
    loss, start = on_edge(k, n, seed, t)
    exact = central(loss, start, 12.0, save_at=[12.0], rtol=1e-8, atol=1e-11).theta.values[-1]
    errors = []
    for steps in (2, 4, 8):
        run = central(loss, start, 12.0, save_at=[12.0], step_size=12.0 / steps)
        assert int(run.n_active[-1]) == k
        errors.append(np.linalg.norm(run.theta.values[-1] - exact))
    orders = np.log2(errors[:-1]) - np.log2(errors[1:])
    assert orders == pytest.approx(2, abs=0.05)


def test_the_error_follows_the_tolerance_across_entries():
    loss, start = valley(3, 9)
    exact = central(loss, start, 40.0, save_at=[40.0], rtol=1e-5).theta.values[-1]
    errors = [
        np.linalg.norm(central(loss, start, 40.0, save_at=[40.0], rtol=rtol).theta.values[-1] - exact)
        for rtol in (1e-3, 1e-4)
    ]
    assert errors[0] < 3e-3
    assert errors[1] < 3e-4


@pytest.mark.parametrize("substeps", [1, 4])
def test_the_authors_scheme_converges_to_the_same(substeps):
    loss, start = valley(2, 6, 1)
    exact = central(loss, start, 20.0, save_at=[20.0], rtol=1e-5)
    euler = central(loss, start, 20.0, save_at=[20.0], scheme="euler", substeps=substeps)
    assert euler.attrs["method"] == "central-euler"
    assert int(euler.step[-1]) == substeps * 200
    assert np.linalg.norm(euler.theta.values[-1] - exact.theta.values[-1]) < 8e-3 / substeps
    assert float(euler.sigma_trace[-1]) == pytest.approx(float(exact.sigma_trace[-1]), rel=0.04 / substeps)


def test_below_the_edge_it_is_gradient_flow():
    train, _, theta = chebyshev()
    times = {"t_max": 4.0, "save_every": 1.0}
    flow = gradflow.integrate(train, theta, method="exprb43", **times, **TIGHT)
    run = gradflow.integrate(train, theta, flow="central", lr=0.02, **times, **TIGHT)
    assert not run.n_active.values.any()
    assert run.theta.values == pytest.approx(flow.theta.values, abs=1e-6)
    assert run.predicted_train_loss.values == pytest.approx(flow.train_loss.values, rel=1e-6)


def test_at_the_edge_the_loss_falls_by_the_square_of_the_speed():
    """L(0) − L(τ) = ∫ ‖dw/dτ‖² dτ; the largest eigenvalue stays at the edge; Σ lies in the critical directions."""
    loss, start = valley(3, 9)
    run = central(
        loss, start, 40.0, save_every=0.05, n_eigs=4,
        observe={"speed": lambda point: point.velocity.norm()},
    )  # fmt: skip
    assert run.edge_residual.max() <= 1e-5
    assert LR * run.eigenvalue[:, 0].max() <= 2 + 1e-5
    assert (np.diff(run.train_loss) <= 1e-9).all()
    assert run.n_active.values.max() == 3
    spent = np.trapezoid(run.speed.values**2, run.time.values)
    assert float(run.train_loss[0] - run.train_loss[-1]) == pytest.approx(spent, rel=1e-3)


@pytest.mark.parametrize("options", [{"rtol": 1e-2}, {"rtol": 1e-4}, {"step_size": 45.0}])
def test_the_edge_is_met_from_a_start_at_zero(options):
    """Where a step's end is much longer than its start, so that their tolerances differ."""
    loss = lambda w: 0.5 * (w[1] + 15) * w[0] ** 2 + 0.045 * torch.sin(w[1] / 3) - 0.135 * w[1]  # noqa: E731
    run = central(loss, torch.zeros(2, dtype=double), 90.0, save_every=2.0, **options)
    assert run.edge_residual.max() <= 1e-5
    assert run.theta.values[-1] == pytest.approx([0, 5], abs=1e-4)
    assert int(run.event_enter.sum()) == 1


def test_a_fixed_step_that_is_too_long_is_shortened():
    loss, start = valley(2, 6, 1)
    exact = central(loss, start, 50.0, save_at=[50.0])
    run = central(loss, start, 50.0, save_at=[50.0], step_size=10.0)
    assert int(run.n_active[-1]) == 2
    assert np.linalg.norm(run.theta.values[-1] - exact.theta.values[-1]) < 5e-4


def test_it_is_the_same_in_other_orthonormal_coordinates():
    loss, start = valley(2, 6, 1)
    g = torch.Generator("cpu").manual_seed(1)
    turn = torch.linalg.qr(torch.randn(len(start), len(start), generator=g, dtype=double))[0]
    other, _ = valley(2, 6, 1, turn)
    a, b = (central(f, start, 40.0, save_every=10.0, rtol=1e-6) for f in (loss, other))
    assert b.theta.values @ turn.numpy() == pytest.approx(a.theta.values, abs=1e-5)
    assert b.sigma_eigenvalue.values == pytest.approx(a.sigma_eigenvalue.values, abs=1e-5)


def test_both_schemes_follow_a_network_beyond_the_edge():
    train, _, theta = chebyshev()
    settings = {"flow": "central", "lr": 0.4, "t_max": 120.0, "save_every": 10.0}
    run = gradflow.integrate(train, theta, **settings)
    euler = gradflow.integrate(train, theta, scheme="euler", substeps=2, **settings)
    assert run.n_active.max() >= 1
    path = np.linalg.norm(np.diff(run.theta.values, axis=0), axis=1).sum()
    run, euler = (each.sel(time=np.arange(0, 121, 10.0), method="nearest") for each in (run, euler))
    assert np.linalg.norm(run.theta.values - euler.theta.values, axis=1).max() < 5e-3 * path
    assert run.predicted_train_loss.values[-1] == pytest.approx(
        euler.predicted_train_loss.values[-1], rel=0.02
    )


@pytest.mark.parametrize("name", ["layer-norm", "conv"])
def test_third_derivatives_agree_with_differences(name):
    case = zoo.make(name)
    loss = gradflow.LossFunction(case.dataset, case.criterion, case.net)
    theta = loss.parameters()
    g = torch.Generator("cpu").manual_seed(0)
    U = torch.linalg.qr(torch.randn(len(theta), 3, generator=g, dtype=double))[0]
    point = Field(loss).at(theta)
    T, differences = (third_derivatives(point, U, how) for how in ("reverse", "difference"))
    assert T == pytest.approx(differences, rel=1e-5, abs=1e-7 * float(T.abs().max()))


def test_differences_of_products_can_take_the_place_of_third_derivatives():
    loss, start = valley(2, 6, 1)
    a, b = (central(loss, start, 30.0, save_at=[30.0], third=third) for third in ("reverse", "difference"))
    assert b.theta.values == pytest.approx(a.theta.values, abs=1e-6)
    assert int(a.n_third[-1]) > 0
    assert int(b.n_third[-1]) == 0
    assert int(b.n_hvps[-1]) > int(a.n_hvps[-1])


def test_float32_keeps_to_the_edge():
    loss, start = valley(2, 6, 1)
    run = central(lambda w: loss(w.double()).float(), start.float(), 30.0, save_every=3.0)
    assert run.attrs["status"] == "t_max"
    assert int(run.n_active[-1]) == 2
    assert run.edge_residual.max() <= 2e-5


# ---------------------------------------------------------------------- records


def test_entries_and_exits_are_records_with_all_quantities():
    """A direction rises to the edge and is pushed back below it by a wall that λ₁ falls behind (a disc to go round)."""

    def disc(w):
        x, y, z = w
        return 0.5 * (20 + 0.5 * (16 - y * y - z * z)) * x * x - 0.02 * y

    run = central(disc, torch.tensor([0.0, -5.5, 3.0], dtype=double), 350.0, save_every=50.0)
    assert run.event_enter.dtype == np.int8
    entry, exit_ = (run.time.values[run[name] == 1] for name in ("event_enter", "event_leave"))
    assert entry == pytest.approx([142.71], abs=0.02)
    assert exit_ == pytest.approx([301.79], abs=0.1)
    at = run.sel(time=entry[0])
    assert int(at.n_active) == 1
    assert float(at.sigma_trace) == pytest.approx(2 * 0.02 * math.sqrt(7) / 16, rel=1e-3)
    assert np.isfinite(at.predicted_gradient_norm)
    assert not run.n_active.sel(time=slice(exit_[0], None)).any()


def test_the_record_says_what_was_predicted():
    loss, start = on_edge(2, 6, 1, 25.0)
    run = central(loss, start, 5.0, save_every=1.0, n_eigs=2)
    σ2 = run.sigma_eigenvalue.values
    assert σ2.shape[1] == len(start)
    assert run.sigma_trace.values == pytest.approx(σ2.sum(1))
    assert run.predicted_train_loss.values == pytest.approx(run.train_loss.values + σ2.sum(1) / LR, rel=1e-9)
    square = run.gradient_norm.values**2 + 4 / LR**2 * σ2.sum(1)
    assert run.predicted_gradient_norm.values == pytest.approx(np.sqrt(square), rel=1e-4)
    assert run.edge_residual.values == pytest.approx(LR * run.eigenvalue.values[:, 0] - 2, abs=1e-8)
    assert run.attrs["time_definition"] == "flow"
    assert (np.diff(run.n_third) >= 0).all()


def test_quartic_ratio_is_the_shift_of_the_edge_by_the_fourth_derivative():
    q = 0.3
    loss = lambda w: 0.5 * w[1] * w[0] ** 2 + 0.025 * (w[1] - 22) ** 2 + q * w[0] ** 4  # noqa: E731
    run = central(loss, torch.tensor([0.0, 19.0], dtype=double), 40.0, save_at=[40.0])
    assert float(run.quartic_ratio[-1]) == pytest.approx(
        LR * float(run.sigma_trace[-1]) * 24 * q / 12, rel=1e-4
    )


def test_observing_changes_nothing():
    loss, start = valley(3, 9)
    bare = central(loss, start, 30.0, save_at=[30.0])
    seen = central(loss, start, 30.0, save_every=0.7, save_at=[30.0], n_eigs=3, n_projections=2)
    assert (seen.theta.values[-1] == bare.theta.values[-1]).all()
    for name in ("n_gradients", "n_hvps", "n_third"):
        assert int(seen[name][-1]) == int(bare[name][-1])


@pytest.mark.parametrize(
    "options", [{}, {"scheme": "euler"}, {"rule": "rmsprop", "warmup_steps": 20, "lr": 0.01}]
)
def test_a_resumed_run_is_the_same(tmp_path, options):
    loss, start = valley(2, 6, 1)
    start, t_max = (start + 0.1, 60.0) if "rule" in options else (start, 15.0)
    settings = {"flow": "central", "lr": LR, "t_max": t_max, "save_every": t_max / 40} | options
    whole = gradflow.integrate(loss, start, **settings)
    out = tmp_path / "run.nc"

    def interrupt(report):
        if report.step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gradflow.integrate(loss, start, out=out, checkpoint_every=1e-9, callback=interrupt, **settings)
    resumed = gradflow.integrate(loss, start, resume=out, **settings)
    for name in whole.data_vars:
        if name != "wall_time":
            assert np.array_equal(whole[name], resumed[name], equal_nan=True), name


# ---------------------------------------------------------------------- learning rates and optimisers


def test_a_scheduler_is_the_schedule_that_it_describes():
    loss, start = valley(1, 4)
    by_scheduler = central(
        loss,
        start,
        25.0,
        save_every=5.0,
        scheduler="LinearLR(start_factor=1.0, end_factor=0.5, total_iters=200)",
    )
    by_function = gradflow.integrate(
        loss,
        start,
        flow="central",
        lr=lambda t: LR * (1 - 0.5 * min(t, 200.0) / 200),
        t_max=25.0,
        save_every=5.0,
    )
    assert by_scheduler.theta.values == pytest.approx(by_function.theta.values, abs=1e-6)
    steps = by_function.state.values[:, -1]
    assert steps[-1] == pytest.approx(400, rel=1e-3)  # τ = 15 after 200 steps, and 0.05 a step from there


def test_rmsprop_counts_steps_of_the_optimiser():
    loss, start = valley(1, 4)
    run = gradflow.integrate(
        loss, start + 0.1, flow="central", rule="rmsprop", lr=0.01, warmup_steps=20, t_max=50.0
    )
    assert run.attrs["time_definition"] == "optimiser steps"
    w, ν = (start + 0.1), torch.zeros_like(start)
    function = gradflow.LossFunction.from_callable(loss)
    for _ in range(21):
        before, (_, g) = w, function.gradient(w)
        ν = 0.99 * ν + 0.01 * g * g
        w = w - 0.01 * g / (ν.sqrt() + 1e-8)
    assert run.theta.values[0] == pytest.approx(before.numpy(), rel=1e-12)
    assert run.state.values[0, len(start) :] == pytest.approx(ν.numpy(), rel=1e-12)


def test_a_start_above_the_edge_is_refused_and_a_warm_up_helps():
    loss = lambda w: 0.5 * w[1] * w[0] ** 2 + 0.025 * (w[1] - 22) ** 2  # noqa: E731
    start = torch.tensor([0.9, 20.2], dtype=double)
    with pytest.raises(InvalidInputError, match=r"ηλ₁.* ≤ 2, got 2\.\d+.*warmup_steps"):
        central(loss, start, 1.0)
    run = central(loss, start, 1.0, warmup_steps=12)
    assert float(run.edge_residual[0]) <= 1e-5


def test_a_warm_up_that_diverges_and_a_loss_that_is_not_finite_are_refused():
    start = torch.full((2,), 10.0, dtype=double)
    with pytest.raises(InvalidInputError, match="10 steps of the warm-up to stay finite"):
        central(lambda w: 100 * (w**4).sum(), start, 1.0, warmup_steps=10)
    with pytest.raises(NonFiniteLossError, match="finite loss and gradient"):
        central(lambda w: math.nan * (w**4).sum(), start, 1.0)


# ---------------------------------------------------------------------- where the theory ends


@pytest.mark.parametrize("scheme", ["projected", "euler"])
def test_a_direction_that_nothing_holds_at_the_edge_ends_the_run(scheme):
    """λ₁ is constant, and the learning rate rises until the edge comes down to it."""
    loss = lambda w: 5 * (w**2).sum()  # noqa: E731
    with pytest.warns(gradflow.errors.IntegrationWarning, match="no solution here"):
        run = gradflow.integrate(
            loss,
            torch.zeros(1, dtype=double),
            flow="central",
            scheme=scheme,
            lr=lambda t: 0.1 + 1e-3 * t,
            t_max=100.0,
            save_every=1.0,
        )
    assert run.attrs["status"] == "no_multiplier"
    assert not run.attrs["success"]


def test_a_covariance_that_is_not_unique_is_said():
    loss = lambda w: 0.5 * w[2] * (w[0] ** 2 + w[1] ** 2) - 0.3 * w[2]  # noqa: E731
    with pytest.warns(gradflow.errors.IntegrationWarning, match="isn't unique"):
        run = central(loss, torch.tensor([0.0, 0.0, 19.0], dtype=double), 20.0, save_at=[20.0])
    assert run.theta.values[-1] == pytest.approx([0, 0, 20], abs=1e-3)
    assert float(run.sigma_trace[-1]) == pytest.approx(0.6, rel=1e-6)


def test_more_directions_than_allowed_end_the_run():
    loss, start = valley(3, 9)
    with pytest.warns(gradflow.errors.IntegrationWarning, match="max_active"):
        run = central(loss, start, 60.0, max_active=2)
    assert run.attrs["status"] == "too_many_active"
    assert int(run.n_active[-1]) == 2


@pytest.mark.parametrize("method", ["rk4", "rkc", "exprb43", "gd", "scipy:Radau"])
def test_methods_that_know_no_constraint_are_refused(method):
    loss, start = valley(1, 4)
    options = {"lr": LR} if method != "gd" else {"flow_options": {"lr": LR}, "method_options": {"lr": LR}}
    with pytest.raises(InvalidInputError, match="central-projected, central-euler"):
        gradflow.integrate(loss, start, flow="central", method=method, t_max=1.0, **options)
    with pytest.raises(InvalidInputError, match="made for the flow 'central'"):
        gradflow.integrate(loss, start, method="central-projected", t_max=1.0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, InvalidInputError, "lr > 0"),
        ({"lr": 0.1, "rule": "adam"}, InvalidInputError, "rule as one of gd"),
        ({"lr": 0.1, "scheme": "eulr"}, InvalidInputError, "scheme as one of projected"),
        ({"lr": 0.1, "beta2": 1.0}, InvalidInputError, "beta2 < 1"),
        ({"lr": 0.1, "substeps": 0}, InvalidInputError, "substeps"),
        ({"lr": 0.1, "threshold": 2.5}, InvalidInputError, "threshold"),
        ({"lr": 0.1, "edge_tol": 0.1}, InvalidInputError, "edge_tol"),
        ({"lr": 0.1, "bias_correction": "no"}, InvalidTypeError, "bias_correction as a bool"),
        ({"lr": 0.1, "max_active": 0}, InvalidInputError, "max_active"),
        ({"lr": 0.1, "scheduler": "ReduceLROnPlateau()"}, InvalidInputError, "the step alone"),
        ({"lr": lambda t: -1.0}, InvalidInputError, r"lr\(step\) > 0"),
        ({"lr": lambda t: "x"}, InvalidTypeError, r"lr\(step\) to return a number"),
        ({"lr": 0.1, "substep": 3}, UnknownOptionError, "has no option 'substep'"),
        ({}, InvalidTypeError, "needs lr"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    loss, start = valley(1, 4)
    with pytest.raises(error, match=match):
        gradflow.integrate(loss, start, flow="central", t_max=1.0, **options)


def test_a_flow_is_a_value():
    loss, start = valley(1, 4)
    a = central(loss, start, 20.0, save_at=[20.0])
    b = gradflow.integrate(loss, start, flow=CentralFlow(lr=LR), t_max=20.0, save_at=[20.0])
    c = gradflow.integrate(loss, start, flow=CentralFlow(lr=LR, scheme="euler"), t_max=2.0, save_at=[2.0])
    assert (a.theta.values == b.theta.values).all()
    assert c.attrs["method"] == "central-euler"
