"""The file: what is in it, that it comes back as it was, and that nothing is lost on the way."""

import json
import math
import os
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from helpers.problems import bowl

import gradflow
from gradflow import open_run, problems, steps
from gradflow.errors import InvalidTypeError, OutputExistsError, RunNotFoundError
from gradflow.observe.reading import OURS
from gradflow.record import check_attributes
from gradflow.record.checkpoints import read_checkpoint
from gradflow.record.provenance import to_json

ONES = torch.ones(4, dtype=torch.float64)


def full_run(out=None, **kwargs):
    train, test, theta = problems.load("digits", "fc-tanh-depth1", "ce", dtype=torch.float64)
    options = {
        "method": "rk4", "t_max": 1.0, "save_every": 0.25, "n_eigs": 2, "n_projections": 3, "params_every": 0.5,
        "test": test, "out": out, "density_at": [-1.0, 0.0, 2.0], "density_every": 1.0,
    }  # fmt: skip
    return gradflow.integrate(train, theta, **(options | kwargs))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The file of a run with all that is recorded of a flow."""
    path = tmp_path_factory.mktemp("full") / "run.nc"
    full_run(path, sharpness_every=0.5)
    return path


def test_the_file_holds_every_variable_of_the_schema(recorded):
    assert sorted(p.name for p in recorded.parent.iterdir()) == ["run.nc"]
    with xr.open_dataset(recorded) as ds:  # nothing but xarray
        with_dims = {"eigenvalue": "eig", "eigenvalue_residual": "eig", "projection": "proj", "theta": "param",
                     "spectral_density": "x", "spectral_density_error": "x"}  # fmt: skip
        dims = {name: ("time", with_dims[name]) if name in with_dims else ("time",) for name in OURS}
        dims |= {"x": ("x",), "params": ("param",), "params_initial": ("param",)}
        others = {"effective_eigenvalue", "effective_eigenvalue_residual", "n_third", "state"}
        others |= {"theta_error_estimate", "theta_error_tolerance"}
        assert {str(name): array.dims for name, array in ds.variables.items()} == {
            name: dims[name] for name in dims if name not in others
        }
        assert dict(ds.sizes) == {"time": 5, "eig": 2, "x": 3, "proj": 3, "param": 64 * 200 + 200 + 2010}
        assert set(ds.coords) == {"time", "step", "x"}
        for name, array in ds.variables.items():
            assert array.attrs["units"] in {"1", "s"}, name
            assert array.attrs["long_name"], name
        for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy", "gradient_norm"):
            assert np.isfinite(ds[name]).all(), name
        assert np.isnan(ds.step_size[0])
        assert np.isfinite(ds.step_size[1:]).all()
        assert ds.time.dtype == np.float64
        assert ds.theta.dtype == np.float64
        assert np.isfinite(ds.theta[:, 0]).values.tolist() == [True, False, True, False, True]
        assert (np.diff(ds.n_gradients) > 0).all()
        assert (np.diff(ds.wall_time) >= 0).all()


def test_attributes_say_how_it_was_made_and_how_it_ended(recorded):
    with xr.open_dataset(recorded) as ds:
        a = ds.attrs
        assert a["Conventions"].startswith("CF-")
        assert all(a[name] for name in ("title", "source", "history", "commit", "platform"))
        assert (a["status"], a["success"], a["method"], a["dtype"], a["device"]) == (
            "t_max",
            1,
            "rk4",
            "float64",
            "cpu",
        )
        assert "t_max" in a["message"]
        assert a["time_definition"] == "flow"
        assert a["projection_seed"] == 0
        assert "gaussian" in a["projection_kind"]
        assert json.loads(a["versions"])["torch"] == torch.__version__
        config = json.loads(a["gradflow_config"])
        assert config["options"] == {
            "alpha": 1.0,
            "max_step": "inf",
            "sharpness_every": 0.5,
            "loss_rtol": 0.0,
        }
        assert config["t_max"] == 1.0
        loss = config["loss"]
        assert (loss["dataset"], loss["arch"], loss["loss"], loss["seed"]) == (
            "digits",
            "fc-tanh-depth1",
            "ce",
            0,
        )
        assert (loss["batch_size"], loss["n_chunks"], loss["n_parameters"]) == (1437, 1, ds.sizes["param"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sync_every", [0.0, 1e9])
def test_file_and_memory_hold_the_same(tmp_path, dtype, sync_every):
    train, test, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=dtype)
    options = {"method": "expeuler", "t_max": 2.0, "save_every": 0.1, "n_eigs": 2, "eigs_every": 0.5,
               "n_projections": 3, "test": test}  # fmt: skip
    memory = gradflow.integrate(train, theta, **options)
    file = gradflow.integrate(train, theta, out=tmp_path / "x.nc", sync_every=sync_every, **options)
    reopened = open_run(tmp_path / "x.nc")
    for ds in (file, reopened):
        assert ds.sizes == memory.sizes
        for name in memory.variables:
            assert ds[name].dtype == memory[name].dtype, name
            assert ds[name].dims == memory[name].dims, name
            if name != "wall_time":
                assert np.array_equal(ds[name], memory[name], equal_nan=True), name
        assert ds.attrs.keys() == memory.attrs.keys()
    file.close()
    reopened.close()


def test_chunks_are_chosen_and_files_are_not_larger_than_their_data(tmp_path):
    path = tmp_path / "x.nc"
    ds = gradflow.integrate(bowl, ONES, method="gd", lr=0.001, max_steps=3000, n_projections=2, out=path)
    n_bytes = ds.nbytes
    ds.close()
    assert path.stat().st_size < 1.4 * n_bytes + 60_000
    with netCDF4.Dataset(path) as file:
        assert file.dimensions["time"].isunlimited()
        assert file["time"].chunking() == [1024]
        assert file["projection"].chunking() == [1024, 2]
        assert file["theta"].chunking() == [1024, 4]


def test_an_existing_file_is_never_touched_without_overwrite(tmp_path):
    path = tmp_path / "x.nc"
    path.write_text("precious")
    with pytest.raises(OutputExistsError, match=r"exists\. Pass overwrite=True"):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=3, out=path)
    assert path.read_text() == "precious"
    # with overwrite: by a rename at the end, and not if the run dies on the way
    with pytest.raises(ZeroDivisionError):
        gradflow.integrate(
            bowl, ONES, method="gd", lr=0.1, max_steps=3, out=path, overwrite=True, callback=lambda r: 1 / 0
        )
    assert path.read_text() == "precious"
    gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=3, out=path, overwrite=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nc"]
    with open_run(path) as ds:
        assert len(ds.time) == 4


def test_a_run_can_be_read_while_it_goes_on(tmp_path):
    path = tmp_path / "x.nc"
    lengths = []

    def look(report):
        ds = open_run(path)
        lengths.append(len(ds.time))
        assert ds.attrs["status"] == "running"
        assert np.array_equal(ds.step, np.arange(len(ds.time)))
        assert np.array_equal(ds.params_initial, ONES)

    gradflow.integrate(
        bowl, ONES, method="gd", lr=0.1, max_steps=6, out=path, sync_every=0.0, callback=look
    ).close()
    assert lengths == [1, 2, 3, 4, 5, 6]


def test_an_exception_of_the_caller_loses_no_record(tmp_path):
    path = tmp_path / "x.nc"

    def fail(report):
        if report.step == 5:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gradflow.integrate(
            bowl, ONES, method="gd", lr=0.1, max_steps=100, out=path, sync_every=1e9, callback=fail
        )
    assert not path.exists()
    for name in (path, tmp_path / "x.nc.partial"):
        ds = open_run(name)
        assert ds.step.values.tolist() == [0, 1, 2, 3, 4]
        assert np.allclose(ds.theta[:, 0], 0.9 ** np.arange(5))
    with pytest.raises(OutputExistsError, match="holds the records of a run that didn't end"):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=3, out=path)
    assert len(open_run(path).time) == 5
    gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=3, out=path, overwrite=True).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nc"]


@pytest.mark.slow
def test_a_killed_run_leaves_its_records(tmp_path):
    path = tmp_path / "x.nc"
    script = f"""
import os, signal, torch, gradflow
def kill(report):
    if report.step == 20:
        os.kill(os.getpid(), signal.SIGKILL)
gradflow.integrate(lambda x: (x**2).sum(), torch.ones(2), method="gd", lr=0.1, max_steps=99, out={str(path)!r},
                   sync_every=0.0, callback=kill)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    assert open_run(path).step.values.tolist() == list(range(20))


def test_checkpoints_hold_the_state_of_the_run(tmp_path):
    path = tmp_path / "x.nc"
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    found = {}

    def look(report):
        for file in sorted((tmp_path / "x.nc.partial").glob("checkpoint-*.pt")) if report.step > 1 else []:
            found[file.name] = read_checkpoint(file)
        assert len(list((tmp_path / "x.nc.partial").glob("checkpoint-*"))) <= 2 if report.step > 1 else True

    ds = gradflow.integrate(
        train,
        theta,
        method="rk4",
        max_steps=6,
        save_every=steps(1),
        out=path,
        checkpoint_every=1e-9,
        callback=look,
    )
    assert len(found) == 6  # the first of them at the start
    for checkpoint in found.values():
        state = checkpoint["run"]["stepper"]
        row = int(np.flatnonzero(ds.step.values == state["n_steps"])[0])
        assert np.array_equal(state["z"], ds.theta[row])
        assert sum(state["clock"]) == float(ds.time[row])
        cost = {"n_gradients": int(ds.n_gradients[row]), "n_hvps": int(ds.n_hvps[row]), "n_third": 0}
        assert state["field"]["cost"] == cost
        if row:
            assert state["field"]["spectrum"]["trails"]["top"]["bases"][-1].shape[0] == 300
    ds.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nc"]


def test_a_failed_run_is_closed_properly(tmp_path):
    path = tmp_path / "x.nc"
    with pytest.warns(gradflow.IntegrationWarning, match="its record is in"):
        gradflow.integrate(
            lambda x: (x**4).sum(), ONES * 3, method="gd", lr=1.0, t_max=50.0, out=path
        ).close()
    with open_run(path) as ds:
        assert ds.attrs["status"] == "not_finite"
        assert ds.attrs["success"] == 0
        assert np.isfinite(ds.train_loss).all()


def test_outputs_that_cannot_be_written_are_refused_before_the_run(tmp_path):
    calls = []

    def counted(x):
        calls.append(1)
        return bowl(x)

    (tmp_path / "dir.nc").mkdir()
    for out, text in (
        (tmp_path / "dir.nc", "got the directory"),
        (tmp_path / "no" / "x.nc", "directory of out doesn't exist"),
    ):
        with pytest.raises(ValueError, match=text):
            gradflow.integrate(counted, ONES, method="gd", lr=0.1, max_steps=3, out=out)
    assert not calls
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.nc"]


def test_paths_may_be_relative_with_spaces_and_unicode(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    gradflow.integrate(
        bowl, ONES, method="gd", lr=0.1, max_steps=3, out="θ run.nc", callback=lambda r: os.chdir(elsewhere)
    ).close()
    with open_run(tmp_path / "θ run.nc") as ds:
        assert len(ds.time) == 4


def test_missing_runs_are_reported(tmp_path):
    with pytest.raises(RunNotFoundError, match=r"No run at .*x.nc: there is neither that file nor"):
        open_run(tmp_path / "x.nc")
    assert issubclass(RunNotFoundError, FileNotFoundError)


def test_attributes_are_made_fit_for_netcdf_or_refused():
    clean = check_attributes(
        {"a": True, "b": None, "c": {"x": [1, None]}, "d": 2**70, "e": 1.5, "f": "ü", "g": 3}
    )
    assert clean == {"a": 1, "c": '{"x": [1, null]}', "d": str(2**70), "e": 1.5, "f": "ü", "g": 3}
    assert clean["a"].dtype == np.int8
    with pytest.raises(InvalidTypeError, match="'z' can't be written to netCDF: complex"):
        check_attributes({"z": 1j})
    assert json.loads(to_json({"a": math.inf, "b": np.float64(2), "c": (1, {2: torch.float32})})) == {
        "a": "inf", "b": 2.0, "c": [1, {"2": "torch.float32"}],
    }  # fmt: skip


def test_two_runs_never_write_to_one_output(tmp_path):
    path = tmp_path / "x.nc"

    def second(report):
        said = {
            False: "holds the records of a run that didn't end, or is still going on",
            True: "Another run is writing",
        }
        for overwrite, text in said.items():
            with pytest.raises(OutputExistsError, match=text):
                gradflow.integrate(
                    bowl, ONES, method="gd", lr=0.3, max_steps=2, out=path, overwrite=overwrite
                )

    ds = gradflow.integrate(
        bowl, ONES, method="gd", lr=0.1, max_steps=4, out=path, sync_every=0.0, callback=second
    )
    assert np.allclose(ds.theta[:, 0], 0.9 ** np.arange(5))
    ds.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.nc"]


def test_a_failure_before_the_first_record_leaves_nothing(tmp_path):
    def fails_at_a_record(x):
        if not x.requires_grad:
            raise OSError("no")
        return bowl(x)

    test = gradflow.LossFunction.from_callable(fails_at_a_record)
    with pytest.raises(OSError, match="no"):
        gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=4, out=tmp_path / "x.nc", test=test)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sync_every", [0.0, 1e9])
def test_the_last_record_of_a_failed_run_is_complete(tmp_path, sync_every):
    options = {
        "method": "gd",
        "lr": 1.0,
        "max_steps": 1000,
        "n_eigs": 1,
        "n_projections": 2,
        "sync_every": sync_every,
    }
    every = dict.fromkeys(("eigs_every", "projections_every", "params_every"), steps(50))

    def stiff(x):
        return 0.5 * (torch.tensor([1.0, 10.0, 2.0, 1.0], dtype=torch.float64) * x**2).sum()

    for out in (None, tmp_path / "x.nc"):
        with pytest.warns(gradflow.IntegrationWarning):
            ds = gradflow.integrate(stiff, ONES, out=out, **options, **every)
        assert ds.attrs["status"] == "not_finite"
        assert len(np.unique(ds.time)) == len(ds.time) == ds.attrs["n_steps"] + 1
        for name in ("eigenvalue", "projection", "theta"):
            assert np.isfinite(ds[name].values[-1]).all(), name
        assert np.array_equal(ds.theta[-1], ds.params)
        ds.close()


def test_an_interrupt_while_the_end_is_measured_loses_nothing(tmp_path):
    """The run has blown up; Ctrl-C comes while the last record's eigenvalues are measured."""
    path = tmp_path / "x.nc"
    failed = []

    def blows_up(x):
        if failed:
            raise KeyboardInterrupt
        value = (x**4).sum()
        if not bool(torch.isfinite(value)):
            failed.append(value)
        return value

    with pytest.raises(KeyboardInterrupt):
        gradflow.integrate(
            blows_up,
            ONES * 0.75,
            method="gd",
            lr=1.0,
            max_steps=500,
            n_eigs=1,
            eigs_every=steps(400),
            out=path,
            sync_every=1e9,
        )
    assert len(open_run(path).time) > 2


def test_partial_runs_open_under_either_name_also_when_they_have_ended(tmp_path):
    path = tmp_path / "x.nc"
    gradflow.integrate(bowl, ONES, method="gd", lr=0.1, max_steps=4, out=path).close()
    with open_run(tmp_path / "x.nc.partial") as ds:
        assert len(ds.time) == 5
    with pytest.raises(ValueError, match="got the directory"):
        open_run(tmp_path)


def test_failures_pass_between_processes():
    import pickle

    with pytest.raises(gradflow.IntegrationError) as error:
        gradflow.integrate(
            lambda x: (x**4).sum(), ONES * 3, method="gd", lr=1.0, t_max=9.0, on_failure="raise"
        )
    again = pickle.loads(pickle.dumps(error.value))
    assert str(again) == str(error.value)
    for name in ("status", "t", "step", "loss", "path"):
        assert getattr(again, name) == getattr(error.value, name)
    assert np.array_equal(again.dataset.theta, error.value.dataset.theta)
