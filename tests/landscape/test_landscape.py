"""The loss landscape: what slices, directions, critical points and range tests say of known functions."""

import ast
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from helpers.problems import bowl
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

import gradflow
from gradflow import LossFunction, landscape
from gradflow.integrators import Euler, Polyak

double = torch.float64
ZERO = torch.zeros(2, dtype=double)
E1, E2 = torch.eye(2, dtype=double)


def tensor(*values):
    return torch.tensor(values, dtype=double)


def hessian(f, theta):
    return torch.autograd.functional.hessian(f, theta)


def make_net(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(*(layer() for layer in layers)).double()


def classifier(generator, n=24):
    """A small convolutional classifier with a normalisation layer, on random images."""
    X = torch.randn(n, 2, 5, 5, generator=generator, dtype=double)
    y = torch.randint(0, 3, (n,), generator=generator)
    net = make_net(
        lambda: nn.Conv2d(2, 4, 3),
        lambda: nn.GroupNorm(2, 4),
        nn.Tanh,
        nn.Flatten,
        lambda: nn.Linear(36, 3),
    )
    return LossFunction(TensorDataset(X, y), nn.CrossEntropyLoss(), net)


def regression(generator, n=20):
    X = torch.randn(n, 2, generator=generator, dtype=double)
    y = torch.randn(n, 1, generator=generator, dtype=double)
    return LossFunction(TensorDataset(X, y), nn.MSELoss(), make_net(lambda: nn.Linear(2, 1, bias=False)))


# ---------------------------------------------------------------------- functions


def rosenbrock_hessian(θ):
    n = len(θ)
    H = torch.zeros(n, n, dtype=double)
    for i in range(n - 1):
        H[i, i] += 1200 * θ[i] ** 2 - 400 * θ[i + 1] + 2
        H[i + 1, i + 1] += 200
        H[i, i + 1] = H[i + 1, i] = -400 * θ[i]
    return H


def pathological_hessian(θ):
    t, s = torch.tanh(θ[0]), torch.sigmoid(θ[1])
    return torch.diag(torch.stack([2 * (1 - t**2) * (1 - 3 * t**2), s * (1 - s) * (1 - 2 * s)]))


def saddle_hessian(θ):
    return torch.diag(torch.stack([torch.ones_like(θ[0]), 3 * θ[1] ** 2 - 1]))


def plateau_hessian(θ):
    r2 = θ @ θ
    return 2 / (1 + r2) ** 2 * torch.eye(len(θ), dtype=double) - 8 / (1 + r2) ** 3 * torch.outer(θ, θ)


@pytest.mark.parametrize(
    ("f", "closed", "n"),
    [
        (landscape.rosenbrock, rosenbrock_hessian, 2),
        (landscape.rosenbrock, rosenbrock_hessian, 5),
        (landscape.pathological_loss, pathological_hessian, 2),
        (landscape.saddle, saddle_hessian, 2),
        (landscape.plateau, plateau_hessian, 4),
    ],
)
def test_hessians_are_those_of_the_docstrings(f, closed, n, generator):
    for _ in range(3):
        θ = torch.randn(n, generator=generator, dtype=double)
        torch.testing.assert_close(hessian(f, θ), closed(θ), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("f", "at", "value"),
    [
        (landscape.rosenbrock, (1.0, 1.0, 1.0), 0.0),
        (landscape.pathological_loss, (0.0, math.log((1 - 0.96**0.5) / (1 + 0.96**0.5))), 0.05595),
        (landscape.saddle, (0.0, 1.0), -0.25),
        (landscape.saddle, (0.0, -1.0), -0.25),
        (landscape.plateau, (0.0, 0.0, 0.0), 0.0),
    ],
)
def test_minima_are_those_of_the_docstrings(f, at, value):
    θ = tensor(*at)
    assert float(f(θ)) == pytest.approx(value, abs=5e-6)
    _, gradient = LossFunction.from_callable(f).gradient(θ)
    assert float(gradient.norm()) < 1e-15
    assert float(torch.linalg.eigvalsh(hessian(f, θ))[0]) > 0


def test_numbers_of_the_docstrings():
    assert torch.linalg.eigvalsh(hessian(landscape.rosenbrock, tensor(1.0, 1.0))).tolist() == pytest.approx(
        [501 - 250_601**0.5, 501 + 250_601**0.5], rel=1e-9
    )
    assert math.log((1 - 0.96**0.5) / (1 + 0.96**0.5)) == pytest.approx(-4.5849, abs=5e-5)
    bottom = tensor(0.0, math.log((1 - 0.96**0.5) / (1 + 0.96**0.5)))
    assert hessian(landscape.pathological_loss, bottom).diagonal().tolist() == pytest.approx(
        [2.0, 0.01 * 0.96**0.5]
    )


def test_a_quadratic_has_its_spectrum():
    spectrum = [5.0, -1.0, 0.25]
    plain, turned = landscape.quadratic(spectrum), landscape.quadratic(spectrum, seed=1)
    assert plain.hessian.equal(torch.diag(tensor(*spectrum)))
    assert torch.linalg.eigvalsh(turned.hessian).tolist() == pytest.approx(sorted(spectrum))
    assert turned.hessian.diagonal().sub(tensor(*spectrum)).abs().max() > 0.1
    assert turned.hessian.equal(landscape.quadratic(spectrum, seed=1).hessian)
    assert not turned.hessian.equal(landscape.quadratic(spectrum, seed=2).hessian)
    θ = tensor(1.0, 2.0, -3.0)
    torch.testing.assert_close(hessian(turned, θ), turned.hessian)
    assert turned(θ.float()).dtype == torch.float32
    mine = tensor(1.0, 2.0)
    bowl = landscape.quadratic(mine)
    mine.zero_()
    assert bowl.eigenvalues.tolist() == [1.0, 2.0]


def test_functions_are_losses():
    run = gradflow.integrate(landscape.saddle, tensor(1.0, 1e-3), method="gd", lr=0.1, max_steps=400)
    assert run.params.values == pytest.approx([0.0, 1.0], abs=1e-6)


# ---------------------------------------------------------------------- slices


def test_slices_of_a_quadratic_are_parabolas():
    f = landscape.quadratic([4.0, 1.0, -2.0], seed=0)
    θ, a, b = tensor(1.0, 2.0, 3.0), tensor(0.5, 0.0, 1.0), tensor(1.0, -1.0, 0.0)
    H, g = f.hessian, f.hessian @ θ
    x = np.linspace(-2, 3, 11)
    along = landscape.line(f, θ, a, x)
    assert along.loss.dims == ("x",)
    assert along.loss.values == pytest.approx(
        float(f(θ)) + x * float(g @ a) + 0.5 * x**2 * float(a @ H @ a), rel=1e-13
    )
    y = np.array([-1.0, 0.0, 0.5])
    flat = landscape.plane(f, θ, [a, b], x, y)
    assert flat.loss.dims == ("y", "x")
    X, Y = np.meshgrid(x, y)
    expected = float(f(θ)) + X * float(g @ a) + Y * float(g @ b)
    expected += 0.5 * (X**2 * float(a @ H @ a) + Y**2 * float(b @ H @ b)) + X * Y * float(a @ H @ b)
    assert np.allclose(flat.loss.values, expected, rtol=1e-12, atol=1e-12)
    assert "accuracy" not in flat
    assert np.array_equal(flat.loss.sel(y=0.0), along.loss)


def test_a_slice_says_what_it_is():
    directions = [landscape.Direction(tensor(3.0, 4.0), "there", {"eigenvalue": 2.0}), E1]
    flat = landscape.plane(landscape.saddle, tensor(0.0, 2.0), directions, [0, 1], [0, 1])
    assert flat.attrs["x_direction"] == flat.x.attrs["long_name"] == "there"
    assert flat.attrs["y_direction"] == "direction"
    assert (flat.attrs["x_norm"], flat.attrs["y_norm"], flat.attrs["centre_norm"]) == (5.0, 1.0, 2.0)
    assert flat.attrs["x_eigenvalue"] == 2.0
    assert flat.attrs["xy_cosine"] == pytest.approx(0.6)
    assert flat.attrs["n_parameters"] == 2


def test_a_slice_survives_a_file(tmp_path):
    flat = landscape.plane(
        landscape.saddle, ZERO, landscape.eigenvectors(landscape.saddle, ZERO), [0, 1], [0, 1]
    )
    flat.to_netcdf(tmp_path / "flat.nc")
    with xr.open_dataset(tmp_path / "flat.nc") as again:
        xr.testing.assert_identical(again.load(), flat)


def test_accuracy_where_the_loss_classifies(generator):
    loss = classifier(generator)
    θ = loss.parameters()
    d = landscape.random_directions(loss, θ, 1)[0]
    along = landscape.line(loss, θ, d, [-1, 0, 1])
    for x in (-1.0, 0.0, 1.0):
        value, accuracy = loss.evaluate(θ + x * d.vector)
        assert float(along.loss.sel(x=x)) == value
        assert float(along.accuracy.sel(x=x)) == accuracy
    assert len(set(along.accuracy.values.tolist())) > 1


def test_losses_that_are_not_finite_stay():
    along = landscape.line(lambda w: torch.log(w[0]) / w[1], tensor(1.0, 1.0), E1, [-2.0, -1.0, 0.0])
    assert np.isnan(along.loss.values[0])
    assert along.loss.values[1] == -np.inf
    assert along.loss.values[2] == 0


def test_nothing_given_is_modified(generator):
    loss = classifier(generator)
    θ = loss.parameters().requires_grad_()
    a, b = landscape.random_directions(loss, θ)
    x = [-1.0, 0.0, 1.0]
    before = [t.detach().clone() for t in (θ, a.vector, b.vector, loss.parameters())]
    flat = landscape.plane(loss, θ, [a, b], x, x, batch_size=8)
    landscape.project([θ, θ + a.vector], θ, [a, b])
    landscape.eigenvectors(loss, θ, (0, -1))
    landscape.classify(loss, θ)
    for method in ("gd", "polyak"):
        landscape.lr_find(loss, θ, method=method, n=5)
        landscape.cyclic(loss, θ, lr=0.1, cycle=2, n_cycles=2, method=method)
    after = (θ, a.vector, b.vector, loss.parameters())
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert x == [-1.0, 0.0, 1.0]
    assert θ.grad is None
    assert all(p.grad is None for p in loss.net.parameters())
    assert flat.loss.shape == (3, 3)


def test_a_direction_takes_the_dtype_of_theta():
    along = landscape.line(landscape.saddle, ZERO, E1.float(), [0.0, 1.0])
    assert along.loss.values.tolist() == [0.0, 0.5]


# ---------------------------------------------------------------------- mini-batches


def test_batches_average_to_the_loss(generator):
    loss = regression(generator)
    θ = tensor(0.3, -0.2)
    flat = landscape.plane(loss, θ, [E1, E2], [-1, 0, 2], [0, 1], batch_size=5)
    assert flat.batch_loss.dims == ("batch", "y", "x")
    assert flat.sizes["batch"] == 4
    assert np.allclose(flat.batch_loss.mean("batch"), flat.loss, rtol=1e-13)
    assert float(flat.batch_loss.std("batch").min()) > 0
    alone = landscape.plane(loss, θ, [E1, E2], [-1, 0, 2], [0, 1])
    assert np.array_equal(alone.loss, flat.loss)
    assert "batch_loss" not in alone


def test_batches_are_a_partition_of_the_data(generator):
    X = torch.arange(20.0, dtype=double)[:, None]
    net = make_net(lambda: nn.Linear(1, 1, bias=False))
    loss = LossFunction(TensorDataset(X, torch.zeros(20, 1, dtype=double)), lambda o, t: (o - t).sum(1), net)

    def total(batch):
        return 5 * float(batch(tensor(1.0)))

    batches = landscape.minibatches(loss, 5)
    assert sum(total(b) for b in batches) == pytest.approx(X.sum().item())
    assert [total(b) for b in batches] != [10.0, 35.0, 60.0, 85.0]  # shuffled
    again = landscape.minibatches(loss, 5, 2)
    assert [total(b) for b in again] == [total(b) for b in batches[:2]]
    assert [total(b) for b in landscape.minibatches(loss, 5, seed=1)] != [total(b) for b in batches]


def test_batches_may_be_given(generator):
    loss = classifier(generator)
    θ = loss.parameters()
    d = landscape.random_directions(loss, θ, 1)[0]
    along = landscape.line(loss, θ, d, [0, 1], batches=[loss.first(6), loss])
    assert np.array_equal(along.batch_loss[1], along.loss)
    assert np.array_equal(along.batch_accuracy[1], along.accuracy)
    assert float(along.batch_loss[0, 0]) == loss.first(6).evaluate(θ)[0]


# ---------------------------------------------------------------------- directions


def test_curvature_along_an_eigenvector_is_its_eigenvalue(generator):
    loss = classifier(generator)
    θ = loss.parameters()
    H = loss.linearize(θ) @ torch.eye(len(θ), dtype=double)
    exact = torch.linalg.eigvalsh(H)
    found = landscape.eigenvectors(loss, θ, (0, 1, -1, -2), tol=1e-10)
    for d, λ in zip(found, exact[[-1, -2, 0, 1]].tolist(), strict=True):
        assert d.measured["eigenvalue"] == pytest.approx(λ, rel=1e-9)
        assert d.measured["residual"] <= 1e-10
        assert d.norm == pytest.approx(1.0)
        h = 1e-3
        low, mid, high = landscape.line(loss, θ, d, [-h, 0, h]).loss.values
        assert (high - 2 * mid + low) / h**2 == pytest.approx(λ, rel=1e-4)
        assert float(d.vector[d.vector.abs().argmax()]) > 0
    assert found[0].name == f"eigenvector of λ₁ = {float(exact[-1]):.4g}"
    assert found[2].name == f"eigenvector of λ₋₁ = {float(exact[0]):.4g}".replace("-", "−")


def test_the_difference_of_two_points():
    a, b = tensor(1.0, 2.0), tensor(2.0, 4.0)
    d = landscape.difference(a, b)
    assert d.vector.tolist() == [1.0, 2.0]
    run = gradflow.integrate(landscape.saddle, a, method="gd", lr=0.1, max_steps=3)
    d = landscape.difference(a, run, "what gd did")
    ends = landscape.line(landscape.saddle, a, d, [0, 1]).loss.values
    assert ends == pytest.approx([float(landscape.saddle(a)), float(run.train_loss[-1])])


def test_principal_directions_recover_a_plane(generator):
    basis, _ = torch.linalg.qr(torch.randn(30, 2, generator=generator, dtype=double))
    coordinates = torch.randn(40, 2, generator=generator, dtype=double) * tensor(3.0, 1.0)
    path = 5 + coordinates @ basis.T
    d = landscape.principal_directions(path)
    V = torch.stack([each.vector for each in d], 1)
    torch.testing.assert_close(V.T @ V, torch.eye(2, dtype=double), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(V @ V.T, basis @ basis.T, rtol=1e-10, atol=1e-12)
    explained = [each.measured["explained_variance"] for each in d]
    assert sum(explained) == pytest.approx(1.0)
    expected = torch.linalg.eigvalsh(torch.cov(coordinates.T)).flip(0)
    assert explained == pytest.approx((expected / expected.sum()).tolist())
    mirrored = landscape.principal_directions(10 - path)
    assert torch.allclose(mirrored[0].vector, d[0].vector, atol=1e-12)
    assert torch.equal(landscape.principal_directions(list(path))[0].vector, d[0].vector)
    with pytest.raises(ValueError, match="spans n = 3 directions, got 2 from 40 points"):
        landscape.principal_directions(path, 3)


def test_principal_directions_of_a_run():
    bowl = landscape.quadratic([1.0, 3.0, 8.0], seed=4)
    run = gradflow.integrate(bowl, torch.ones(3, dtype=double), method="gd", lr=0.1, max_steps=20)
    by_run = landscape.principal_directions(run)
    by_tensor = landscape.principal_directions(torch.from_numpy(run.theta.values))
    assert all(torch.equal(a.vector, b.vector) for a, b in zip(by_run, by_tensor, strict=True))
    bare = gradflow.integrate(bowl, torch.ones(3, dtype=double), method="gd", lr=0.1, max_steps=2).drop_vars(
        "theta"
    )
    with pytest.raises(ValueError, match="params_every"):
        landscape.principal_directions(bare)


def test_random_directions_have_the_norms_of_the_filters(generator):
    loss = classifier(generator)
    θ = loss.parameters()
    parts = dict(zip(loss.names, loss.leaves(θ), strict=True))
    for d in landscape.random_directions(loss, θ, 2, seed=5):
        moved = dict(zip(loss.names, loss.leaves(d.vector), strict=True))
        for name in ("0.weight", "4.weight"):
            of_d, of_theta = (p[name].flatten(1).norm(dim=1) for p in (moved, parts))
            torch.testing.assert_close(of_d, of_theta, rtol=1e-12, atol=0)
        for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
            assert not moved[name].any(), name
    with_biases = landscape.random_directions(loss, θ, 1, biases=True)[0]
    for part, w in zip(loss.leaves(with_biases.vector), parts.values(), strict=True):
        assert float(part.norm()) == pytest.approx(float(w.norm()))
    by_layer = landscape.random_directions(loss, θ, 1, normalize="layer")[0]
    moved = dict(zip(loss.names, loss.leaves(by_layer.vector), strict=True))
    assert float(moved["0.weight"].norm()) == pytest.approx(float(parts["0.weight"].norm()))
    rows = moved["0.weight"].flatten(1).norm(dim=1) / parts["0.weight"].flatten(1).norm(dim=1)
    assert float(rows.max() / rows.min()) > 1.01


def test_random_directions_are_those_of_their_seed(generator):
    loss = classifier(generator)
    θ = loss.parameters()
    one, two = landscape.random_directions(loss, θ, 2)
    assert torch.equal(landscape.random_directions(loss, θ, 1)[0].vector, one.vector)
    assert abs(float(one.vector @ two.vector)) < 0.6 * one.norm * two.norm
    assert not torch.equal(landscape.random_directions(loss, θ, 1, seed=1)[0].vector, one.vector)
    unit = landscape.random_directions(landscape.saddle, ZERO, 1, normalize="unit")[0]
    assert unit.norm == pytest.approx(1.0)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_a_transposed_convolution_are_of_its_outputs(generator, groups):
    net = make_net(lambda: nn.ConvTranspose2d(4, 6, 2, groups=groups))
    X = torch.randn(3, 4, 2, 2, generator=generator, dtype=double)
    y = torch.zeros(3, 6, 3, 3, dtype=double)
    loss = LossFunction(TensorDataset(X, y), nn.MSELoss(), net)
    θ = loss.parameters()
    d = landscape.random_directions(loss, θ, 1)[0]
    for out in range(6):
        g, j = divmod(out, 6 // groups)
        rows = slice(g * 4 // groups, (g + 1) * 4 // groups)
        of_d, of_theta = (loss.leaves(v)[0][rows, j].norm() for v in (d.vector, θ))
        assert float(of_d) == pytest.approx(float(of_theta))


# ---------------------------------------------------------------------- projections


def test_projections_are_exact(generator):
    θ = torch.randn(6, generator=generator, dtype=double)
    a, b, c = torch.randn(3, 6, generator=generator, dtype=double)
    xy = torch.randn(5, 2, generator=generator, dtype=double)
    found = landscape.project(θ + xy @ torch.stack([a, b]), θ, [a, b])
    assert np.allclose(found.x, xy[:, 0], rtol=1e-12, atol=1e-12)
    assert np.allclose(found.y, xy[:, 1], rtol=1e-12, atol=1e-12)
    assert float(found.distance.max()) < 1e-13
    # what is across the plane is left
    normal = (
        c - torch.stack([a, b], 1) @ torch.linalg.lstsq(torch.stack([a, b], 1), c[:, None]).solution[:, 0]
    )
    found = landscape.project((θ + a + 2 * normal)[None], θ, [a, b])
    assert (float(found.x[0]), float(found.y[0])) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert float(found.distance[0]) == pytest.approx(2 * float(normal.norm()))
    assert float(found.distance_from_centre[0]) == pytest.approx(float((a + 2 * normal).norm()))
    single = landscape.project((θ + 3 * a)[None], θ, [a])
    assert float(single.x[0]) == pytest.approx(3.0)
    assert "y" not in single


def test_the_projection_of_a_run_has_its_times():
    run = gradflow.integrate(
        landscape.saddle, tensor(1.0, 0.5), method="gd", lr=0.1, max_steps=6, params_every=gradflow.steps(2)
    )
    found = landscape.project(run, ZERO, [E2, E1])
    due = run.theta.dropna("time")
    assert found.sizes["time"] < run.sizes["time"]
    assert np.array_equal(found.time, due.time)
    assert np.array_equal(found.x, due[:, 1])
    assert np.array_equal(found.y, due[:, 0])


# ---------------------------------------------------------------------- critical points


@pytest.mark.parametrize(
    ("f", "at", "verdict"),
    [
        (landscape.saddle, (0.0, 0.0), "saddle"),
        (landscape.saddle, (0.0, 1.0), "minimum"),
        (landscape.saddle, (0.0, 0.5), "not critical"),
        (landscape.rosenbrock, (1.0, 1.0, 1.0), "minimum"),
        (landscape.plateau, (0.0, 0.0), "minimum"),
        (landscape.plateau, (1e3, 0.0), "plateau"),
        (lambda w: -landscape.plateau(w), (0.0, 0.0), "maximum"),
        (lambda w: -((w**4).sum()), (0.0, 0.0), "plateau"),
        (lambda w: w[0] ** 2 + w[1] ** 4, (0.0, 0.0), "undecided"),
        (lambda w: -(w[0] ** 2) + w[1] ** 3, (0.0, 0.0), "undecided"),
        (landscape.quadratic([3.0, 1.0, 1e-17], seed=0), (0.0, 0.0, 0.0), "undecided"),
        (landscape.quadratic([3.0, 1.0, -1e-3], seed=0), (0.0, 0.0, 0.0), "saddle"),
    ],
)
def test_known_critical_points(f, at, verdict):
    found = landscape.classify(f, tensor(*at))
    assert found.verdict == verdict, found.reason
    λ = torch.linalg.eigvalsh(hessian(f, tensor(*at)))
    assert found.sharpness == pytest.approx(float(λ[-1]), abs=1e-9)
    assert found.bottom == pytest.approx(float(λ[0]), abs=1e-9)
    assert found.trace == pytest.approx(float(λ.sum()), abs=1e-9)
    assert found.trace_error == 0
    assert found.loss == float(f(tensor(*at)))


def test_a_sign_within_the_residual_is_undecided():
    """The smallest of 400 eigenvalues is 0.01: whether it has a sign depends on the tolerance."""
    spectrum = np.append(np.linspace(0.2, 1.0, 399), 0.01)
    f, θ = landscape.quadratic(spectrum, seed=2), torch.zeros(400, dtype=double)
    rough = landscape.classify(f, θ, eigs_tol=0.1)
    assert rough.verdict == "undecided"
    assert rough.bottom_error > rough.bottom
    assert "λ_min is 0 within" in rough.reason
    fine = landscape.classify(f, θ, eigs_tol=1e-7)
    assert fine.verdict == "minimum"
    assert fine.bottom == pytest.approx(0.01, abs=1e-9)
    assert fine.sharpness == pytest.approx(1.0, abs=1e-9)
    assert 0 < fine.bottom_error <= 1e-7
    assert fine.n_hvps > rough.n_hvps
    assert landscape.classify(f, θ, eigs_tol=1e-7, flat_tol=0.02).verdict == "undecided"


def test_an_end_that_has_not_converged_is_no_minimum():
    """After few products the smallest Ritz value is far above the smallest eigenvalue, by more than its residual."""
    spectrum = np.append(np.linspace(0.2, 1.0, 399), 0.01)
    f, θ = landscape.quadratic(spectrum, seed=2), torch.zeros(400, dtype=double)
    short = landscape.classify(f, θ, eigs_tol=1e-7, max_hvps=2)
    assert short.bottom - short.bottom_error > 0.01
    assert short.verdict == "undecided"
    assert "not converged" in short.reason
    assert landscape.classify(lambda w: -f(w), θ, eigs_tol=1e-7, max_hvps=2).verdict == "undecided"
    assert landscape.classify(lambda w: -f(w), θ, eigs_tol=1e-7).verdict == "maximum"


def test_the_trace_is_estimated_within_its_error():
    spectrum = np.linspace(-1.0, 4.0, 80)
    f, θ = landscape.quadratic(spectrum, seed=0), torch.zeros(80, dtype=double)
    found = landscape.classify(f, θ, n_vectors=30)
    assert abs(found.trace - spectrum.sum()) < 4 * found.trace_error
    # of vᵀHv of a random unit vector, var = 2 Σ(λ − mean)²/(P²(P/2 + 1))·½, here for P·vᵀHv over 30 of them
    expected = math.sqrt(2 * ((spectrum - spectrum.mean()) ** 2).sum() * 80 / 82 / 30)
    assert found.trace_error == pytest.approx(expected, rel=0.5)
    assert landscape.classify(f, θ, n_vectors=30) == found
    assert landscape.classify(f, θ, n_vectors=30, seed=1).trace != found.trace


@pytest.mark.parametrize(
    "f",
    [
        landscape.quadratic([3.0, 1.0, 0.0], seed=1),
        landscape.quadratic([3.0, 1.0, 0.0], seed=2),
        landscape.quadratic([3.0, 1.0, 1e-16]),
        landscape.quadratic([3.0, 1.0, -1e-16]),
    ],
)
def test_rounding_has_no_sign(f):
    found = landscape.classify(f, torch.zeros(3, dtype=double), flat_tol=0.0)
    assert found.verdict == "undecided", found.reason


def test_the_tolerances_count():
    near = tensor(0.0, 1.0 + 1e-3)  # ‖∇L‖ ≈ 2e-3
    assert landscape.classify(landscape.saddle, near).verdict == "not critical"
    assert landscape.classify(landscape.saddle, near, gradient_tol=3e-3).verdict == "minimum"
    assert landscape.classify(landscape.saddle, ZERO, flat_tol=2.0).verdict == "plateau"


# ---------------------------------------------------------------------- learning rates


def test_a_range_test_on_a_quadratic_is_a_product():
    λ = tensor(10.0, 1.0)
    θ0 = tensor(1.0, 2.0)
    found = landscape.lr_find(landscape.quadratic(λ), θ0, lr_min=1e-3, lr_max=10.0, n=80)
    rates = np.geomspace(1e-3, 10.0, 80)
    assert np.allclose(found.lr, rates)
    states = θ0.numpy() * np.cumprod(1 - rates[:, None] * λ.numpy(), axis=0)
    losses, slopes = 0.5 * (λ.numpy() * states**2).sum(1), np.linalg.norm(λ.numpy() * states, axis=1)
    n = int(np.isfinite(found.loss).sum())
    assert 0 < n < 80
    assert np.allclose(found.loss[:n], losses[:n], rtol=1e-9)
    assert np.allclose(found.gradient_norm[:n], slopes[:n], rtol=1e-9)
    assert np.array_equal(found.smoothed_loss, found.loss, equal_nan=True)
    # it stops at the first loss above four times the smallest, beyond 2/λ₁
    lowest = np.minimum.accumulate(np.append(7.0, losses))
    assert losses[n - 1] > 4 * lowest[n - 1]
    assert (losses[: n - 1] <= 4 * lowest[: n - 1]).all()
    assert rates[n - 1] > 0.2
    assert found.attrs["diverged"] == 1
    assert float(found.initial_loss) == 7.0
    assert float(found.sharpness) == pytest.approx(10.0)
    assert float(found.suggestion_curvature) == pytest.approx(0.2)
    assert float(found.suggestion_minimum) == pytest.approx(rates[losses[:n].argmin()] / 10)
    slope = np.gradient(losses[:n], np.log(rates[:n]))
    assert float(found.suggestion_steepest) == rates[slope[: losses[:n].argmin() + 1].argmin()]


def test_instability_grows_beyond_two_over_sharpness():
    """In one dimension every step below 2/λ shrinks the loss, and every one above it raises it."""
    found = landscape.lr_find(
        landscape.quadratic([5.0]), tensor(1.0), lr_min=0.01, lr_max=4.0, n=60, divergence=math.inf
    )
    losses = np.append(float(found.initial_loss), found.loss.values)
    assert np.array_equal(np.diff(losses) > 0, found.lr.values > 0.4)
    assert found.attrs["diverged"] == 0


@pytest.mark.parametrize(
    ("method", "c"),
    [
        ("gd", 2.0),
        ("polyak", 2 + 2 * 0.7),
        ("nesterov", (2 + 2 * 0.7) / (1 + 2 * 0.7)),
        ("adaptive-gd", None),
        ("adam", None),
    ],
)
def test_the_stability_constant_is_that_of_the_method(method, c):
    options = {"momentum": 0.7} if method in {"polyak", "nesterov"} else None
    f = landscape.quadratic([4.0, 1.0], seed=0)
    found = landscape.lr_find(f, tensor(1.0, 1.0), method=method, method_options=options, n=10)
    if c is None:
        assert np.isnan(found.suggestion_curvature)
    else:
        assert float(found.suggestion_curvature) == pytest.approx(c / 4)
    instance = {"polyak": Polyak(1.0, 0.7), "gd": Euler(3.0)}.get(method)
    if instance is not None:
        again = landscape.lr_find(f, tensor(1.0, 1.0), method=instance, n=10)
        xr.testing.assert_identical(again, found)
        assert instance.lr in (1.0, 3.0)


SGD = torch.optim.SGD


@pytest.mark.parametrize(
    ("method", "options", "make"),
    [
        ("polyak", None, lambda p: SGD(p, lr=1.0, momentum=0.9)),
        ("nesterov", {"momentum": 0.5}, lambda p: SGD(p, lr=1.0, momentum=0.5, nesterov=True)),
        ("adam", {"betas": (0.8, 0.99)}, lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.8, 0.99))),
        ("rmsprop", None, lambda p: torch.optim.RMSprop(p, lr=1.0)),
        (torch.optim.Adamax, None, lambda p: torch.optim.Adamax(p, lr=1.0)),
    ],
)
def test_what_a_method_remembers_goes_on_as_in_torch(method, options, make):
    θ0 = tensor(-1.0, 1.5)
    sweep = {"lr_min": 1e-4, "lr_max": 1e-3, "n": 20, "divergence": math.inf}
    found = landscape.lr_find(landscape.rosenbrock, θ0, method=method, method_options=options, **sweep)
    θ = nn.Parameter(θ0.clone())
    optimizer = make([θ])
    losses = []
    for lr in np.geomspace(1e-4, 1e-3, 20).tolist():
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        landscape.rosenbrock(θ).backward()
        optimizer.step()
        losses.append(landscape.rosenbrock(θ).item())
    assert np.isfinite(losses).all()
    assert np.array_equal(found.loss, losses)


def test_what_a_method_remembers_goes_on_over_restarts():
    found = landscape.cyclic(landscape.saddle, tensor(1.0, 0.1), lr=0.2, cycle=3, n_cycles=2, method="adam")
    θ = nn.Parameter(tensor(1.0, 0.1))
    optimizer = torch.optim.Adam([θ], lr=0.2)
    scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3)
    for k in range(6):
        optimizer.zero_grad()
        landscape.saddle(θ).backward()
        optimizer.step()
        scheduler.step()
        if k % 3 == 2:
            assert np.allclose(found.theta[k // 3], θ.detach(), rtol=1e-12)


def test_mini_batches_are_taken_in_turn(generator):
    loss = regression(generator)
    batches = landscape.minibatches(loss, 5)
    found = landscape.lr_find(loss, ZERO, lr_min=1e-3, lr_max=0.1, n=10, batches=batches, smoothing=0.5)
    by_size = landscape.lr_find(loss, ZERO, lr_min=1e-3, lr_max=0.1, n=10, batch_size=5, smoothing=0.5)
    xr.testing.assert_identical(found, by_size)
    θ, average = ZERO, 0.0
    for k, lr in enumerate(found.lr.values):
        θ = θ - lr * batches[k % 4].gradient(θ)[1]
        value = float(batches[(k + 1) % 4](θ))
        average = 0.5 * average + 0.5 * value
        assert float(found.loss[k]) == pytest.approx(value, rel=1e-12)
        assert float(found.smoothed_loss[k]) == pytest.approx(average / (1 - 0.5 ** (k + 1)), rel=1e-12)
    # the curvature is that of all data
    H = loss.linearize(ZERO) @ torch.eye(2, dtype=double)
    assert float(found.sharpness) == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]))
    assert landscape.lr_find(loss, ZERO, n=5, batch_size=5).attrs["smoothing"] == 0.9


def test_suggestions_come_from_before_the_minimum():
    """Batches whose losses are given numbers: the steepest fall of all comes after the minimum."""
    losses = [1.0, 0.95, 0.9, 0.4, 0.1, 5.0, 0.3]
    batches = [LossFunction.from_callable(lambda w, c=c: c + 0 * w.sum()) for c in losses]
    found = landscape.lr_find(
        bowl, E1, lr_min=1e-3, lr_max=1e2, n=6, batches=batches, smoothing=0.0, divergence=math.inf
    )
    assert found.loss.values.tolist() == losses[1:]
    assert float(found.suggestion_steepest) == pytest.approx(0.1)  # (0.1 − 0.9)/2 a step
    assert float(found.suggestion_minimum) == pytest.approx(0.1)


def test_where_there_is_no_suggestion():
    up = landscape.lr_find(lambda w: -landscape.plateau(w), tensor(0.1, 0.0), n=10, lr_min=1e-3)
    assert np.isnan(up.suggestion_curvature)
    assert float(up.sharpness) < 0
    assert np.isfinite(up.suggestion_minimum)
    rising = landscape.lr_find(landscape.quadratic([5.0]), tensor(1.0), lr_min=0.41, lr_max=4.0, n=10)
    assert np.isnan(rising.suggestion_steepest)
    assert np.isnan(rising.suggestion_minimum)
    assert float(rising.suggestion_curvature) == pytest.approx(0.4)


def test_a_sweep_stops_where_the_loss_is_not_finite():
    found = landscape.lr_find(
        lambda w: torch.exp(w**2).sum(), tensor(2.0), lr_min=1e-3, lr_max=1e3, n=30, divergence=math.inf
    )
    n = int(np.isfinite(found.gradient_norm).sum())
    assert n < 29
    assert found.loss.values[n] == np.inf
    assert np.isnan(found.loss.values[n + 1 :]).all()
    assert found.attrs["diverged"] == 1


# ---------------------------------------------------------------------- schedules


def test_warm_restarts_follow_the_cosine():
    λ, θ0 = tensor(2.0, 0.5), tensor(1.0, -1.0)
    found = landscape.cyclic(landscape.quadratic(λ), θ0, lr=0.4, lr_min=0.05, cycle=4, n_cycles=3)
    reference = landscape.schedules(
        {"sgdr": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, eta_min=0.05)}, 12, lr=0.4
    )
    assert np.allclose(found.lr, reference.lr[0], rtol=1e-14)
    states = θ0.numpy() * np.cumprod(1 - found.lr.values[:, None] * λ.numpy(), axis=0)
    assert np.allclose(found.theta, states[3::4], rtol=1e-12)
    assert np.allclose(found.train_loss, 0.5 * (λ.numpy() * states[3::4] ** 2).sum(1), rtol=1e-12)
    assert np.allclose(found.gradient_norm, np.linalg.norm(λ.numpy() * states[3::4], axis=1), rtol=1e-12)
    assert float(found.loss[0]) == 1.25
    assert np.allclose(found.loss[4::4], found.train_loss[:-1], rtol=1e-12)
    assert found.cycle.values.tolist() == [1, 2, 3]
    assert "train_accuracy" not in found


def test_snapshots_are_losses_of_all_data(generator):
    loss = classifier(generator)
    found = landscape.cyclic(loss, lr=0.3, cycle=3, n_cycles=2, method="polyak", batch_size=8)
    for i in range(2):
        value, accuracy = loss.evaluate(torch.from_numpy(found.theta.values[i]))
        assert float(found.train_loss[i]) == pytest.approx(value)
        assert float(found.train_accuracy[i]) == accuracy
    assert float(found.loss[0]) == float(landscape.minibatches(loss, 8)[0](loss.parameters()))
    directions = landscape.principal_directions(torch.from_numpy(found.theta.values), 1)
    assert directions[0].measured["explained_variance"] == pytest.approx(1.0)


def test_cycles_that_diverge_warn():
    with pytest.warns(gradflow.IntegrationWarning, match="at step 2. Take a smaller lr"):
        found = landscape.cyclic(lambda w: (w**4).sum(), tensor(1e9), lr=0.1, cycle=1, n_cycles=5)
    assert np.isfinite(found.loss[:2]).all()
    assert found.loss.values[2] == found.train_loss.values[1] == np.inf
    assert np.isnan(found.loss[3:]).all()
    assert np.isnan(found.train_loss[2:]).all()
    assert np.isnan(found.theta[2:]).all()


def test_schedules_are_those_of_torch():
    found = landscape.schedules(
        {
            "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
            "steps": lambda o: lr_scheduler.MultiStepLR(o, [2, 4], 0.1),
            "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=6, pct_start=0.5),
        },
        6,
        lr=0.5,
    )
    assert found.lr.dims == ("schedule", "step")
    assert np.allclose(found.lr.sel(schedule="exponential"), 0.5 * 0.9 ** np.arange(6))
    assert np.allclose(found.lr.sel(schedule="steps"), [0.5, 0.5, 0.05, 0.05, 0.005, 0.005])
    assert found.lr.sel(schedule="one cycle").values[[0, 2]] == pytest.approx([0.04, 1.0])


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: landscape.rosenbrock(tensor(1.0)), ValueError, r"n ≥ 2, got \(1,\)"),
        (lambda: landscape.saddle(torch.zeros(3)), ValueError, r"shape \(2,\), got \(3,\)"),
        (lambda: landscape.quadratic([]), ValueError, "one or more finite"),
        (lambda: landscape.quadratic([1.0, math.inf]), ValueError, "one or more finite"),
        (lambda: landscape.quadratic([1.0])(ZERO), ValueError, r"shape \(1,\), got \(2,\)"),
        (lambda: landscape.line(3, ZERO, E1), TypeError, "callable θ -> scalar, got int"),
        (lambda: landscape.line(bowl, [0.0, 0.0], E1), TypeError, "got list"),
        (lambda: landscape.line(bowl, tensor(0.0, math.nan), E1), ValueError, "finite entries"),
        (lambda: landscape.line(bowl, ZERO, torch.ones(3)), ValueError, r"shape \(2,\), got \(3,\)"),
        (lambda: landscape.line(bowl, ZERO, torch.zeros(2)), ValueError, "isn't zero"),
        (lambda: landscape.line(bowl, ZERO, tensor(1.0, math.nan)), ValueError, "norm of 'direction'.*finite"),
        (lambda: landscape.line(bowl, ZERO, "up"), TypeError, "or a Direction, got str"),
        (lambda: landscape.line(bowl, ZERO, E1, [0.0, -1.0]), ValueError, "at to be finite and increase"),
        (lambda: landscape.line(bowl, ZERO, E1, [0.0, 0.0]), ValueError, "increase strictly"),
        (lambda: landscape.line(bowl, ZERO, E1, [0.0]), ValueError, r"at least two.*got shape \(1,\)"),
        (lambda: landscape.line(bowl, ZERO, E1, ["a", "b"]), TypeError, "sequence of numbers, got list"),
        (lambda: landscape.plane(bowl, ZERO, [E1, E2], [1, 0]), ValueError, "x to be finite and increase"),
        (lambda: landscape.plane(bowl, ZERO, [E1, E2], None, [1, 0]), ValueError, "Expected y to be finite"),
        (lambda: landscape.plane(bowl, ZERO, [E1]), ValueError, "two directions, got 1"),
        (lambda: landscape.plane(bowl, ZERO, landscape.Direction(E1, "e")), ValueError, "got 1"),
        (lambda: landscape.plane(bowl, ZERO, [E1, -2 * E1]), ValueError, "linearly independent"),
        (lambda: landscape.plane(bowl, ZERO, [E1, E2], batch_size=2), ValueError, "loss with data"),
        (lambda: landscape.line(bowl, ZERO, E1, n_batches=2), ValueError, "needs batch_size"),
        (lambda: landscape.line(bowl, ZERO, E1, batches=[bowl]), TypeError, "got function"),
        (lambda: landscape.project(torch.zeros(3, 4), ZERO, [E1]), ValueError, r"\(2,\), got \(4,\)"),
        (lambda: landscape.project(ZERO, ZERO, [E1]), ValueError, r"\(n, P\), got \(2,\)"),
        (lambda: landscape.project(torch.zeros(3, 2), ZERO, []), ValueError, "one or two directions, got 0"),
        (lambda: landscape.project(torch.full((3, 2), math.nan), ZERO, [E1]), ValueError, "at least one finite"),
        (lambda: landscape.eigenvectors(bowl, ZERO, ()), ValueError, "at least one index"),
        (lambda: landscape.eigenvectors(bowl, ZERO, (2,)), ValueError, "below P = 2, got 2"),
        (lambda: landscape.eigenvectors(bowl, ZERO, (-3,)), ValueError, "≥ -2, got -3"),
        (lambda: landscape.difference(E1, E1), ValueError, "isn't zero"),
        (lambda: landscape.difference(E1, torch.ones(3)), ValueError, r"\(2,\) and \(3,\)"),
        (lambda: landscape.difference(E1, 3), TypeError, "got int"),
        (lambda: landscape.random_directions(bowl, ZERO), ValueError, 'Pass normalize="unit"'),
        (lambda: landscape.random_directions(bowl, ZERO, normalize="filters"), ValueError, "did you mean 'filter'"),
        (lambda: landscape.classify(bowl, ZERO, gradient_tol=-1.0), ValueError, "gradient_tol ≥ 0"),
        (lambda: landscape.classify(lambda w: 1 / w.sum(), ZERO), ValueError, "finite loss and gradient at θ"),
        (lambda: landscape.lr_find(bowl), ValueError, "needs a network"),
        (lambda: landscape.lr_find(bowl, E1, lr_min=0.0), ValueError, "lr_min > 0"),
        (lambda: landscape.lr_find(bowl, E1, lr_max=-1.0), ValueError, "lr_max > 0"),
        (lambda: landscape.lr_find(bowl, E1, lr_min=1.0, lr_max=1.0), ValueError, "lr_min < lr_max"),
        (lambda: landscape.lr_find(bowl, E1, n=1), ValueError, "n ≥ 2"),
        (lambda: landscape.lr_find(bowl, E1, divergence=1.0), ValueError, "divergence > 1"),
        (lambda: landscape.lr_find(bowl, E1, smoothing=1.0), ValueError, "smoothing < 1"),
        (lambda: landscape.lr_find(bowl, E1, method="rk4"), ValueError, "learning rate, got 'rk4'"),
        (lambda: landscape.lr_find(bowl, E1, method="sdg"), ValueError, "No method 'sdg'"),
        (lambda: landscape.lr_find(bowl, E1, method_options={"lr": 1.0}), TypeError, "Leave lr out"),
        (lambda: landscape.lr_find(bowl, E1, method_options={"momentum": 1.0}), TypeError, "no option"),
        (lambda: landscape.lr_find(lambda w: 1 / w.sum(), ZERO), ValueError, "finite loss and gradient at θ₀"),
        (lambda: landscape.lr_find(bowl, E1, method_options=3), TypeError, "as a mapping, got int"),
        (lambda: landscape.cyclic(bowl, E1, lr=0.0, cycle=2, n_cycles=2), ValueError, "lr > 0"),
        (lambda: landscape.cyclic(bowl, E1, lr=0.1, lr_min=0.2, cycle=2, n_cycles=2), ValueError, "lr_min ≤ lr"),
        (lambda: landscape.cyclic(bowl, E1, lr=0.1, cycle=0, n_cycles=2), ValueError, "cycle ≥ 1"),
        (lambda: landscape.schedules({}, 3), TypeError, "at least one scheduler"),
        (lambda: landscape.schedules({"a": lambda o: 3}, 3), TypeError, "'a' to make a scheduler.*got int"),
        (
            lambda: landscape.schedules({"a": lr_scheduler.ReduceLROnPlateau}, 3),
            ValueError,
            "depends on a loss",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_methods_whose_learning_rate_is_taken():
    stepwise = Polyak(0.1, scheduler=lambda optimizer: lr_scheduler.StepLR(optimizer, 2))
    with pytest.raises(ValueError, match="without a scheduler"):
        landscape.lr_find(bowl, E1, method=stepwise)
    with pytest.raises(TypeError, match="Leave scheduler out"):
        landscape.lr_find(bowl, E1, method="adam", method_options={"scheduler": "StepLR"})
    with pytest.raises(TypeError, match="takes no options"):
        landscape.lr_find(bowl, E1, method=Polyak(0.1), method_options={"momentum": 0.5})


def test_batches_that_are_refused(generator):
    loss = regression(generator)
    with pytest.raises(ValueError, match=r"≤ 20 samples, got 3 · 8"):
        landscape.minibatches(loss, 8, 3)
    with pytest.raises(ValueError, match="batch_size ≥ 1"):
        landscape.minibatches(loss, 0)
    with pytest.raises(TypeError, match="got function"):
        landscape.minibatches(bowl, 2)
    with pytest.raises(ValueError, match="either batches or batch_size"):
        landscape.line(loss, ZERO, E1, batches=[loss], batch_size=2)


# ---------------------------------------------------------------------- pictures


@pytest.fixture
def plot():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot as plt

    from gradflow.plot import landscape as landscape_plot

    yield landscape_plot
    plt.close("all")


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_contours_with_trajectories(plot):
    x = np.linspace(-2, 2, 9)
    flat = landscape.plane(landscape.rosenbrock, ZERO, [landscape.Direction(E1, "w₀"), E2], x, x)
    run = gradflow.integrate(landscape.rosenbrock, tensor(-1.0, 1.5), method="gd", lr=1e-3, max_steps=9)
    path = landscape.project(run, ZERO, [E1, E2])
    ax = plot.contour(flat, {"gd": path, "again": path})
    assert labels(ax) == ["gd", "again"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("w₀", "direction")
    assert ax.get_xlim() == ax.get_ylim() == (-2, 2)
    drawn = next(line for line in ax.lines if line.get_label() == "gd")
    assert np.array_equal(drawn.get_xdata(), run.theta[:, 0])
    levels = ax.collections[0].levels
    assert np.ptp(np.diff(np.log(levels))) < 1e-9
    marks = [(line.get_marker(), *line.get_xdata()) for line in ax.lines if line.get_marker() in "oX"]
    assert marks[:2] == [("o", -1.0), ("X", float(run.theta[-1, 0]))]


@pytest.mark.parametrize(
    ("f", "n", "even"),
    [
        (landscape.saddle, 5, True),
        (lambda w: torch.log(w[0]), 5, True),
        (lambda w: 0 * w.sum() + 3, 5, True),
        (bowl, 5, True),
        (bowl, 21, False),
    ],
)
def test_contours_of_any_loss(plot, f, n, even):
    """Negative, not finite in places, constant, and zero in the middle."""
    flat = landscape.plane(f, ZERO, [E1, E2], np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    ax = plot.contour(flat)
    ax.figure.canvas.draw()
    assert ax.get_legend() is None
    levels, finite = ax.collections[0].levels, flat.loss.values[np.isfinite(flat.loss.values)]
    assert (np.ptp(np.diff(levels)) < 1e-6 * np.ptp(levels)) == even
    assert levels[-1] == pytest.approx(finite.max())
    assert levels[0] == pytest.approx(finite.min() if even else finite[finite > 1e-12].min())


def test_surfaces(plot, generator):
    flat = landscape.plane(regression(generator), ZERO, [E1, E2], [-1, 0, 1], [-1, 0, 1], batch_size=10)
    assert len(plot.surface(flat).collections) == 1
    ax = plot.surface(flat, batches=True)
    assert len(ax.collections) == 3
    ax.figure.canvas.draw()
    with pytest.raises(TypeError, match="three dimensions"):
        plot.surface(flat, plot.plt.subplots()[1])
    with pytest.raises(ValueError, match="mini-batches"):
        plot.surface(flat.drop_vars("batch_loss"), batches=True)


def test_curves(plot, generator):
    loss = regression(generator)
    one, two = (landscape.line(loss, ZERO, d, [-1, 0, 1], batch_size=10) for d in (E1, E2))
    ax = plot.curve(one)
    assert len(ax.lines) == 3
    assert np.array_equal(ax.lines[2].get_ydata(), one.loss)
    assert np.array_equal(ax.lines[1].get_ydata(), one.batch_loss[1])
    assert labels(ax) == ["loss, 2 mini-batches", "loss"]
    ax = plot.curve({"a": one.drop_vars("batch_loss"), "b": two.drop_vars("batch_loss")})
    assert labels(ax) == ["a", "b"]
    assert ax.get_yscale() == "linear"
    steep = plot.curve(landscape.line(lambda w: torch.exp(9 * w[0]), ZERO, E1, [-1, 0, 1]))
    assert steep.get_yscale() == "log"
    assert steep.get_legend() is None


def test_the_curve_of_a_range_test(plot, generator):
    found = landscape.lr_find(landscape.quadratic([10.0, 1.0]), tensor(1.0, 1.0), lr_min=1e-3)
    ax = plot.lr_curve(found)
    assert labels(ax)[0] == "loss"
    assert labels(ax)[3] == "c/λ₁: 0.2"
    assert [line.get_xdata()[0] for line in ax.lines[1:]] == [
        float(found[name]) for name in ("suggestion_steepest", "suggestion_minimum", "suggestion_curvature")
    ]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert ax.get_ylim()[1] <= 2 * 5.5
    found = landscape.lr_find(lambda w: torch.exp(w**2).sum(), tensor(2.0), lr_min=1e-3, lr_max=10.0)
    assert float(found.loss.max()) > 10 * 2 * float(found.initial_loss)  # far above the cut
    far = plot.lr_curve(found)
    assert 0 < far.get_ylim()[0] < far.get_ylim()[1] <= 2 * math.exp(4)
    noisy = landscape.lr_find(regression(generator), ZERO, lr_min=1e-3, n=20, batch_size=5)
    assert labels(plot.lr_curve(noisy))[:2] == ["loss", "smoothed loss"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("contour", "a plane as an xarray.Dataset"),
        ("surface", "a plane as an xarray.Dataset"),
        ("curve", "a dataset, or a mapping of names to datasets"),
        ("lr_curve", "a range test as an xarray.Dataset"),
    ],
)
def test_what_cannot_be_drawn(plot, name, expected):
    with pytest.raises(TypeError, match=f"Expected {expected}, got list"):
        getattr(plot, name)([1.0, 2.0])
    with pytest.raises(ValueError, match="got a dataset without it"):
        getattr(plot, name)(xr.Dataset())


# ---------------------------------------------------------------------- the layers


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_landscape_imports_what_is_below_it():
    package = Path(gradflow.__file__).parent
    allowed = ("errors", "checks", "loss", "spectrum", "integrators", "driver", "landscape")
    files = sorted((package / "landscape").glob("*.py"))
    assert len(files) >= 7
    for file in files:
        for name in imported(file):
            if name.startswith("gradflow"):
                assert name.split(".")[1] in allowed, (file.name, name)
            assert not name.startswith("matplotlib"), file.name
    names = list(imported(package / "plot" / "landscape.py"))
    assert not [n for n in names if n.startswith(("torch", "gradflow.landscape", "gradflow.api"))]


def test_what_is_public_is_named():
    assert all(hasattr(landscape, name) for name in landscape.__all__)
    assert dataclasses.is_dataclass(landscape.Direction)
    with pytest.raises(dataclasses.FrozenInstanceError):
        landscape.Direction(E1, "e").name = "other"
