"""The examples of flows at the edge of stability run, and show what their pages say."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import gradflow

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, monkeypatch, capsys, *arguments):
    """Run an example as a script; return what it prints."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_flows_beside_gradient_descent_are_recorded_and_drawn(tmp_path, monkeypatch, capsys):
    said = run("edge_flows.py", monkeypatch, capsys, "--small", "--out-dir", str(tmp_path))
    assert (tmp_path / "edge_flows.png").read_bytes()[:4] == b"\x89PNG"
    gd, central, gradient = (
        gradflow.open_run(tmp_path / f"{name}.nc") for name in ("gd", "central", "gradient")
    )
    assert gd.attrs["stability_threshold"] == 2.5
    assert gradient.eigenvalue.values.max() > 2.8
    assert central.eigenvalue.values.max() == pytest.approx(2.5, rel=1e-5)
    assert central.n_active.values[0] == 0 < central.n_active.values[-1]
    assert int(gradflow.compare(gd, central).midpoint_distance.notnull().sum()) > 5
    assert "nan" not in said
    again = run("edge_flows.py", monkeypatch, capsys, "--draw-only", "--out-dir", str(tmp_path))
    assert again == said[said.index("| flow |") :]


def test_the_toy_shows_who_follows_and_who_loses_the_edge(tmp_path, monkeypatch, capsys):
    said = run(
        "berthier_toy.py", monkeypatch, capsys, "--steps", "800", "--every", "25", "--out-dir", str(tmp_path)
    )
    last = {
        path.stem: float(gradflow.open_run(path).theta[-1, 1]) / (2 / 0.3) for path in tmp_path.glob("*.nc")
    }
    lost = {name for name, y in last.items() if y > 1.15}
    assert lost == {"gradient_flow", "rod"}
    assert all(0.95 < y < 1.03 for name, y in last.items() if name not in lost)
    assert last["central"] == pytest.approx(1, abs=2e-3)
    assert np.isfinite(list(last.values())).all()
    assert "gd: largest y 7.5" in said
