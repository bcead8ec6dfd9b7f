"""Runs that die leave what they recorded, and go on as if nothing had happened."""

import contextlib
import errno
import fcntl
import importlib
import json
import multiprocessing
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import classification
from helpers.classification import problem
from helpers.cli import invoke
from helpers.methods import METHODS
from helpers.problems import chebyshev

import gradflow
from gradflow import open_run, problems, steps
from gradflow.errors import OutputExistsError, RecordingError, RecordWarning, ResumeError, ResumeWarning
from gradflow.integrators import METHODS as REGISTRY
from gradflow.record.checkpoints import read_checkpoint, write_checkpoint
from gradflow.record.lock import is_held, take_lock

double = torch.float64
MULTISTEP = {"scipy:BDF", "scipy:Radau", "scipy:LSODA", "torchdiffeq:scipy_solver"}


class Died(Exception):
    pass


def differences(a, b):
    """Names of variables and attributes in which two runs differ, wall time and history apart."""
    arrays = [
        str(name) for name in {*a.variables, *b.variables} - {"wall_time"}
        if name not in a or name not in b
        or not np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")
    ]  # fmt: skip
    attrs = [
        name
        for name in {*a.attrs, *b.attrs} - {"history"}
        if str(a.attrs.get(name)) != str(b.attrs.get(name))
    ]
    return arrays + attrs


def dies_after(n):
    def callback(report):
        if report.step > n:
            raise Died(f"at step {report.step}")

    return callback


def run_and_resume(path, cut, loss, theta, **kwargs):
    """The run as it would have been, and as it is after it died and was resumed."""
    whole = gradflow.integrate(loss, theta, out=path.with_name("whole.nc"), **kwargs).load()
    with pytest.raises(Died) as caught:
        gradflow.integrate(
            loss, theta, out=path, checkpoint_every=1e-9, sync_every=0, callback=dies_after(cut), **kwargs
        )
    assert any("resume=" in note for note in caught.value.__notes__)
    assert open_run(path).attrs["status"] == "error"
    assert "Died: at step" in open_run(path).attrs["message"]
    return whole, gradflow.integrate(loss, theta, resume=path, **kwargs).load()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(method, tmp_path):
    train, test, theta = chebyshev()
    kwargs = {
        "method": method.name, "t_max": 3.0, "save_every": 0.3, "n_eigs": 2, "eigs_every": 0.45, "n_projections": 3,
        "test": test, **method.options,
    }  # fmt: skip
    if REGISTRY[method.name].discrete:
        kwargs["max_steps"] = 6 if method.name == "lbfgs" else 30
    n = gradflow.integrate(train, theta, **kwargs).attrs["n_steps"]
    whole, again = run_and_resume(tmp_path / "x.nc", max(1, n // 2), train, theta, **kwargs)
    if method.name in MULTISTEP:  # their history isn't kept
        assert np.allclose(whole.params, again.params, rtol=0, atol=1e-4)
        assert np.allclose(whole.time, again.time)
    else:
        assert differences(whole, again) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole.nc", "x.nc"]


@pytest.mark.parametrize("method", classification.TORCH)
@pytest.mark.parametrize("batch_size", [None, 8])
def test_torchs_optimisers_resume_bit_for_bit(method, batch_size, tmp_path):
    loss = problem(double, bias=method != "muon")
    kwargs = {
        "method": method, "max_steps": 16, "n_eigs": 1, "eigs_every": steps(3), "batch_size": batch_size,
        "params_every": steps(1),
        "scheduler": "CosineAnnealingWarmRestarts(T_0=5)" if batch_size else None, "scheduler_every": "epoch",
    }  # fmt: skip
    whole, again = run_and_resume(tmp_path / "x.nc", 7, loss, None, **kwargs)
    assert differences(whole, again) == []


@pytest.mark.parametrize("name", classification.SCHEDULES)
def test_schedulers_resume(name, tmp_path):
    kwargs = {
        "method": "sgd",
        "lr": 0.05,
        "momentum": 0.5,
        "max_steps": 16,
        "batch_size": 16,
        "params_every": steps(1),
    }
    scheduler = classification.SCHEDULES[name]
    whole, again = run_and_resume(tmp_path / "x.nc", 7, problem(double), None, scheduler=scheduler, **kwargs)
    assert differences(whole, again) == []


def test_densities_abridged_spectra_and_batch_norm_resume(tmp_path):
    X, y = classification.data()
    with torch.random.fork_rng():
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        ).double()
    train, test = (
        gradflow.LossFunction(
            torch.utils.data.TensorDataset(X[rows].double(), y[rows]),
            torch.nn.CrossEntropyLoss(),
            net,
            batch_size=10,
        )
        for rows in (slice(0, 30), slice(30, 40))
    )
    kwargs = {
        "method": "gd", "lr": 0.05, "max_steps": 12, "n_eigs": 2, "abridged_size": 20, "density_at": [0.0, 1.0, 2.0],
        "density_every": steps(4), "eigs_every": steps(2), "test": test, "test_every": steps(3),
    }  # fmt: skip
    whole, again = run_and_resume(tmp_path / "x.nc", 6, train, None, **kwargs)
    assert differences(whole, again) == []


def test_a_run_may_die_again_and_again(tmp_path):
    train, _, theta = chebyshev()
    kwargs = {"method": "exprb32", "dense": False, "t_max": 40.0, "save_every": 2.0, "n_eigs": 1}
    whole = gradflow.integrate(train, theta, out=tmp_path / "whole.nc", **kwargs).load()
    resume = {"out": tmp_path / "x.nc"}
    for n in range(2, 8):
        with pytest.raises(Died):
            gradflow.integrate(
                train, theta, checkpoint_every=1e-9, callback=dies_after(n), **resume, **kwargs
            )
        resume = {"resume": tmp_path / "x.nc"}
    assert differences(whole, gradflow.integrate(train, theta, **resume, **kwargs).load()) == []


def test_records_after_the_checkpoint_are_made_again(tmp_path):
    """Checkpoints are rarer than segments: the run goes back behind what it had recorded."""
    train, _, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 40}
    whole = gradflow.integrate(train, theta, **kwargs)
    with pytest.raises(Died):
        gradflow.integrate(
            train, theta, out=tmp_path / "x.nc", sync_every=0, callback=dies_after(20), **kwargs
        )
    assert len(open_run(tmp_path / "x.nc").time) == 21
    assert [p.name for p in (tmp_path / "x.nc.partial").glob("checkpoint*")] == ["checkpoint-000001.pt"]
    seen = []
    again = gradflow.integrate(
        train, theta, resume=tmp_path / "x.nc", callback=lambda report: seen.append(report.step), **kwargs
    )
    assert seen[0] == 1
    assert np.array_equal(whole.theta, again.theta)


def hessian_weighted(point):
    return -point.gradient - 0.1 * point.hvp(point.gradient)


@pytest.mark.parametrize(
    ("flow", "method"),
    [
        (gradflow.flows.ModifiedFlow(0.05), "rk4"),
        (gradflow.flows.ModifiedFlow(0.05), "exprb43"),
        (hessian_weighted, "rkc"),
    ],
)
def test_a_velocity_that_takes_products_is_counted_once(flow, method, tmp_path):
    """What a resumed run computes again isn't counted again."""
    whole, again = run_and_resume(
        tmp_path / "x.nc", 3, lambda x: 0.5 * (x[0] * x[1] - 3) ** 2 + 0.1 * (x**4).sum(),
        torch.tensor([1.0, 0.3], dtype=double), flow=flow, method=method, t_max=1.0, save_every=0.1,
    )  # fmt: skip
    assert differences(whole, again) == []


def test_a_run_whose_time_is_up_has_its_last_record(tmp_path):
    """Also where it was up between the step and its record, and where it was when the run went on."""
    kwargs = {"method": "rk4", "step_size": 0.01, "t_max": 1.0, "save_every": 0.5}
    start = torch.ones(2, dtype=double)

    def bowl(x):
        return 0.5 * (x**2).sum()

    def sleeps(report):
        time.sleep(0.02)

    slow = gradflow.integrate(bowl, start, max_wall_time=0.05, callback=sleeps, **kwargs)
    assert slow.attrs["status"] == "max_wall_time"
    assert int(slow.step[-1]) == slow.attrs["n_steps"]
    assert np.array_equal(slow.theta[-1], slow.params)
    with pytest.raises(Died):
        gradflow.integrate(
            bowl,
            start,
            out=tmp_path / "x.nc",
            checkpoint_every=1e-9,
            sync_every=0,
            callback=dies_after(7),
            **kwargs,
        )
    late = gradflow.integrate(bowl, start, resume=tmp_path / "x.nc", max_wall_time=1e-9, **kwargs)
    assert late.attrs["status"] == "max_wall_time"
    assert int(late.step[-1]) == late.attrs["n_steps"] == 7
    assert np.array_equal(late.theta[-1], late.params)


def test_a_run_that_fails_at_once_when_resumed_has_its_last_record_completed(tmp_path, monkeypatch):
    """The last record of a failed run has everything, also where it was made before the run died."""

    def ravine(x):
        return -(x**4).sum() if float(x.detach().abs().max()) < 1e3 else (x * float("nan")).sum()

    kwargs = {"method": "gd", "lr": 0.05, "max_steps": 50, "n_eigs": 1, "eigs_every": steps(100)}
    start = torch.ones(2, dtype=double)
    with pytest.warns(gradflow.IntegrationWarning):
        whole = gradflow.integrate(ravine, start, out=tmp_path / "whole.nc", **kwargs).load()
    n = whole.attrs["n_steps"]
    assert np.isfinite(whole.eigenvalue[-1, 0])
    advance = gradflow.driver.Stepper.advance

    def dies(self, *a, **k):
        if self.n_steps == n:
            raise Died
        return advance(self, *a, **k)

    with monkeypatch.context() as patched:
        patched.setattr(gradflow.driver.Stepper, "advance", dies)
        with pytest.raises(Died):
            gradflow.integrate(ravine, start, out=tmp_path / "x.nc", checkpoint_every=1e-9, **kwargs)
    with pytest.warns(gradflow.IntegrationWarning):
        again = gradflow.integrate(ravine, start, resume=tmp_path / "x.nc", **kwargs).load()
    assert differences(whole, again) == []


def test_segments_are_put_together_so_that_files_stay_few(tmp_path, monkeypatch):
    monkeypatch.setattr("gradflow.record.segment_writer._TOGETHER", 4)
    train, _, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 200, "n_eigs": 1, "eigs_every": steps(3)}
    whole = gradflow.integrate(train, theta, out=tmp_path / "whole.nc", **kwargs).load()
    partial, most = tmp_path / "x.nc.partial", 0

    def look(report):
        nonlocal most
        most = max(most, len(list(partial.glob("segment-*.nc"))))
        if report.step % 25 == 0:
            part = open_run(tmp_path / "x.nc")
            assert np.array_equal(part.theta, whole.theta[: len(part.time)])
            assert np.array_equal(part.params_initial, whole.params_initial)
        if report.step == 150:
            raise Died

    with pytest.raises(Died):
        gradflow.integrate(
            train, theta, out=tmp_path / "x.nc", sync_every=0, checkpoint_every=1e-9, callback=look, **kwargs
        )
    assert most < 25  # of 150
    again = gradflow.integrate(train, theta, resume=tmp_path / "x.nc", **kwargs).load()
    assert differences(whole, again) == []


@pytest.mark.parametrize("removed", range(5))
def test_a_death_while_segments_are_put_together_loses_nothing(removed, tmp_path, monkeypatch):
    """Some of the files that were put together are still there, and don't count twice."""
    monkeypatch.setattr("gradflow.record.segment_writer._TOGETHER", 4)
    train, _, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 30}
    whole = gradflow.integrate(train, theta, **kwargs)
    unlink, n = Path.unlink, 0

    def dies(self, missing_ok=False):
        nonlocal n
        if self.name.startswith("segment-"):
            n += 1
            if n > removed:
                raise Died
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", dies)
        with pytest.raises(Died):
            gradflow.integrate(
                train, theta, out=tmp_path / "x.nc", sync_every=0, checkpoint_every=1e-9, **kwargs
            )
    part = open_run(tmp_path / "x.nc")
    assert np.array_equal(part.theta, whole.theta[: len(part.time)])
    again = gradflow.integrate(train, theta, resume=tmp_path / "x.nc", **kwargs)
    assert np.array_equal(again.theta, whole.theta)
    assert np.array_equal(again.step, whole.step)


# ---------------------------------------------------------------------- what can't be resumed


@pytest.fixture
def dead(tmp_path):
    """A run of gradient descent that died."""
    train, test, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 30, "n_eigs": 1, "test": test}
    with pytest.raises(Died):
        gradflow.integrate(
            train, theta, out=tmp_path / "x.nc", checkpoint_every=1e-9, callback=dies_after(9), **kwargs
        )
    return tmp_path / "x.nc", train, theta, kwargs


def files(path):
    partial = path.with_name(path.name + ".partial")
    return {p.name: p.read_bytes() for p in partial.iterdir()}


def test_another_run_is_refused_with_the_differences_named(dead):
    path, train, theta, kwargs = dead
    before = files(path)
    other = problems.load("chebyshev-4-20", "regression", "mse", dtype=double)[0]
    for changed, text in (
        ({"lr": 0.2}, r"options was .*0.1.*, is .*0.2"),
        ({"method": "polyak"}, "method was .*gd.*, is .*polyak"),
        ({"max_steps": 31}, "max_steps was 30, is 31"),
        ({"n_eigs": 2}, "n_eigs was 1, is 2"),
        ({"save_every": steps(2)}, "cadences was"),
        ({"loss": other}, "data was 20 samples, SHA-256 .*, is 20 samples"),
        ({"params": theta + 1e-9}, "θ₀ was 300 parameters"),
        ({"test": other}, "test data was 20 samples"),
        ({"test": None}, "test data was 20 samples.*, is none"),
        ({"params": theta.float()}, "θ₀ was 300 parameters in torch.float64.*, is 300 parameters in torch.float32"),
    ):  # fmt: skip
        given = {"loss": train, "params": theta, **kwargs, **changed}
        with pytest.raises(ResumeError, match=text):
            gradflow.integrate(resume=path, **given)
        assert files(path) == before
    again = gradflow.integrate(train, theta, resume=path, max_wall_time=1000.0, **kwargs)  # may differ
    assert again.attrs["status"] == "max_steps"


def test_another_callable_is_refused_by_its_first_loss(tmp_path):
    ones = torch.ones(2, dtype=double)
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 9}
    with pytest.raises(Died):
        gradflow.integrate(
            lambda x: (x**2).sum(), ones, out=tmp_path / "x.nc", callback=dies_after(4), **kwargs
        )
    before = files(tmp_path / "x.nc")
    with pytest.raises(ResumeError, match=r"the loss at θ₀ was 2, is 4\. Give the same"):
        gradflow.integrate(lambda x: 2 * (x**2).sum(), ones, resume=tmp_path / "x.nc", **kwargs)
    assert files(tmp_path / "x.nc") == before
    gradflow.integrate(lambda x: (x**2).sum() * 1.0, ones, resume=tmp_path / "x.nc", **kwargs)


def test_there_must_be_a_run_to_resume(dead, tmp_path):
    path, train, theta, kwargs = dead
    with pytest.raises(ResumeError, match=r"There is no .*y.nc.partial"):
        gradflow.integrate(train, theta, resume=tmp_path / "y.nc", **kwargs)
    with pytest.raises(ValueError, match="resume and out to be one file"):
        gradflow.integrate(train, theta, resume=path, out=tmp_path / "y.nc", **kwargs)
    with pytest.raises(ValueError, match="give one of them"):
        gradflow.integrate(train, theta, resume=path, overwrite=True, **kwargs)
    gradflow.integrate(train, theta, resume=path, out=path, **kwargs)
    with pytest.raises(ResumeError, match="is of a run that has ended"):
        gradflow.integrate(train, theta, resume=path, **kwargs)
    with pytest.raises(OutputExistsError):
        gradflow.integrate(train, theta, out=path, **kwargs)


def test_without_resume_a_dead_run_is_not_touched(dead):
    path, train, theta, kwargs = dead
    before = files(path)
    with pytest.raises(OutputExistsError, match=r"pass resume=.* to go on with it"):
        gradflow.integrate(train, theta, out=path, **kwargs)
    assert files(path) == before


def test_a_checkpoint_that_was_cut_falls_back_to_the_one_before(dead):
    path, train, theta, kwargs = dead
    whole = gradflow.integrate(train, theta, **kwargs)
    partial = path.with_name(path.name + ".partial")
    names = sorted(partial.glob("checkpoint-*"))
    assert len(names) == 2
    content = names[1].read_bytes()
    for size in (0, 1, 30, len(content) // 2, len(content) - 1):
        names[1].write_bytes(content[:size])
        assert read_checkpoint(names[1]) is None
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    names[1].write_bytes(flipped)
    assert read_checkpoint(names[1]) is None
    again = gradflow.integrate(train, theta, resume=path, **kwargs)
    assert np.array_equal(whole.theta, again.theta)
    assert np.array_equal(whole.eigenvalue, again.eigenvalue)


def test_without_a_whole_checkpoint_nothing_is_lost(dead):
    path, train, theta, kwargs = dead
    partial = path.with_name(path.name + ".partial")
    for name in partial.glob("checkpoint-*"):
        name.write_bytes(b"")
    with pytest.raises(ResumeError, match="no checkpoint that is whole"):
        gradflow.integrate(train, theta, resume=path, **kwargs)
    assert len(open_run(path).time) == 10


def test_checkpoints_run_no_code(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return print, ("pwned",)

    import hashlib
    import pickle

    # torch's protocol: of others it warns, before it looks at what they hold
    for payload in (pickle.dumps(Evil(), protocol=2), pickle.dumps({"run": Evil()}, protocol=2)):
        head = b"gradflow checkpoint 2\n" + hashlib.sha256(payload).digest()
        (tmp_path / "c.pt").write_bytes(head + payload)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            read_checkpoint(tmp_path / "c.pt")
    assert "pwned" not in capsys.readouterr().out


def test_the_newest_segment_may_be_cut_at_any_byte(dead):
    path, train, theta, kwargs = dead
    whole = gradflow.integrate(train, theta, **kwargs)
    partial = path.with_name(path.name + ".partial")
    *_, last = sorted(partial.glob("segment-*"))
    n = len(open_run(path).time)
    content = last.read_bytes()
    rng = random.Random(0)
    cuts = {0, 1, 7, 8, 511, 512, len(content) - 1, *(rng.randrange(len(content)) for _ in range(60))}
    for size in sorted(cuts):
        last.write_bytes(content[:size])
        with pytest.warns(RecordWarning, match="isn't whole"):
            assert n - 2 <= len(open_run(path).time) < n
    with pytest.warns(RecordWarning):
        open_run(path)
    again = gradflow.integrate(train, theta, resume=path, **kwargs)
    assert np.array_equal(whole.theta, again.theta)


# ---------------------------------------------------------------------- other versions


def rewrite(path, change):
    """Change what the checkpoints hold, as another version might have written it."""
    for name in path.with_name(path.name + ".partial").glob("checkpoint-*.pt"):
        state = read_checkpoint(name)
        change(state)
        write_checkpoint(state, name)


def test_another_version_is_said_and_goes_on(dead):
    path, train, theta, kwargs = dead
    whole = gradflow.integrate(train, theta, **kwargs)
    rewrite(path, lambda state: state["versions"].update(torch="1.0"))
    before = files(path)
    with pytest.raises(ResumeWarning):  # whoever makes it an error, as this suite does, finds all as it was
        gradflow.integrate(train, theta, resume=path, **kwargs)
    assert files(path) == before
    said = (
        rf"begun under other versions: torch was 1\.0, is {re.escape(torch.__version__)}\. .* not bit for bit"
    )
    with pytest.warns(ResumeWarning, match=said) as caught:
        again = gradflow.integrate(train, theta, resume=path, **kwargs)
    assert caught[0].filename == __file__
    assert np.array_equal(again.theta, whole.theta)
    first, second = again.attrs["history"].splitlines()
    assert "integrated by gradflow" in first
    assert second.endswith(f"; torch was 1.0, is {torch.__version__}")


def test_a_checkpoint_without_versions_is_read_and_said(dead):
    """As gradflow wrote them at first, with bare names of classes."""
    path, train, theta, kwargs = dead

    def older(state):
        del state["versions"], state["history"]
        stack = [state]
        while stack:
            item = stack.pop()
            if isinstance(item, dict):
                if "__class__" in item:
                    item["__class__"] = item["__class__"].rpartition(".")[2]
                stack += item.values()
            elif isinstance(item, list | tuple):
                stack += item

    rewrite(path, older)
    with pytest.warns(ResumeWarning, match=r"gradflow was unknown, is .*torch was unknown, is "):
        again = gradflow.integrate(train, theta, resume=path, **kwargs)
    assert np.array_equal(again.theta, gradflow.integrate(train, theta, **kwargs).theta)


def test_the_commit_counts_where_gradflow_runs_from_its_sources(monkeypatch):
    provenance = importlib.import_module("gradflow.record.provenance")
    monkeypatch.setattr(provenance, "_commit", lambda: "0123456789abcdef")
    assert provenance.versions_of_numerics()["gradflow"].endswith(" (0123456789ab)")
    monkeypatch.setattr(provenance, "_commit", lambda: "unknown")
    assert "(" not in provenance.versions_of_numerics()["gradflow"]


def test_a_class_that_is_not_known_is_named_and_nothing_is_lost(dead):
    path, train, theta, kwargs = dead
    rewrite(path, lambda state: state["run"]["stepper"].update(state={"__class__": "gone.State", "a": 1}))
    before = files(path)
    for _ in range(2):  # the lock is free again
        with pytest.raises(ResumeError, match=r"holds a gone\.State, which isn't known here"):
            gradflow.integrate(train, theta, resume=path, **kwargs)
        assert files(path) == before


@pytest.mark.parametrize("where", ["from_plain", "Recorder"])
def test_an_error_before_the_first_step_frees_the_lock(where, dead, monkeypatch):
    path, train, theta, kwargs = dead
    before = files(path)

    def fails(*args):
        raise Died("before the first step")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules[gradflow.integrate.__module__], where, fails)
        with pytest.raises(Died) as caught:
            gradflow.integrate(train, theta, resume=path, **kwargs)
    assert (
        caught.value.__traceback__ is not None
    )  # which keeps the record, and so a lock that it would still hold
    if where == "from_plain":
        assert files(path) == before
    whole = gradflow.integrate(train, theta, **kwargs)
    assert np.array_equal(gradflow.integrate(train, theta, resume=path, **kwargs).theta, whole.theta)


# ---------------------------------------------------------------------- resume="auto"


def test_auto_starts_goes_on_and_opens(tmp_path):
    train, test, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 30, "n_eigs": 1, "test": test}
    whole = gradflow.integrate(train, theta, out=tmp_path / "whole.nc", **kwargs).load()
    path, steps_made = tmp_path / "x.nc", []

    def auto(last):
        def callback(report):
            steps_made.append(report.step)
            if report.step > last:
                raise Died

        return gradflow.integrate(
            train, theta, out=path, resume="auto", checkpoint_every=1e-9, callback=callback, **kwargs
        )

    for last in (10, 20):
        with pytest.raises(Died):
            auto(last)
    with auto(30) as run:
        assert differences(whole, run.load()) == []
    assert steps_made == [*range(1, 12), *range(11, 22), *range(21, 31)]
    content = path.read_bytes()
    with auto(0) as run:  # it has ended: nothing is computed
        assert differences(whole, run.load()) == []
    assert len(steps_made) == 32
    assert path.read_bytes() == content
    with pytest.raises(ResumeError, match="is of a run that has ended"):
        gradflow.integrate(train, theta, resume=path, **kwargs)


@pytest.fixture
def ended(tmp_path):
    """The file of a run of gradient descent that has ended."""
    train, test, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 5, "test": test}
    gradflow.integrate(train, theta, out=tmp_path / "x.nc", **kwargs).close()
    return tmp_path / "x.nc", train, theta, kwargs


def test_auto_refuses_the_file_of_another_run(ended):
    path, train, theta, kwargs = ended
    content = path.read_bytes()
    other = problems.load("chebyshev-4-20", "regression", "mse", dtype=double)[0]
    for changed, text in (
        ({"lr": 0.2}, r"options was .*0\.1.*, is .*0\.2"),
        ({"max_steps": 6}, "max_steps was 5, is 6"),
        ({"loss": other}, "data was 20 samples, SHA-256 .*, is 20 samples"),
        ({"params": theta + 1e-9}, "θ₀ was 300 parameters in torch.float64, SHA-256 .*, is 300 parameters"),
        ({"test": None}, "test data was 20 samples.*, is none"),
    ):
        given = {"loss": train, "params": theta, **kwargs, **changed}
        with pytest.raises(
            ResumeError, match=rf"x\.nc is the file of another run, which has ended: .*{text}"
        ):
            gradflow.integrate(out=path, resume="auto", **given)
    assert path.read_bytes() == content
    assert [p.name for p in path.parent.iterdir()] == ["x.nc"]
    gradflow.integrate(
        train, theta, out=path, resume="auto", max_wall_time=9.0, **kwargs
    ).close()  # may differ


def test_auto_refuses_a_file_without_the_events_that_are_asked_for(ended):
    path, train, theta, kwargs = ended
    events = [gradflow.Event("loss", 0.1, terminal=True)]
    with pytest.raises(ResumeError, match=r"events was \[\], is \["):
        gradflow.integrate(train, theta, out=path, resume="auto", events=events, **kwargs)
    gradflow.integrate(train, theta, out=path, overwrite=True, events=events, **kwargs).close()
    gradflow.integrate(train, theta, out=path, resume="auto", events=events, **kwargs).close()
    with pytest.raises(ResumeError, match=r"events was \[\{.*, is \[\]"):
        gradflow.integrate(train, theta, out=path, resume="auto", **kwargs)


@pytest.mark.parametrize("resume", ["auto", None])
def test_a_checkpoint_of_the_former_format_is_refused(resume, dead):
    path, train, theta, kwargs = dead
    for checkpoint in path.with_name(f"{path.name}.partial").glob("checkpoint-*.pt"):
        content = checkpoint.read_bytes()
        assert content.startswith(b"gradflow checkpoint 2\n")
        checkpoint.write_bytes(content.replace(b"checkpoint 2", b"checkpoint 1", 1))
    before = sorted(p.read_bytes() for p in path.with_name(f"{path.name}.partial").iterdir())
    given = kwargs | ({"out": path, "resume": "auto"} if resume else {"resume": path})
    with pytest.raises(ResumeError, match=r"an older gradflow.*start it anew with overwrite=True"):
        gradflow.integrate(train, theta, **given)
    assert sorted(p.read_bytes() for p in path.with_name(f"{path.name}.partial").iterdir()) == before
    assert open_run(path).sizes["time"] > 0
    gradflow.integrate(train, theta, out=path, overwrite=True, **kwargs).close()


def test_auto_tells_callables_apart_by_their_values(tmp_path):
    """Nothing can be hashed of a callable, and both are called <lambda>."""
    ones = torch.ones(2, dtype=double)
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 3, "out": tmp_path / "x.nc", "resume": "auto"}
    gradflow.integrate(lambda x: (x**2).sum(), ones, **kwargs).close()
    gradflow.integrate(lambda x: (x**2).sum() * 1.0, ones, **kwargs).close()
    with pytest.raises(ResumeError, match=r"the loss at its first θ was 2, is 4\. Choose another name"):
        gradflow.integrate(lambda x: 2 * (x**2).sum(), ones, **kwargs)
    with pytest.raises(ResumeError, match=r"the loss at its last θ was 0\.524288, is 0\.268435456\. "):
        gradflow.integrate(lambda x: (x**3).sum(), ones, **kwargs)


def test_auto_says_what_an_older_file_does_not_tell(ended):
    path, train, theta, kwargs = ended
    with gradflow.open_run(path) as run:
        older = run.load()
    for name in ("data", "test_data"):
        del older.attrs[name]
    older.to_netcdf(path)
    with pytest.warns(
        ResumeWarning, match=r"doesn't tell its data and test data, as an older version"
    ) as caught:
        gradflow.integrate(train, theta, out=path, resume="auto", **kwargs).close()
    assert caught[0].filename == __file__
    other = problems.load("chebyshev-4-20", "regression", "mse", dtype=double)[0].label(
        dataset="chebyshev-3-20"
    )
    with pytest.raises(ResumeError, match="the loss at its first θ was"):
        gradflow.integrate(other, theta, out=path, resume="auto", **kwargs)
    older.drop_vars("params").to_netcdf(path)
    with pytest.raises(ResumeError, match="isn't the file of a run"):
        gradflow.integrate(train, theta, out=path, resume="auto", **kwargs)


def test_auto_reports_a_failure_again(tmp_path):
    """The second call is to the caller what the first was."""
    kwargs = {"method": "gd", "lr": 1.0, "max_steps": 50, "out": tmp_path / "x.nc", "resume": "auto"}
    steep = lambda x: (x**4).sum()  # noqa: E731
    start = 3 * torch.ones(2, dtype=double)
    found = []
    for _ in range(2):
        with pytest.raises(gradflow.IntegrationError) as caught:
            gradflow.integrate(steep, start, on_failure="raise", **kwargs)
        caught.value.dataset.close()
        found.append(
            (str(caught.value), caught.value.status, caught.value.t, caught.value.step, caught.value.loss)
        )
    assert found[0] == found[1]
    with pytest.warns(gradflow.IntegrationWarning, match=r"stopped being finite") as warned:
        gradflow.integrate(steep, start, **kwargs).close()
    assert warned[0].filename == __file__


def test_auto_without_a_whole_checkpoint_starts_anew_and_keeps_the_records(dead):
    path, train, theta, kwargs = dead
    whole = gradflow.integrate(train, theta, **kwargs)
    for n in (1, 2):
        for name in path.with_name("x.nc.partial").glob("checkpoint-*"):
            name.write_bytes(b"")
        recorded = open_run(path)
        with pytest.warns(
            ResumeWarning, match=rf"had no checkpoint that is whole.*x\.nc\.aside-{n}"
        ) as caught:
            with pytest.raises(Died):
                gradflow.integrate(
                    train,
                    theta,
                    out=path,
                    resume="auto",
                    checkpoint_every=1e-9,
                    callback=dies_after(4),
                    **kwargs,
                )
        assert caught[0].filename == __file__
        kept = open_run(path.with_name(f"x.nc.aside-{n}"))
        assert np.array_equal(kept.theta, recorded.theta)
    with gradflow.integrate(train, theta, out=path, resume="auto", **kwargs) as again:
        assert np.array_equal(again.theta, whole.theta)


def test_auto_starts_where_a_run_died_before_its_first_record(tmp_path):
    train, _, theta = chebyshev()
    partial = tmp_path / "x.nc.partial"
    partial.mkdir()
    (partial / "lock").touch()
    (partial / "segment-000000.nc.tmp").touch()
    gradflow.integrate(
        train, theta, method="gd", lr=0.1, max_steps=2, out=tmp_path / "x.nc", resume="auto"
    ).close()
    assert [p.name for p in tmp_path.iterdir()] == ["x.nc"]


def test_auto_never_replaces_a_file_by_a_run_that_it_starts(ended):
    path, train, theta, kwargs = ended
    content = path.read_bytes()
    partial = path.with_name("x.nc.partial")
    partial.mkdir()
    (partial / "lock").touch()
    gradflow.integrate(train, theta, out=path, resume="auto", **kwargs).close()  # the file counts
    (partial / "checkpoint-000001.pt").touch()
    with pytest.raises(ResumeError, match=r"no checkpoint that is whole, and .*x\.nc is there"):
        gradflow.integrate(train, theta, out=path, resume="auto", **kwargs)
    assert path.read_bytes() == content


@pytest.mark.parametrize("where", ["shutil.rmtree", "pathlib.Path.unlink"])
def test_a_death_at_the_very_end_leaves_a_run_that_has_ended(where, tmp_path, monkeypatch):
    """NAME.nc is there, and the segments are still being removed."""
    train, _, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 5, "out": tmp_path / "x.nc", "resume": "auto"}

    removes = pkgutil.resolve_name(where)

    def dies(*args, **kwargs):
        if (tmp_path / "x.nc").exists():
            raise Died
        removes(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(
            "gradflow.record.file_record.FileRecord.abandon", lambda self, _: self._lock.close()
        )  # as if killed
        patched.setattr(where, dies)
        with pytest.raises(Died):
            gradflow.integrate(train, theta, **kwargs)
    whole = gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=5)
    with gradflow.integrate(train, theta, **kwargs) as again:
        assert np.array_equal(again.theta, whole.theta)


def test_auto_is_refused_while_another_run_writes(tmp_path):
    train, _, theta = chebyshev()
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 3, "out": tmp_path / "x.nc", "resume": "auto"}

    def second(report):
        with pytest.raises(OutputExistsError, match="Another run is writing to"):
            gradflow.integrate(train, theta, **kwargs)

    gradflow.integrate(train, theta, callback=second, **kwargs).close()


def test_auto_needs_a_name(dead):
    path, train, theta, kwargs = dead
    with pytest.raises(ValueError, match=r'resume="auto" needs the name of the run: give out'):
        gradflow.integrate(train, theta, resume="auto", **kwargs)
    with pytest.raises(ValueError, match="give one of them"):
        gradflow.integrate(train, theta, out=path, resume="auto", overwrite=True, **kwargs)
    with pytest.raises(TypeError, match=r'Expected resume as a path or "auto", got bool True'):
        gradflow.integrate(train, theta, out=path, resume=True, **kwargs)
    with pytest.raises(ResumeError, match="lr"):  # another run is refused as by resume=path
        gradflow.integrate(train, theta, out=path, resume="auto", **(kwargs | {"lr": 0.3}))


def test_auto_from_the_command_line(tmp_path):
    args = ["run", "chebyshev-3-20", "regression", "mse", "--method", "gd", "--lr", 0.1, "--max-steps", 3]
    args += ["--out", tmp_path / "x.nc", "--save-model", "--resume", "auto"]
    for _ in range(2):
        result = invoke(*args)
        assert result.exit_code == 0, result.output
        assert f"weights in {tmp_path / 'x.pt'}" in result.output
    result = invoke(*args, "--lr", 0.2)
    assert result.exit_code == 1
    assert "is the file of another run" in result.output
    assert "pass --overwrite in the place of resume" in result.output
    assert "'often' is not one of" in invoke(*args, "--resume", "often").output


# ---------------------------------------------------------------------- file systems without locks


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_run_is_recorded_with_a_warning(error, tmp_path, monkeypatch):
    train, _, theta = chebyshev()
    path = tmp_path / "x.nc"
    kwargs = {"method": "gd", "lr": 0.1, "max_steps": 9}

    def flock(file, how):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", flock)
    said = rf"The file system of {re.escape(str(tmp_path))} has no locks"
    with pytest.raises(RecordWarning, match=said):  # an error in this suite, outside of pytest.warns
        gradflow.integrate(train, theta, out=path, **kwargs)
    assert not list(tmp_path.iterdir())
    with pytest.warns(RecordWarning, match=said) as caught, pytest.raises(Died):
        gradflow.integrate(
            train, theta, out=path, sync_every=0, checkpoint_every=1e-9, callback=dies_after(4), **kwargs
        )
    assert len(caught) == 1
    partial = tmp_path / "x.nc.partial"
    (partial / "ended.json").unlink()  # as if it had been killed
    run = open_run(path)
    assert run.attrs["status"] == "unfinished"
    assert "can't be told" in run.attrs["message"]
    assert len(run.time) == 5
    with pytest.raises(OutputExistsError):  # what is there is still seen
        gradflow.integrate(train, theta, out=path, **kwargs)
    with pytest.warns(RecordWarning, match=said):
        again = gradflow.integrate(train, theta, out=path, resume="auto", **kwargs)
    assert np.array_equal(again.theta, gradflow.integrate(train, theta, **kwargs).theta)
    with pytest.warns(RecordWarning, match=said):
        gradflow.integrate(train, theta, out=path, overwrite=True, **kwargs).close()


def test_other_errors_of_a_lock_are_not_swallowed(tmp_path, monkeypatch):
    train, _, theta = chebyshev()

    def flock(file, how):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(OSError, match="input/output error"):
        gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=2, out=tmp_path / "x.nc")
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_directory_that_was_removed_does_not_count(tmp_path, monkeypatch):
    """Who waited for the end of a run holds the lock of a directory that is no more."""
    directory = tmp_path / "x.nc.partial"
    directory.mkdir()
    flock = fcntl.flock

    def late(file, how):
        flock(file, how)
        shutil.rmtree(directory)

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(BlockingIOError, match="was removed by another process"):
        take_lock(directory)
    assert is_held(directory) is False


# ---------------------------------------------------------------------- the process dies

fork = multiprocessing.get_context("fork")


def in_a_process(function, *args):
    """Start a function in a process that is forked, so that nothing is imported anew."""

    def target():
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(os.devnull, "w") as null, contextlib.redirect_stderr(null):
            function(*args)

    process = fork.Process(target=target, daemon=True)
    process.start()
    return process


def slow_run(path, resume=False, n=300, **kwargs):
    torch.set_num_threads(1)
    train, _, theta = chebyshev()
    where = {"resume": path} if resume else {"out": path}
    return gradflow.integrate(
        train, theta, method="polyak", lr=0.02, max_steps=n, n_eigs=1, eigs_every=steps(7), sync_every=0.01,
        checkpoint_every=0.02, callback=lambda report: time.sleep(0.001), **where, **kwargs,
    )  # fmt: skip


@pytest.fixture
def interruptible():
    """SIGINT as it is in a terminal; workers that run tests side by side ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path, one_thread):
    """Four SIGKILLs, of which benchmarks/soak.py has hundreds.

    Before each, what is readable is the beginning of the run; at the end the file is the same.
    """
    whole = slow_run(tmp_path / "whole.nc").load()
    path, rng, kills = tmp_path / "x.nc", random.Random(1), 0
    while kills < 4 and not path.exists():
        before = set((tmp_path / "x.nc.partial").glob("checkpoint-*.pt"))
        process = in_a_process(slow_run, path, (tmp_path / "x.nc.partial").exists())
        while rng.random() < 0.99 and process.is_alive():  # mostly until it has got somewhere
            if set((tmp_path / "x.nc.partial").glob("checkpoint-*.pt")) - before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        process.join()
        kills += 1
        if path.exists():
            break
        if not (tmp_path / "x.nc.partial").exists():
            continue
        if not list((tmp_path / "x.nc.partial").glob("checkpoint-*.pt")):  # before the first record
            for name in (tmp_path / "x.nc.partial").glob("*"):
                name.unlink()
            (tmp_path / "x.nc.partial").rmdir()
            continue
        part = open_run(path)
        n = len(part.time)
        assert part.attrs["status"] == "killed"
        assert np.array_equal(part.theta, whole.theta[:n])
        assert np.array_equal(part.eigenvalue, whole.eigenvalue[:n], equal_nan=True)
    assert kills >= 3
    again = open_run(path) if path.exists() else slow_run(path, resume=True)
    assert differences(whole, again.load()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)])
def test_signals_close_the_record(number, code, tmp_path, one_thread):
    path = tmp_path / "x.nc"
    process = in_a_process(slow_run, path, False, 100_000)
    while not list(tmp_path.glob("x.nc.partial/segment-000001.nc")):  # of the first steps
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(10)
    assert process.exitcode == code
    part = open_run(path)
    assert part.attrs["status"] == "interrupted"
    assert not path.exists()
    assert int(part.step[-1]) >= 1
    assert np.isfinite(part.train_loss[-1])


def test_an_interrupted_run_goes_on(tmp_path, interruptible):
    train, _, theta = chebyshev()
    kwargs = {"method": "rk4", "t_max": 20.0, "save_every": 1.0, "n_eigs": 1, "eigs_every": 4.0}
    whole = gradflow.integrate(train, theta, out=tmp_path / "whole.nc", **kwargs).load()
    with pytest.raises(KeyboardInterrupt) as caught:
        gradflow.integrate(
            train, theta, out=tmp_path / "x.nc",
            callback=lambda r: signal.raise_signal(signal.SIGINT) if r.step == 17 else None, **kwargs,
        )  # fmt: skip
    assert caught.value.dataset.attrs["status"] == "interrupted"
    again = gradflow.integrate(train, theta, resume=tmp_path / "x.nc", **kwargs).load()
    assert differences(whole, again) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_in_memory_comes_with_the_interrupt(interruptible):
    train, _, theta = chebyshev()
    with pytest.raises(KeyboardInterrupt) as caught:
        gradflow.integrate(
            train, theta, method="gd", lr=0.1, max_steps=100,
            callback=lambda r: signal.raise_signal(signal.SIGINT) if r.step == 30 else None,
        )  # fmt: skip
    assert len(caught.value.dataset.time) == 31


def test_a_signal_in_the_last_step_is_not_swallowed(tmp_path, interruptible):
    train, _, theta = chebyshev()
    with pytest.raises(KeyboardInterrupt):
        gradflow.integrate(
            train, theta, method="gd", lr=0.1, max_steps=5, out=tmp_path / "x.nc",
            callback=lambda r: signal.raise_signal(signal.SIGINT) if r.step == 5 else None,
        )  # fmt: skip
    assert open_run(tmp_path / "x.nc").attrs["status"] == "max_steps"


def test_runs_outside_the_main_thread_leave_signals_alone():
    train, _, theta = chebyshev()
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(
        target=lambda: found.append(gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=5))
    )
    thread.start()
    thread.join()
    assert found[0].attrs["status"] == "max_steps"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_run_on_the_same_output_is_refused_while_the_first_lives(tmp_path, one_thread):
    path = tmp_path / "x.nc"
    process = in_a_process(slow_run, path, False, 100_000)
    while not list(tmp_path.glob("x.nc.partial/checkpoint-*.pt")):
        time.sleep(0.01)
    assert open_run(path).attrs["status"] == "running"
    for where in ({"resume": path}, {"out": path, "overwrite": True}, {"out": path}):
        train, _, theta = chebyshev()
        with pytest.raises(OutputExistsError):
            gradflow.integrate(train, theta, method="gd", lr=0.1, max_steps=2, **where)
    process.kill()
    process.join()
    assert open_run(path).attrs["status"] == "killed"


# ---------------------------------------------------------------------- the disk is full


def write_until_full(path, limit, result, sync_every):
    """Record θ until the file-size limit is hit; say what came of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train, _, theta = chebyshev()
    try:
        gradflow.integrate(
            train, theta, method="gd", lr=0.05, max_steps=1500, out=path, sync_every=sync_every, n_projections=50,
        )  # fmt: skip
    except RecordingError as error:
        text = f"{error} {error.__notes__}"
        Path(result).write_text(json.dumps({"n": len(error.dataset.time), "text": text}))


@pytest.mark.parametrize("sync_every", [0.05, 1e9])
def test_a_file_size_limit_loses_nothing(tmp_path, sync_every, one_thread):
    path, result = tmp_path / "x.nc", tmp_path.parent / f"{tmp_path.name}.json"
    process = in_a_process(write_until_full, path, 200_000, str(result), sync_every)
    process.join(30)
    said = json.loads(result.read_text())
    part = open_run(path)
    assert 0 < len(part.time) <= said["n"] <= 1501
    assert part.attrs["status"] == "error"
    assert "can't be written" in said["text"]
    assert "resume=" in said["text"]
    assert not list(tmp_path.rglob("*.tmp"))
    train, _, theta = chebyshev()
    whole = gradflow.integrate(train, theta, method="gd", lr=0.05, max_steps=1500, n_projections=50)
    assert np.array_equal(part.theta, whole.theta[: len(part.time)])
    again = gradflow.integrate(
        train, theta, method="gd", lr=0.05, max_steps=1500, n_projections=50, resume=path
    )  # with room again
    assert np.array_equal(again.theta, whole.theta)


def tmpfs(directory, size):
    directory.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True
    )
    return made.returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a small tmpfs")
def test_a_full_disk_loses_nothing(tmp_path):
    small = tmp_path / "small"
    if not tmpfs(small, "1m"):
        pytest.skip("can't mount a tmpfs here")
    try:
        train, _, theta = chebyshev()
        with pytest.raises(RecordingError, match="can't be written") as caught:
            gradflow.integrate(
                train, theta, method="gd", lr=0.05, max_steps=1500, out=small / "x.nc", sync_every=0, n_projections=50
            )  # fmt: skip
        dataset, part = caught.value.dataset, open_run(small / "x.nc")
        assert 0 < len(part.time) <= len(dataset.time)
        assert np.array_equal(dataset.step, np.arange(len(dataset.time)))
        assert np.array_equal(part.theta, dataset.theta[: len(part.time)])
    finally:
        subprocess.run(["umount", "-l", small], check=True)  # HDF5 may hold what it failed to write


# ---------------------------------------------------------------------- from the command line


def test_resume_from_the_command_line(tmp_path, monkeypatch, interruptible):
    args = [
        "run",
        "chebyshev-3-20",
        "regression",
        "mse",
        "--method",
        "gd",
        "--lr",
        0.1,
        "--max-steps",
        20,
        "--out",
    ]
    assert invoke(*args, tmp_path / "whole.nc").exit_code == 0
    advance = gradflow.driver.Stepper.advance

    def interrupted(self, *a, **k):
        if self.n_steps == 8:
            signal.raise_signal(signal.SIGINT)
        return advance(self, *a, **k)

    with monkeypatch.context() as patched:
        patched.setattr(gradflow.driver.Stepper, "advance", interrupted)
        result = invoke(*args, tmp_path / "x.nc")
    assert result.exit_code == 130
    assert "--resume goes on" in result.output
    result = invoke(*args, tmp_path / "x.nc", "--resume")
    assert result.exit_code == 0, result.output
    assert differences(open_run(tmp_path / "whole.nc").load(), open_run(tmp_path / "x.nc").load()) == []
    result = invoke(*args[:-1], "--resume")
    assert "give --out or --out-dir" in result.output
    result = invoke(*args, tmp_path / "x.nc", "--resume")
    assert result.exit_code == 1
    assert "nothing to resume" in result.output


# ---------------------------------------------------------------------- warnings


def test_kinks_are_said():
    X, y = classification.data()
    with torch.random.fork_rng():
        net = torch.nn.Sequential(
            torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Hardtanh(), torch.nn.Linear(4, 3)
        )
    loss = gradflow.LossFunction(torch.utils.data.TensorDataset(X, y), torch.nn.CrossEntropyLoss(), net)
    with pytest.warns(
        gradflow.errors.KinkWarning, match=r"\(Hardtanh, ReLU\).*errors don't fall with the tolerance"
    ):
        gradflow.integrate(loss, method="rk4", t_max=0.01)
    gradflow.integrate(loss, method="gd", lr=0.01, max_steps=1)  # an optimiser has no order to lose


@pytest.mark.parametrize("method", ["exprb43", "rkc", "dopri5"])
def test_tolerances_below_rounding_are_said_with_what_can_be_reached(method):
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse")
    with pytest.warns(gradflow.IntegrationWarning, match=r"rtol = 1e-09 is below .*float32.*rtol = 2.4e-06"):
        gradflow.integrate(train, theta, method=method, rtol=1e-9, atol=1e-12, t_max=0.02)
