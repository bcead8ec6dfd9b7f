"""Properties that hold for anything: what is recorded is what is read, whatever it is and wherever the file was cut."""

import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gradflow
from gradflow.errors import RecordWarning
from gradflow.record import FileRecord, Layout, MemoryRecord, open_run
from gradflow.record.checkpoints import read_checkpoint

double = torch.float64
#: The same examples everywhere: what one machine accepts, every other does.
few = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

numbers = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: name not in {"status", "message", "success"}
)
attributes = st.dictionaries(
    names, st.one_of(texts, st.integers(-(2**62), 2**62), st.floats(allow_nan=False)), max_size=5
)


def rows(dtype):
    width = 32 if dtype == "float32" else 64
    row = st.lists(st.floats(width=width), min_size=3, max_size=3)
    return st.lists(
        st.fixed_dictionaries(
            {"time": st.floats(0, 1e6), "step": st.integers(0, 2**40), "train_loss": numbers},
            optional={
                "gradient_norm": numbers,
                "eigenvalue": st.lists(numbers, min_size=2, max_size=2),
                "theta": row,
            },
        ),
        min_size=1,
        max_size=6,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@few
@given(st.data())
def test_a_file_gives_back_what_was_recorded(dtype, data):
    records, attrs = data.draw(rows(dtype)), data.draw(attributes)
    kinds = {"time": {}, "step": {"dtype": "int64"}, "train_loss": {}, "gradient_norm": {}}
    kinds |= {"eigenvalue": {"dims": ("eig",)}, "theta": {"dims": ("param",), "dtype": None}}
    layout = Layout(
        {name: gradflow.Variable(**kind) for name, kind in kinds.items()}, {"eig": 2, "param": 3}, dtype
    )
    static = {"params": np.array([1.0, math.nan, math.inf], dtype)}
    memory = MemoryRecord(layout, attrs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "λ x.nc"
        file = FileRecord(
            path, layout, attrs, static, {}, overwrite=False, resume=False, sync_every=0, checkpoint_every=1e9
        )
        for record in records:
            memory.append(dict(record))
            file.append(dict(record))
        with open_run(path) as early:
            assert len(early.time) == len(records)
        expected = memory.finish(static, {"status": "ended"})
        with file.finish(static, {"status": "ended"}) as read:
            xr.testing.assert_identical(read.load(), expected)
            assert read.theta.dtype == dtype


@few
@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8, unique=True),
    st.sampled_from(["rk4", "exprb32", "rkc", "expeuler", "dopri5", "scipy:RK45"]),
)
@example([1 - 2**-53], "rk4")
@example([1 - 2**-53], "exprb32")
@example([0.5, 1 - 1e-13], "dopri5")
def test_a_flow_is_recorded_at_any_times(times, method):
    """At those times exactly, with the θ that belongs there."""
    times = sorted(times)
    λ = torch.tensor([1.0, 3.0], dtype=double)
    start, tight = torch.tensor([1.0, -2.0], dtype=double), {"rtol": 1e-8, "atol": 1e-10}
    run = gradflow.integrate(
        lambda x: 0.5 * (λ * x**2).sum(), start, method=method, t_max=1.0, save_at=times,
        **({"rk4": {"max_step": 0.02}, "expeuler": {"max_step": 0.02, "stiff_dim": 1}}.get(method, tight)),
    )  # fmt: skip
    recorded = run.time.values
    for t in times:
        assert np.abs(recorded - t).min() <= 1e-9
    assert recorded[0] == 0
    assert recorded[-1] == 1.0
    assert (np.diff(recorded) > 0).all()
    exact = start.numpy() * np.exp(-recorded[:, None] * λ.numpy())
    assert np.abs(run.theta.values - exact).max() < (2e-2 if method == "expeuler" else 1e-5)


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    """The directory of a small run that died, and its record."""
    path = tmp_path_factory.mktemp("dead") / "x.nc"

    def dies(report):
        if report.step == 6:
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        gradflow.integrate(
            lambda x: (x**2).sum(), torch.ones(2, dtype=double), method="gd", lr=0.1, max_steps=20, out=path,
            sync_every=0, checkpoint_every=1e-9, callback=dies,
        )  # fmt: skip
    return path


def test_a_checkpoint_that_was_cut_anywhere_is_none(dead):
    *_, last = sorted((dead.parent / "x.nc.partial").glob("checkpoint-*"))
    content = last.read_bytes()
    assert read_checkpoint(last) is not None
    cut = last.with_name("cut.pt")
    for size in [*range(0, len(content), 7), len(content) - 1]:
        cut.write_bytes(content[:size])
        assert read_checkpoint(cut) is None
    cut.unlink()


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_segment_that_was_cut_anywhere_costs_its_own_records_alone(dead, where):
    *_, last = sorted((dead.parent / "x.nc.partial").glob("segment-*"))
    content = last.read_bytes()
    n = len(open_run(dead).time)
    try:
        last.write_bytes(content[: int(where * len(content))])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordWarning)
            part = open_run(dead)
        assert len(part.time) == n - 1
        assert np.allclose(part.theta, 0.8 ** np.arange(n - 1)[:, None])
    finally:
        last.write_bytes(content)
