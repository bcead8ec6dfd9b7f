"""Several runs as one dataset, and pictures of what is recorded."""

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.cli import invoke
from helpers.problems import ellipse

import gradflow
from gradflow import combine, problems

double = torch.float64
ONES = torch.ones(4, dtype=double)
bowl = ellipse([1.0, 2.0, 5.0, 8.0])


def gd(lr=0.2, **kwargs):
    return gradflow.integrate(bowl, ONES, method="gd", lr=lr, t_max=3.0, n_eigs=2, **kwargs)


def flow(**kwargs):
    return gradflow.integrate(bowl, ONES, method="rk4", t_max=3.0, save_every=0.2, n_eigs=2, **kwargs)


# ---------------------------------------------------------------------- combine


def test_a_sweep_has_a_time_for_each_run():
    runs = [gd(lr) for lr in (0.1, 0.2, 0.24)]
    sweep = combine(runs)
    assert sweep.lr.values.tolist() == [0.1, 0.2, 0.24]
    assert dict(sweep.sizes) == {"lr": 3, "record": 31, "eig": 2, "param": 4}
    assert sweep.time.dims == ("lr", "record")
    assert sweep.step.dims == ("lr", "record")
    for i, run in enumerate(runs):
        n = run.sizes["time"]
        for name, array in run.data_vars.items():
            if "time" in array.dims:
                assert np.array_equal(sweep[name].values[i, :n], array.values, equal_nan=True), name
                assert np.isnan(sweep[name].values[i, n:]).all(), name
            else:
                assert np.array_equal(sweep[name].values[i], array.values), name
    # attributes: common ones stay, others are by run
    assert sweep.attrs["method"] == "gd"
    assert np.allclose(sweep.stability_threshold, 2 / sweep.lr)
    assert sweep.train_loss.attrs == runs[0].train_loss.attrs
    # xarray's own tools work on it
    assert float(sweep.train_loss.sel(lr=0.1).isel(record=0)) == 8.0
    assert sweep.train_loss.min("record").dims == ("lr",)


def test_runs_are_combined_along_anything():
    runs = [gd(eigs_every=gradflow.steps(2)), flow()]
    by_method = combine({"a": runs[0], "b": runs[1]}, "run")
    assert by_method.run.values.tolist() == ["a", "b"]
    assert by_method.method.values.tolist() == ["gd", "rk4"]
    seeds = []
    for seed in (3, 5):
        train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", seed=seed)
        seeds.append(gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=2))
    assert combine(seeds, "seed").seed.values.tolist() == [3, 5]
    momenta = [
        gradflow.integrate(bowl, ONES, method="polyak", lr=0.1, momentum=β, max_steps=2) for β in (0.1, 0.5)
    ]
    assert combine(momenta, "momentum").momentum.values.tolist() == [0.1, 0.5]


def test_a_sweep_survives_a_file(tmp_path):
    sweep = combine([gd(lr) for lr in (0.1, 0.2)])
    sweep.to_netcdf(tmp_path / "sweep.nc")
    with xr.open_dataset(tmp_path / "sweep.nc") as again:
        xr.testing.assert_identical(again.load(), sweep)


@pytest.mark.parametrize(
    ("runs", "dim", "kind", "text"),
    [
        (lambda: [], "lr", ValueError, "at least one run"),
        (lambda: [gd(), gd()], "lr", ValueError, "Two runs have lr = 0.2"),
        (
            lambda: [gd()],
            "momentum",
            ValueError,
            "Expected momentum in the record of every run, but one has none",
        ),
        (lambda: gd(), "lr", TypeError, "Put it in a list"),
        (lambda: {1.0: "a.nc"}, "lr", TypeError, "xarray.Dataset, got str"),
        (lambda: ["a.nc"], "lr", TypeError, "xarray.Dataset, got str"),
        (lambda: [gd()], "step", ValueError, "Expected step in the record of every run, but one has none"),
        (lambda: {1.0: gd()}, "step", ValueError, "have a variable 'step' already"),
        (lambda: [combine([gd()])], "lr", ValueError, "records over time"),
    ],
)
def test_what_cannot_be_combined(runs, dim, kind, text):
    with pytest.raises(kind, match=text):
        combine(runs(), dim)


# ---------------------------------------------------------------------- pictures


@pytest.fixture
def plot():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    yield gradflow.plot
    plt.close("all")


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_a_sweep_is_drawn_run_by_run(plot):
    ax = plot.sharpness(combine([gd(0.1), gd(0.2)]))
    assert labels(ax) == ["lr = 0.1", "lr = 0.2", "2/η = 20", "2/η = 10"]
    ax = plot.train_loss(combine([gd(0.1), gd(0.2)]))
    for line, lr in zip(ax.lines, (0.1, 0.2), strict=True):
        run = gd(lr)
        assert np.array_equal(line.get_xdata(), run.time)
        assert np.array_equal(line.get_ydata(), run.train_loss)


def test_thresholds_have_their_formula(plot):
    run = gradflow.integrate(bowl, ONES, method="polyak", lr=0.1, momentum=0.5, max_steps=20, n_eigs=1)
    assert "(2+2β)/η = 30" in labels(plot.sharpness(run))
    run = gradflow.integrate(bowl, ONES, method="nesterov", lr=0.1, momentum=0.5, max_steps=20, n_eigs=1)
    assert "(2+2β)/(η(1+2β)) = 15" in labels(plot.sharpness(run))


def test_what_each_panel_shows(plot):
    a, b = gd(), flow()
    ax = plot.spectrum({"gd": a, "flow": b})
    assert labels(ax) == ["gd, λ₁ to λ₂", "flow, λ₁ to λ₂"]
    assert np.array_equal(ax.lines[1].get_ydata(), a.eigenvalue[:, 1])
    assert ax.lines[0].get_color() == ax.lines[1].get_color() != ax.lines[2].get_color()
    ax = plot.step_size({"gd": a, "flow": b})
    assert np.array_equal(ax.lines[1].get_ydata(), b.step_size[1:])
    ax = plot.cost({"gd": a, "flow": b})
    assert np.array_equal(ax.lines[1].get_ydata(), b.n_gradients + b.n_hvps)
    assert ax.get_yscale() == "log"
    for ax in (plot.step_size(a), plot.cost(a), plot.spectrum(a), plot.train_loss(a)):
        assert ax.get_xlabel() == "time t"
        assert ax.get_ylabel()


def test_accuracy_of_training_and_test_set(plot):
    train, test, theta = problems.load("digits", "fc-tanh-depth1", "mse")
    run = gradflow.integrate(
        train, theta, method="gd", lr=0.3, max_steps=8, test=test, test_every=gradflow.steps(4)
    )
    ax = plot.accuracy(run)
    assert labels(ax) == ["gd(lr=0.3)", "gd(lr=0.3), test"]
    assert np.allclose(ax.lines[0].get_ydata(), 100 * run.train_accuracy)
    assert len(ax.lines[1].get_ydata()) == 3
    assert ax.lines[0].get_color() == ax.lines[1].get_color()


def test_panels_are_chosen_by_what_is_there(plot):
    def drawn(*args):
        return [ax.get_ylabel() for ax in plot.figure(*args).axes if ax.axison]

    assert drawn({"a": gd()}) == ["training loss", "sharpness λ₁"]
    assert drawn({"a": gd(), "b": flow()}) == ["training loss", "sharpness λ₁", "distance / path length (%)"]
    assert drawn({"a": gd(), "b": flow(), "c": gd(0.1)}) == ["training loss", "sharpness λ₁"]
    assert drawn(gd(), ["cost", "step_size", "spectrum", "loss"]) == [
        "gradients + H·v", "step size h", "Hessian eigenvalues", "training loss",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="No panel 'los'; did you mean 'loss'"):
        plot.figure(gd(), ["los"])
    with pytest.raises(ValueError, match="distance is that of two runs, got 1"):
        plot.figure(gd(), ["distance"])
    with pytest.raises(ValueError, match="at least one run"):
        plot.figure({})
    with pytest.raises(ValueError, match="record it with n_eigs"):
        plot.spectrum(gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=2))


def test_distances_are_not_interpolated_where_times_agree(plot):
    """Linear interpolation between the records of a flow is far off while stiff modes decay."""
    a, b = gd(), flow()
    shown = plot.figure({"a": a, "b": b}).axes[-1].lines[0].get_ydata()
    assert np.allclose(shown, 100 * gradflow.compare(a, b).relative_distance)


def test_pictures_from_the_command_line(tmp_path, plot):
    gd(out=tmp_path / "a.nc").close()
    flow(out=tmp_path / "b.nc").close()
    gd(out=tmp_path / "c.nc").close()
    result = invoke("plot", tmp_path / "a.nc", tmp_path / "b.nc", "-o", tmp_path / "x.png")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    again = invoke("plot", tmp_path / "a.nc", "-o", tmp_path / "x.png")
    assert again.exit_code == 1
    assert "--overwrite" in again.output
    files = [tmp_path / f"{name}.nc" for name in "abc"]
    result = invoke("plot", *files, "-o", tmp_path / "x.pdf", "--panels", "loss,cost")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    for args, text in (
        ([tmp_path / "a.nc", "-o", tmp_path / "y.png", "--panels", "los"], "did you mean 'loss'"),
        ([tmp_path / "none.nc", "-o", tmp_path / "y.png"], "No run at"),
        ([tmp_path / "a.nc", "-o", tmp_path / "y.xyz"], "xyz"),
        ([tmp_path / "a.nc", "-o", tmp_path / "none" / "y.png"], "doesn't exist"),
        (["-o", tmp_path / "y.png"], "Missing argument"),
    ):
        result = invoke("plot", *args)
        assert result.exit_code != 0
        assert text in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "b.nc", "c.nc", "x.pdf", "x.png"]
