"""An optimiser against flows that predict averages of it: by runs that were made up, and by small real ones."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.cli import invoke
from scipy.ndimage import gaussian_filter1d

import gradflow
from gradflow import Flow, Variable, compare, steps
from gradflow.errors import ConventionWarning

LR = 0.1
ATTRS = {"n_parameters": 2, "dtype": "float64", "time_definition": "flow"}


def made_up(n, time, variables, **attrs):
    """A run with a record at each of the times."""
    data = {name: (("time", *dims), np.asarray(values, float)) for name, (dims, values) in variables.items()}
    coords = {"time": ("time", time), "step": ("time", n)}
    return xr.Dataset(data, coords, ATTRS | attrs)


def optimiser(n, **attrs):
    """Gradient descent that oscillates by ±0.3 along the first axis, and crosses at step 40."""
    t, sign = LR * n, (-1.0) ** n
    centre = np.stack([0 * t, np.exp(-t / 10)], 1)
    λ = np.where(n < 40, 10.0 + n / 4, 20.5)
    inside = (n > 0) & (n < n.max())
    variables = {
        "theta": (("param",), centre + np.stack([0.3 * sign, 0 * t], 1)),
        "train_loss": ((), 2 + sign),
        "gradient_norm": ((), np.where(sign > 0, 3.0, 1.0)),
        "eigenvalue": (("eig",), np.stack([λ, λ / 2], 1)),
        "midpoint_theta": (("param",), np.where(inside[:, None], centre, np.nan)),
        "midpoint_train_loss": ((), np.where(inside, 1.5, np.nan)),
        "midpoint_eigenvalue": (("eig",), np.where(inside[:, None], [[20.0, 9.0]], np.nan)),
        "oscillation_variance": ((), np.where(inside, 0.09 + 0.01 * sign, np.nan)),
        "oscillation_along": (
            ("eig",),
            np.where(inside[:, None], np.stack([0.08 + 0.01 * sign, 0.01 + 0 * t], 1), np.nan),
        ),
    }
    own = {"method": "gd", "stability_threshold": 2 / LR, "stability_threshold_of": "eigenvalue"}
    return made_up(n, t, variables, **own | attrs)


def flow(t, **attrs):
    """A flow through the same centre, off by 0.4 along the second axis."""
    variables = {
        "theta": (("param",), np.stack([0 * t, np.exp(-t / 10) + 0.4], 1)),
        "train_loss": ((), 1.5 + 0 * t),
        "gradient_norm": ((), 0.5 + 0 * t),
        "eigenvalue": (("eig",), np.stack([19.0 + 0 * t, 9 + 0 * t], 1)),
        "predicted_train_loss": ((), 2.2 + 0 * t),
        "predicted_gradient_norm": ((), 2.0 + 0 * t),
        "sigma_trace": ((), 0.1 + 0 * t),
        "sigma_eigenvalue": (("mode",), np.stack([0.1 + 0 * t, 0 * t, 0 * t], 1)),
    }
    return made_up(np.arange(len(t)), t, variables, method="central", **attrs)


N = np.arange(1001)
MIDDLE = slice(450, 551)  # as far from the ends as no Gaussian of width 50 reaches
CUT = 1e-5  # what the cut of the Gaussian at four widths leaves of ±1, and more


def test_predictions_meet_averages():
    result = compare(optimiser(N), flow(LR * N))
    assert np.allclose(result.train_loss_smoothed[MIDDLE], 2.0, atol=CUT)
    assert np.allclose(result.loss_error[MIDDLE], 0.1, atol=CUT)
    assert np.allclose(result.gradient_norm_smoothed[MIDDLE], np.sqrt(5), atol=CUT)
    assert np.allclose(result.gradient_norm_error[MIDDLE], 1 - 2 / np.sqrt(5), atol=CUT)
    assert np.allclose(result.oscillation_variance_smoothed[MIDDLE], 0.09, atol=CUT)
    assert np.allclose(result.sigma_trace, 0.1)
    assert result.oscillation_along_smoothed.dims == result.sigma_eigenvalue.dims == ("time", "mode")
    assert result.sizes["mode"] == 2
    assert np.allclose(result.oscillation_along_smoothed[MIDDLE], [[0.08, 0.01]], atol=CUT)
    assert np.allclose(result.sigma_eigenvalue, [[0.1, 0.0]])
    assert np.allclose(result.sharpness_error[1:-1], 1 / 20)
    assert np.allclose(result.distance, 0.5)
    assert np.isnan(result.midpoint_distance[[0, -1]]).all()
    assert np.allclose(result.midpoint_distance[1:-1], 0.4)
    assert result.attrs["smooth"] == 50.0
    # The exact Gaussian of the record, ends included, and the means from the crossing at t = 4 on.
    by_hand = gaussian_filter1d(2 + (-1.0) ** N, 50, mode="nearest")
    assert np.allclose(result.train_loss_smoothed, by_hand, rtol=1e-14)
    assert float(result.crossing_time_a) == pytest.approx(4.0)
    errors = abs(2.2 - by_hand) / by_hand
    assert float(result.mean_loss_error) == pytest.approx(errors[40:].mean(), rel=1e-12)
    assert float(result.mean_midpoint_distance) == pytest.approx(0.4)
    assert float(result.mean_distance) == pytest.approx(0.5)
    assert float(result.mean_sharpness_error) == pytest.approx(0.05)


def test_the_order_of_the_two_does_not_matter():
    one, other = compare(optimiser(N), flow(LR * N)), compare(flow(LR * N), optimiser(N))
    for name in ("loss_error", "gradient_norm_error", "midpoint_distance", "sigma_trace", "mean_loss_error"):
        assert np.array_equal(one[name], other[name], equal_nan=True), name


def test_a_flow_without_predictions_is_taken_at_its_own_loss():
    bare = flow(LR * N).drop_vars(
        ["predicted_train_loss", "predicted_gradient_norm", "sigma_trace", "sigma_eigenvalue"]
    )
    result = compare(optimiser(N), bare)
    assert np.allclose(result.loss_error[MIDDLE], 0.25, atol=CUT)
    assert "sigma_trace" not in result
    with_rho = bare.assign(rho=("time", np.full(len(N), 0.3)))
    assert np.allclose(compare(optimiser(N), with_rho).sigma_trace, 0.09)


@pytest.mark.parametrize("every", [1, 5])
def test_the_width_is_in_steps_whatever_the_cadence(every):
    """And records of events and of the end, which are out of step, don't count."""
    n = np.arange(0, 401, every)
    ramp = optimiser(n)
    ramp["train_loss"] = "time", np.where(n < 200, 1.0, 3.0)
    if every > 1:
        off = ramp.isel(time=[-1]).assign_coords(time=[40.3], step=("time", [403]))
        ramp = xr.concat([ramp, off], "time", combine_attrs="override")
    result = compare(ramp, flow(LR * n), smooth=20)
    at = int(np.flatnonzero(n == 220)[0])
    assert float(result.train_loss_smoothed[at]) == pytest.approx(1 + 2 * 0.8413, abs=0.02 * every)
    assert np.array_equal(
        compare(ramp, flow(LR * n), smooth=0).train_loss_smoothed, ramp.train_loss[: len(n)]
    )


def test_uneven_steps_are_said():
    uneven = optimiser(np.unique(np.geomspace(1, 400, 30).astype(int)))
    result = compare(uneven, flow(uneven.time.values))
    assert "loss_error" not in result
    assert "evenly spaced steps" in result.attrs["not_smoothed"]
    assert np.isfinite(result.midpoint_distance[1:-1]).all()
    with pytest.raises(
        gradflow.GradflowError, match=r"Expected train_loss of the optimiser at evenly spaced"
    ):
        compare(uneven, flow(uneven.time.values), smooth=50)
    with pytest.raises(gradflow.GradflowError, match="smooth ≥ 0"):
        compare(uneven, flow(uneven.time.values), smooth=-1)


def test_a_flow_that_counts_in_steps_is_aligned_by_them():
    in_steps = flow(N.astype(float), time_definition="optimiser steps")
    in_time = compare(optimiser(N), flow(LR * N))
    adam = optimiser(N, time_definition="sum of learning rates")
    in_steps["theta"] = flow(LR * N).theta.assign_coords(time=in_steps.time)
    result = compare(adam, in_steps)
    assert np.array_equal(result.time, N)
    assert result.time.attrs["long_name"] == "optimiser steps"
    assert np.array_equal(result.loss_error, in_time.loss_error)
    assert float(result.crossing_time_a) == 40
    with pytest.raises(gradflow.GradflowError, match="mean different things"):
        compare(flow(LR * N), in_steps)


def test_two_of_a_kind_are_compared_as_ever():
    for a, b in ((optimiser(N), optimiser(N)), (flow(LR * N), flow(LR * N))):
        assert not {"loss_error", "midpoint_distance", "mean_distance"} & set(compare(a, b).variables)


def test_dtypes_beyond_the_edge_are_said():
    single = optimiser(N, dtype="float32")
    with pytest.warns(ConventionWarning, match=r"float32 and float64, and are compared beyond t = 4, where"):
        compare(single, flow(LR * N))
    before = single.assign_coords(step=single.step).isel(time=slice(0, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(before, flow(LR * N))
        compare(optimiser(N), flow(LR * N))


@dataclass(frozen=True)
class Centre(Flow):
    """The centre of gradient descent on ½ Σ λᵢ xᵢ² at λ₁ = 2/η, where it oscillates for ever by x₁(0)."""

    λ: tuple[float, ...]
    lr: float
    amplitude: float

    name: ClassVar[str] = "centre"
    variables: ClassVar = {
        "predicted_train_loss": Variable(),
        "sigma_trace": Variable(),
        "sigma_eigenvalue": Variable(("mode",)),
    }

    def velocity(self, point):
        still = torch.ones_like(point.z)
        still[0] = 0.0
        return -still * point.gradient

    def measure(self, point):
        variance = self.amplitude**2
        return {
            "predicted_train_loss": point.loss + variance / self.lr,
            "sigma_trace": variance,
            "sigma_eigenvalue": np.array([variance]),
        }


def test_a_real_flow_predicts_a_real_optimiser():
    """λ₁ = 2/η exactly: x₁ = ±0.3 for ever, and the loss is that of the centre plus σ²/η."""
    λ, lr, start = (20.0, 0.5), 0.1, torch.tensor([0.3, 1.0], dtype=torch.float64)

    def loss(x):
        return 0.5 * (torch.tensor(λ, dtype=torch.float64) * x**2).sum()

    gd = gradflow.integrate(
        loss, start, method="gd", lr=lr, max_steps=200, midpoint=True, n_eigs=1, save_every=steps(2)
    )
    at_zero = torch.tensor([0.0, 1.0], dtype=torch.float64)
    centre = gradflow.integrate(
        loss, at_zero, flow=Centre(λ, lr, 0.3), method="dopri8", t_max=20.0, save_every=steps(2, of=lr)
    )
    result = compare(gd, centre, smooth=4)
    late = slice(10, -10)
    assert np.allclose(result.oscillation_variance_smoothed[late], 0.09, rtol=1e-4)
    assert np.allclose(result.oscillation_along_smoothed[late, 0], 0.09, rtol=1e-9)
    assert float(result.loss_error[30:-10].max()) < 1e-4  # the Gaussian's bias, ½ (0.4)² L″ = 0.02 e⁻ᵗ, t ≥ 6
    assert float(result.midpoint_distance[1:-1].max()) < 0.02  # of O(η) in the smooth direction
    assert np.allclose(result.distance[late], 0.3, rtol=1e-2)


# ---------------------------------------------------------------------- figures and the command line


def drawn(ax):
    """Lines with a label, by it."""
    return {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}


def test_the_figure_shows_the_optimiser_beside_each_flow():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    gd, central = optimiser(N), flow(LR * N)
    bare = central.drop_vars(["predicted_train_loss", "predicted_gradient_norm", "sigma_trace"])
    bare = bare.drop_dims("mode").assign_attrs(flow="gradient")
    figure = gradflow.plot.edge(gd, bare, {"central": central}, edge=None, again=central)
    try:
        loss, sharpness, variance, distance = map(drawn, figure.axes)
        assert set(loss) == {"gd", "gd, smoothed", "gradient", "central, predicted", "again, predicted"}
        after = compare(gd, central).sel(time=slice(LR * 2 * 50, None))
        assert np.array_equal(loss["gd, smoothed"].get_ydata(), after.train_loss_smoothed)
        assert np.array_equal(loss["central, predicted"].get_ydata(), central.predicted_train_loss)
        assert set(sharpness) == {"gd", "gd, at midpoints", "gradient", "central", "again", "2/η = 20"}
        assert set(variance) == {
            "gd, squared distance from midpoint",
            "gd, smoothed",
            "central, tr Σ",
            "again, tr Σ",
        }
        assert set(distance) == {"gradient", "central", "again"}
        assert np.allclose(distance["central"].get_ydata(), 0.4)
        colors = [drawn(ax)[name].get_color() for ax, name in zip(
            figure.axes, ("central, predicted", "central", "central, tr Σ", "central"), strict=True
        )]  # fmt: skip
        assert len(set(colors)) == 1
    finally:
        plt.close(figure)


@pytest.mark.parametrize(("width", "since"), [(50, 10.0), (10, 4.0)])
def test_averages_are_drawn_from_the_crossing_on_where_the_start_no_longer_counts(width, since):
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    gd, central = optimiser(N), flow(LR * N)
    assert compare(gd, central).crossing_time_a == 4.0
    figure = gradflow.plot.edge(gd, central, smooth=width)
    try:
        for ax in figure.axes[0], figure.axes[2]:
            assert drawn(ax)["gd, smoothed"].get_xdata()[0] == pytest.approx(since)
    finally:
        plt.close(figure)


@pytest.mark.parametrize(
    ("flows", "message"),
    [((), "at least one flow"), ((3,), "got int"), (({"a": 3},), "Expected runs as datasets")],
)
def test_the_figure_refuses_what_it_cannot_draw(flows, message):
    pytest.importorskip("matplotlib").use("agg")
    with pytest.raises(gradflow.GradflowError, match=message):
        gradflow.plot.edge(optimiser(N), *flows)


def test_the_command_line_shows_what_the_flow_predicts(tmp_path):
    pytest.importorskip("matplotlib").use("agg")
    paths = {name: str(tmp_path / f"{name}.nc") for name in ("gd", "central", "picture", "picture2")}
    optimiser(N, status="reached_t_max").to_netcdf(paths["gd"])
    flow(LR * N, status="reached_t_max", flow="central").to_netcdf(paths["central"])
    shown = invoke("compare", paths["gd"], paths["central"], "--smooth", "50")
    heads, first = shown.output.splitlines()[1:3]
    assert heads.split()[-4:] == ["to", "midpoint", "smoothed", "predicted"]
    assert first.split()[-3:] == ["nan", "2.5", "2.2"]  # the first value goes on before it: half of 2 + 3
    mean = float(compare(optimiser(N), flow(LR * N)).mean_loss_error)
    assert f"from the crossing on, mean loss error: {mean:.3%}" in shown.output
    assert "from the crossing on, mean midpoint distance: 4.0000e-01" in shown.output
    png = tmp_path / "edge.png"
    assert invoke("plot", paths["gd"], paths["central"], "--panels", "edge", "-o", str(png)).exit_code == 0
    assert png.read_bytes()[:4] == b"\x89PNG"
    refused = invoke("plot", paths["central"], "--panels", "edge", "-o", str(tmp_path / "x.png"))
    assert "got 0 of optimisers" in refused.output
