"""Distances between runs against what they must be."""

import numpy as np
import pytest
import torch

import gradflow
from gradflow import compare, problems
from gradflow.analysis import crossing_time, summary


def bowl(x):
    return 0.5 * (x**2).sum()


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
