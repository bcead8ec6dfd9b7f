"""Distances between runs against what they must be."""

import numpy as np
import pytest
import torch
from helpers.problems import bowl

import gradflow
from gradflow import compare, problems
from gradflow.analysis import crossing_time, summary

ONES = torch.ones(4, dtype=torch.float64)


def run(loss=bowl, theta=ONES, **kwargs):
    return gradflow.integrate(
        loss, theta, **({"method": "rk4", "max_step": 0.01, "t_max": 1.0, "save_every": 0.25} | kwargs)
    )


def gd(**kwargs):
    return gradflow.integrate(bowl, ONES, **({"method": "gd", "lr": 0.25, "t_max": 1.0} | kwargs))


def test_distance_to_the_flow_is_what_it_is_by_hand():
    result = compare(gd(), run())
    t = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = 2 * np.abs(0.75 ** (t / 0.25) - np.exp(-t))
    assert np.array_equal(result.time, t)
    assert np.allclose(result.distance, expected, atol=1e-8)
    assert np.allclose(result.path_length, 2 * (1 - np.exp(-t)), atol=1e-8)
    assert np.allclose(result.relative_distance[1:], expected[1:] / result.path_length[1:])
    assert float(result.relative_distance[0]) == 0.0
    assert np.allclose(result.train_loss_b, 2 * np.exp(-2 * t), atol=1e-7)
    assert result.attrs["distance_from"] == "theta"
    assert (result.attrs["a"], result.attrs["b"]) == ("gd(lr=0.25)", "rk4")
    assert all(array.attrs["units"] == "1" for array in (result.distance, result.path_length, result.time))


def test_a_run_is_at_distance_zero_from_itself():
    assert float(compare(run(), run()).distance.max()) == 0.0


def test_only_matching_times_count_unless_interpolated():
    a, b = gd(lr=0.1), run()
    result = compare(a, b)
    assert np.allclose(result.time, [0.0, 0.5, 1.0])
    every = compare(a, b, interp=True)
    assert np.allclose(every.time, np.arange(11) * 0.1)
    both = every.sel(time=[0.5, 1.0], method="nearest")
    assert np.allclose(both.distance, result.distance[1:], atol=1e-12)
    coarse = 2 * np.abs(0.9 ** np.arange(11) - np.interp(every.time, b.time, np.exp(-b.time)))
    assert np.allclose(every.distance, coarse, atol=1e-7)
    with pytest.raises(ValueError, match=r"no record at the same time.*interp=True"):
        compare(
            gradflow.integrate(bowl, ONES, method="gd", lr=0.07, max_steps=3).isel(time=slice(1, None)), b
        )


def test_projections_stand_in_for_theta():
    train, _, theta = problems.load("digits", "fc-tanh-depth1", "mse")
    options = {"t_max": 1.0, "save_every": 0.5, "params_every": 0.5}
    kwargs = [{"method": "gd", "lr": 0.25}, {"method": "rk4"}]
    exact = compare(*(gradflow.integrate(train, theta, **options, **k) for k in kwargs))
    del options["params_every"]
    runs = [gradflow.integrate(train, theta, n_projections=300, **options, **k) for k in kwargs]
    result = compare(*runs)
    assert result.attrs["distance_from"] == "projection"
    assert np.allclose(result.distance[1:], exact.distance[1:], rtol=0.2)
    other = gradflow.integrate(train, theta, n_projections=300, projection_seed=1, **options, **kwargs[1])
    with pytest.raises(ValueError, match="projection_seed is 0 and 1"):
        compare(runs[0], other)
    fewer = gradflow.integrate(train, theta, n_projections=30, **options, **kwargs[1])
    with pytest.raises(ValueError, match="300 and 30 projections"):
        compare(runs[0], fewer)
    none = gradflow.integrate(train, theta, **options, **kwargs[1])
    with pytest.raises(ValueError, match="no state in common"):
        compare(runs[0], none)


def test_records_where_the_state_was_not_due_are_skipped():
    a = run(params_every=0.5)
    assert np.allclose(compare(a, run()).time, [0.0, 0.5, 1.0])


def test_eigenvalues_and_crossing_times_are_compared():
    loss = lambda x: 0.25 * ((x - 3) ** 4).sum() + 0.5 * (x**2).sum()  # noqa: E731
    a = gradflow.integrate(loss, ONES * 2.4, method="gd", lr=0.38, max_steps=20, n_eigs=1)
    b = gradflow.integrate(loss, ONES * 2.4, method="rk4", t_max=6.0, save_every=0.38, n_eigs=1)
    threshold = 2 / 0.38
    assert a.attrs["stability_threshold"] == pytest.approx(threshold)
    assert "stability_threshold" not in b.attrs
    above = a.eigenvalue.values[:, 0] > threshold
    assert above.any()
    assert crossing_time(a) == a.time.values[above][0]
    result = compare(a, b)
    assert float(result.crossing_time_a) == crossing_time(a)
    assert np.isnan(float(result.crossing_time_b))
    assert np.allclose(result.eigenvalue_a, a.eigenvalue[: result.sizes["time"], 0])
    assert summary(a)["crossing_time"] == crossing_time(a)
    assert "crossing_time" not in summary(b)


def test_runs_that_cannot_be_compared_are_refused():
    a = run()
    with pytest.raises(ValueError, match="different numbers of parameters, 4 and 3"):
        compare(a, run(theta=torch.ones(3, dtype=torch.float64)))
    with pytest.raises(ValueError, match="times mean different things"):
        compare(a, run().assign_attrs(time_definition="sum of lr"))
    with pytest.raises(TypeError, match=r"a as an xarray.Dataset, got str.*open_run"):
        compare("a.nc", a)
    with pytest.raises(ValueError, match="b as a run of gradflow"):
        compare(a, a.drop_vars("time"))


def test_summary():
    result = summary(run(n_eigs=1))
    assert result["method"] == "rk4"
    assert result["n_steps"] == 100
    assert result["train_loss"] == pytest.approx(2 * np.exp(-2))
    assert result["sharpness"] == pytest.approx(1.0)
    assert result["n_gradients"] >= 401
    assert "train_accuracy" not in result


def test_plots_take_datasets_and_return_axes(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    a, b = gd(n_eigs=1), run(n_eigs=1)
    ax = gradflow.plot.train_loss({"gd": a, "flow": b})
    assert ax.get_yscale() == "linear"  # less than a decade
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["gd", "flow"]
    ax = gradflow.plot.sharpness({"gd": a, "flow": b})
    assert "2/η = 8" in [text.get_text() for text in ax.get_legend().get_texts()]
    ax = gradflow.plot.distance(a, b)
    _, y = ax.lines[0].get_data()
    assert np.allclose(y, 100 * compare(a, b).relative_distance)
    assert "%" in ax.get_ylabel()
    figure = gradflow.plot.overview(a, b)
    figure.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000
    plt.close("all")


def test_losses_are_interpolated_to_the_last_record_of_two():
    """Linearly: of a run with two records, and at its end."""
    b = run(save_every=1.0)
    assert len(b.time) == 2
    every = compare(gd(lr=0.1), b, interp=True)
    first, last = b.train_loss.values
    assert np.allclose(every.train_loss_b, first + every.time * (last - first), rtol=1e-12)


def test_interpolation_reaches_the_final_time_in_spite_of_rounding():
    for t_max in (0.3, 0.7):
        a = gd(lr=0.1, t_max=t_max)
        assert float(a.time[-1]) != t_max or t_max == 0.7
        assert len(compare(a, run(t_max=t_max, save_every=0.05), interp=True).time) == len(a.time)


def test_a_single_record_and_disjoint_runs():
    a = run()
    first = a.isel(time=slice(0, 1))
    result = compare(first, first, interp=True)
    assert result.distance.values.tolist() == [0.0]
    late = a.isel(time=slice(3, None))
    with pytest.raises(ValueError, match="no time in common"):
        compare(a.isel(time=slice(0, 2)), late, interp=True)


def test_projections_are_used_where_theta_has_hardly_a_common_time():
    a = run(params_every=0.25, save_every=0.1, n_projections=4)
    b = run(params_every=0.2, save_every=0.1, n_projections=4, t_max=0.9)
    result = compare(a, b)
    assert result.attrs["distance_from"] == "projection"
    assert len(result.time) == 10


def test_plots_show_negative_values():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    saddle = gradflow.integrate(
        lambda x: -0.5 * (x**2).sum(), ONES * 0.1, method="rk4", t_max=1.0, save_every=0.1, n_eigs=1
    )
    ax = gradflow.plot.sharpness(saddle)
    assert ax.get_ylim()[0] < -1
    assert gradflow.plot.train_loss(saddle).get_yscale() == "linear"
    with pytest.raises(TypeError, match="mapping of names to runs, got list"):
        gradflow.plot.train_loss([saddle])
    plt.close("all")


# ---------------------------------------------------------------------- which sharpness a threshold bounds

#: Method, options, and the variable that its threshold bounds.
BOUNDED = [
    ("gd", {"lr": 0.25}, "eigenvalue"),
    ("polyak", {"lr": 0.25, "momentum": 0.5}, "eigenvalue"),
    ("adam", {"lr": 0.05}, "effective_eigenvalue"),
]


def on_a_bowl(method, **options):
    """A run on a bowl whose Hessian is diag(1, 10)."""
    H = torch.tensor([1.0, 10.0], dtype=torch.float64)
    return gradflow.integrate(
        lambda x: 0.5 * (H * x**2).sum(),
        torch.ones(2, dtype=torch.float64),
        method=method,
        max_steps=8,
        n_eigs=1,
        eigs_tol=1e-9,
        **options,
    )


def effective_sharpness_of_adam(run):
    """λ₁ of P^(−1/2) H P^(−1/2) after the last step, P = (1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε) from the recorded θ."""
    H, v = np.array([1.0, 10.0]), np.zeros(2)
    n = run.attrs["n_steps"]
    for θ in run.theta.values[:n]:
        v = 0.999 * v + 0.001 * (H * θ) ** 2
    P = (1 - 0.9**n) * (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
    return (H / P).max()


@pytest.mark.parametrize(("method", "options", "bounded"), BOUNDED)
def test_each_sharpness_has_its_own_name(method, options, bounded):
    a = on_a_bowl(method, **options)
    said = summary(a)
    assert a.attrs["stability_threshold_of"] == bounded
    assert said["stability_threshold_of"] == {"eigenvalue": "sharpness"}.get(bounded, "effective_sharpness")
    assert said["sharpness"] == pytest.approx(10.0, rel=1e-6)
    if method == "adam":
        assert said["stability_threshold"] == pytest.approx(3.8 / (0.1 * 0.05))
        assert said["effective_sharpness"] == pytest.approx(effective_sharpness_of_adam(a), rel=1e-6)
    else:
        assert "effective_sharpness" not in said
        assert "effective_eigenvalue" not in a
    bound = "effective sharpness" if method == "adam" else "sharpness"
    result = compare(a, a)
    said = f"first time at which the {bound} is above the threshold"
    assert result.crossing_time_a.attrs["long_name"] == said
    assert ("effective_eigenvalue_a" in result) == (method == "adam")


@pytest.mark.parametrize(("method", "options", "bounded"), BOUNDED)
def test_the_crossing_is_that_of_the_sharpness_which_the_threshold_bounds(method, options, bounded):
    """The other sharpness is put above the threshold everywhere, and counts for nothing."""
    a = on_a_bowl(method, **options).load()
    threshold = a.attrs["stability_threshold"]
    other = {"eigenvalue": "effective_eigenvalue"}.get(bounded, "eigenvalue")
    crossed = np.where(np.arange(a.sizes["time"])[:, None] < 5, 0.5 * threshold, 2 * threshold)
    if other in a:
        a[other] = ("time", "eig"), np.full_like(crossed, 2 * threshold)
    a[bounded] = ("time", "eig"), np.full_like(crossed, 0.5 * threshold)
    assert np.isnan(crossing_time(a))
    assert "crossing_time" not in summary(a)
    a[bounded] = ("time", "eig"), crossed
    assert crossing_time(a) == summary(a)["crossing_time"] == float(a.time[5])
    old = a.copy()
    del old.attrs["stability_threshold_of"]  # as in files of older versions
    assert crossing_time(old) == float(a.time[5])
    missing = a.drop_vars(bounded)
    assert np.isnan(crossing_time(missing))
    assert summary(missing)["stability_threshold_of"] == summary(a)["stability_threshold_of"]


def test_pictures_draw_a_threshold_beside_what_it_bounds():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    gd, adam = (on_a_bowl(method, **options) for method, options, _ in BOUNDED[::2])
    ax = gradflow.plot.sharpness({"gd": gd, "adam": adam})
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == ["gd", "adam, effective", "2/η = 8", "(2+2β₁)/((1−β₁)η) = 760"]
    raw = adam.drop_vars(["effective_eigenvalue", "effective_eigenvalue_residual"])
    ax = gradflow.plot.sharpness({"adam": raw})  # λ₁ of the Hessian has no threshold here
    assert len(ax.lines) == 1
    assert ax.get_ylabel() == "sharpness λ₁"
    crossed = adam.load().copy()
    crossed.effective_eigenvalue[3:] = 1000.0
    ax = gradflow.plot.distance(crossed, adam)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said[1].startswith("effective λ₁ crosses (2+2β₁)/((1−β₁)η)")
    plt.close("all")
