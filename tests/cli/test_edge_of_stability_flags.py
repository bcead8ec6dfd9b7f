"""The options of gd.py and flow.py (Cohen et al. 2021) in `gradflow run`: each takes effect."""

import json

import numpy as np
import pytest
import torch
from helpers.cli import config, invoke
from torch import nn

import gradflow
from gradflow import open_run, problems

GD = ["run", "chebyshev-3-20", "regression", "mse", "--opt", "gd", "--lr", 0.1]
FLOW = ["run", "chebyshev-3-20", "regression", "mse", "--method", "rk4", "--tick", 0.5, "--max_time", 3]


def ran(tmp_path, *args):
    result = invoke(*args, "--out", tmp_path / "x.nc")
    assert result.exit_code == 0, result.output
    with open_run(tmp_path / "x.nc") as ds:
        return ds.load()


def known(array):
    return np.flatnonzero(np.isfinite(array.values.reshape(len(array), -1)[:, 0])).tolist()


def test_frequencies_of_gd_are_steps(tmp_path):
    ds = ran(
        tmp_path, *GD, "--max_steps", 12, "--neigs", 2, "--eig_freq", 5, "--nproj", 3, "--iterate_freq", 4
    )
    assert len(ds.time) == 13  # the losses at every step
    assert ds.sizes["eig"] == 2
    assert ds.sizes["proj"] == 3
    assert known(ds.eigenvalue) == [0, 5, 10, 12]
    assert known(ds.projection) == [0, 4, 8, 12]


def test_frequencies_of_a_flow_are_ticks(tmp_path):
    ds = ran(tmp_path, *FLOW, "--neigs", 1, "--eig_freq", 2, "--nproj", 3, "--iterate_freq", 3)
    assert ds.time.values.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert known(ds.eigenvalue) == [0, 2, 4, 6]
    assert known(ds.projection) == [0, 3, 6]


def test_a_frequency_of_minus_one_says_nothing(tmp_path):
    """Theirs never measures then, or loops for ever; ours goes by its default, every record."""
    ds = ran(tmp_path, *FLOW, "--neigs", 1, "--eig_freq", -1)
    assert known(ds.eigenvalue) == list(range(7))


@pytest.mark.parametrize("method", ["polyak", "nesterov"])
def test_momentum(method, tmp_path):
    args = ["run", "chebyshev-3-20", "regression", "mse", "--opt", method, "--lr", 0.1, "--beta", 0.5]
    ds = ran(tmp_path, *args, "--max_steps", 5)
    assert ds.attrs["method"] == method
    assert np.array_equal(ds.time, np.arange(6) * 0.2)


def test_alpha_and_the_largest_step_take_effect(tmp_path):
    """Theirs parses both, and uses neither."""
    sizes = {}
    for options in ((), ("--alpha", 0.5), ("--max_step_size", 0.05)):
        ds = ran(tmp_path, *FLOW, *options, "--overwrite")
        sizes[options] = float(ds.step_size.max())
    plain = sizes[()]
    assert sizes["--alpha", 0.5] == pytest.approx(plain / 2, rel=0.3)
    assert sizes["--max_step_size", 0.05] == pytest.approx(0.05)


def test_goals(tmp_path):
    ds = ran(tmp_path, *GD, "--max_steps", 500, "--loss_goal", 0.2)
    assert ds.attrs["status"] == "loss_goal"
    assert float(ds.train_loss[-1]) <= 0.2 < float(ds.train_loss[-2])
    args = ["run", "digits", "fc-tanh-depth1", "mse", "--opt", "gd", "--lr", 0.5, "--max_steps", 100]
    ds = ran(tmp_path, *args, "--acc_goal", 0.6, "--overwrite")
    assert ds.attrs["status"] == "acc_goal"
    assert float(ds.train_accuracy[-1]) >= 0.6 > float(ds.train_accuracy[-2])


def test_seeds(tmp_path):
    ends = [
        float(ran(tmp_path, *GD, "--max_steps", 1, "--seed", s, "--overwrite").train_loss[0]) for s in (0, 1)
    ]
    assert ends[0] != ends[1]


def test_defaults_are_theirs_where_their_flags_are_used(tmp_path):
    args = ["run", "digits", "fc-tanh-depth1", "mse", "--method", "gd", "--lr", 0.1, "--max-steps", 1]
    invoke(*args, "--out", tmp_path / "ours.nc", "--n-eigs", 1)
    invoke(*args, "--out", tmp_path / "theirs.nc", "--neigs", 1)
    invoke(
        *args,
        "--out",
        tmp_path / "chosen.nc",
        "--neigs",
        1,
        "--physical_batch_size",
        400,
        "--abridged_size",
        50,
    )
    found = {
        name: (
            config(tmp_path / f"{name}.nc")["loss"]["batch_size"],
            config(tmp_path / f"{name}.nc")["abridged_size"],
        )
        for name in ("ours", "theirs", "chosen")
    }
    assert found == {"ours": (1437, None), "theirs": (1000, 5000), "chosen": (400, 50)}


def test_the_physical_batch_is_the_ghost_batch(tmp_path):
    args = ["run", "digits", "cnn-bn-tanh", "mse", "--opt", "gd", "--lr", 0.1, "--max_steps", 1]
    losses = [
        float(ran(tmp_path, *args, "--physical_batch_size", n, "--overwrite").train_loss[0])
        for n in (1437, 300)
    ]
    train, _, theta = problems.load("digits", "cnn-bn-tanh", "mse", batch_size=300)
    assert losses[0] != pytest.approx(losses[1], rel=1e-5)
    assert losses[1] == pytest.approx(float(train(theta)), rel=1e-6)


def test_saved_models_load_into_the_plain_net(tmp_path):
    args = [
        "run",
        "digits",
        "cnn-bn-tanh",
        "mse",
        "--opt",
        "gd",
        "--lr",
        0.1,
        "--max_steps",
        2,
        "--save_model",
    ]
    ds = ran(tmp_path, *args)
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    train, _, _ = problems.load("digits", "cnn-bn-tanh", "mse", batch_size=1000)
    net = train.source.net
    net.load_state_dict(state)
    inputs, targets = train.source.data.dataset.tensors
    with torch.no_grad():
        batches = zip(inputs.split(1000), targets.split(1000), strict=True)
        loss = sum(0.5 * (net(x) - y).square().sum() for x, y in batches)
    assert float(loss) / 1437 == pytest.approx(float(ds.train_loss[-1]), rel=1e-5)
    assert np.array_equal(nn.utils.parameters_to_vector(net.parameters()).detach(), ds.params)
    again = invoke(*args, "--out", tmp_path / "y.nc")
    assert again.exit_code == 0
    (tmp_path / "y.nc").unlink()
    again = invoke(*args, "--out", tmp_path / "y.nc")
    assert again.exit_code == 1
    assert "y.pt" in again.output
    assert not (tmp_path / "y.nc").exists()


def test_runs_are_named_for_sweeps(tmp_path):
    for lr in (0.1, 0.05):
        for opt in ((), ("--beta", 0.5)):
            args = ["run", "chebyshev-3-20", "regression", "mse", "--lr", lr, "--max_steps", 3, *opt]
            result = invoke(*args, "--opt", "polyak" if opt else "gd", "--seed", 2, "--out-dir", tmp_path)
            assert result.exit_code == 0, result.output
    names = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.nc")}
    folder = "chebyshev-3-20/regression/seed_2/mse"
    assert names == {
        f"{folder}/{name}.nc"
        for name in ("gd/lr_0.1", "gd/lr_0.05", "polyak/lr_0.1_momentum_0.5", "polyak/lr_0.05_momentum_0.5")
    }
    again = invoke(*GD, "--max-steps", 3, "--seed", 2, "--out-dir", tmp_path)
    assert again.exit_code == 1
    assert "overwrite" in again.output
    combined = gradflow.combine([open_run(p) for p in sorted(tmp_path.rglob("gd/*.nc"))])
    assert combined.lr.values.tolist() == [0.05, 0.1]


def test_options_without_values_name_the_run_too(tmp_path):
    result = invoke(*FLOW, "--out-dir", tmp_path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "chebyshev-3-20/regression/seed_0/mse/rk4/default.nc").exists()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([*GD, "--max-steps", 2, "--neigs", 1, "--n-eigs", 1], "--neigs and --n-eigs say the same"),
        ([*GD, "--max-steps", 2, "--method", "gd"], "--opt and --method say the same"),
        ([*FLOW[:-4], "--max-time", 3, "--neigs", 1, "--eig-freq", 2], "counts ticks of a flow: give --tick"),
        ([*GD, "--max-steps", 2, "--save-freq", 5], "--save-freq isn't needed"),
        ([*GD, "--max-steps", 2, "--save-model"], "give --out or --out-dir"),
        ([*GD, "--max-steps", 2, "--out", "x.nc", "--out-dir", "d"], "--out and --out-dir were given"),
        ([*GD, "--max-steps", 2, "--out", "x.pt", "--save-model"], "would write over the record"),
        (["run", "digits", "fc-tanh", "mse", "--lr", 0.1], "Method 'auto' has no option 'lr'"),
        ([*GD, "--max-steps", 2, "--beta", 0.5], "Method 'gd' has no option 'momentum'"),
        (
            [*GD, "--max-steps", 2, "--abridged-size", 5],
            "--abridged-size has nothing to measure: give --n-eigs",
        ),
        ([*GD, "--max-steps", 2, "--abridged-size", 0, "--n-eigs", 1], "--abridged-size ≥ 1"),
        (
            ["run", "wikitext", "transformer", "ce", "--method", "gd", "--lr", 0.1, "--max-steps", 2],
            "No data set 'wikitext'",
        ),
    ],
)
def test_mistakes(args, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*args)
    assert result.exit_code != 0
    assert text in result.output
    assert not list(tmp_path.iterdir())


def test_the_configuration_says_what_was_asked_for(tmp_path):
    ds = ran(tmp_path, *GD, "--max_steps", 4, "--neigs", 2, "--eig_freq", 2)
    stored = json.loads(ds.attrs["gradflow_config"])
    assert stored["n_eigs"] == 2
    assert stored["cadences"]["eigenvalues"] == [{"n": 2}]
    assert stored["abridged_size"] == 5000
