"""``gradflow run module:function``, and ``python -m gradflow``."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.cli import config, invoke

import gradflow

MODULE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
from gradflow import LossFunction

def losses():
    net = nn.Linear(3, 1)
    x = torch.linspace(-1, 1, 12).reshape(4, 3)
    make = lambda rows: LossFunction(TensorDataset(x[rows], x[rows].sum(1, keepdim=True)), nn.MSELoss(), net)
    return make(slice(0, 3)), make(slice(3, 4))

def loss():
    return losses()[0]

def bowl():
    return (lambda x: (x**2).sum()), None, torch.arange(3.0)

def without_start():
    return lambda x: (x**2).sum()

def nothing():
    pass

def four():
    return (*bowl(), 1)

def wants(x):
    pass

def fails():
    raise RuntimeError("of my own")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_problem.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield lambda name, *args: invoke("run", f"own_problem:{name}", "--method", "gd", "--max-steps", 3, *args)
    sys.modules.pop("own_problem", None)


def test_loss_and_test_loss(own, tmp_path):
    result = own("losses", "--lr", 0.1, "--seed", 3, "--out", "x.nc", "--save-model")
    assert result.exit_code == 0, result.output
    with torch.random.fork_rng():
        torch.manual_seed(3)
        train, test = sys.modules["own_problem"].losses()
    expected = gradflow.integrate(train, method="gd", lr=0.1, max_steps=3, test=test)
    with gradflow.open_run(tmp_path / "x.nc") as ds:
        for name in ("params", "train_loss", "test_loss"):
            assert np.array_equal(ds[name], expected[name]), name
    said = config(tmp_path / "x.nc")["loss"]
    assert (said["problem"], said["seed"]) == ("own_problem:losses", 3)
    weights = torch.load(tmp_path / "x.pt", weights_only=True)["weight"]
    assert np.array_equal(weights.flatten(), expected.params[:3])


def test_a_loss_alone(own, tmp_path):
    result = own("loss", "-o", "lr=0.1", "--out-dir", tmp_path / "runs")
    assert result.exit_code == 0, result.output
    path = tmp_path / "runs/own_problem-loss/seed_0/gd/lr_0.1.nc"
    with gradflow.open_run(path) as ds:
        assert np.isnan(ds.test_loss).all()


def test_a_function_of_theta(own, tmp_path):
    result = own("bowl", "--lr", 0.25, "--out", "x.nc")
    assert result.exit_code == 0, result.output
    with gradflow.open_run(tmp_path / "x.nc") as ds:
        assert ds.params.values.tolist() == [0, 0.125, 0.25]


RETURNS = "to return a loss, (loss, test), or (loss, test or None, θ₀), got "


@pytest.mark.parametrize(
    ("name", "args", "text"),
    [
        ("nothing", [], f"Expected own_problem:nothing {RETURNS}(NoneType)."),
        ("four", [], f"{RETURNS}(function, NoneType, Tensor, int)."),
        (
            "without_start",
            [],
            f"{RETURNS}(function). A loss is a gradflow.LossFunction, or a function of θ with θ₀",
        ),
        ("wants", [], "own_problem:wants must take no arguments; it has (x)."),
        ("losess", [], "Module 'own_problem' has no function 'losess'; did you mean 'losses'? Valid: "),
        (
            "loss",
            ["--device", "cpu"],
            "--device is for the named problems: own_problem:loss makes its loss itself.",
        ),
        ("loss", ["--physical-batch-size", 5], "--physical-batch-size is for the named problems"),
        (
            "bowl",
            ["--out", "x.nc", "--save-model"],
            "--save-model needs a network; the loss of own_problem:bowl has",
        ),
    ],
)
def test_mistakes(name, args, text, own):
    result = own(name, "--lr", 0.1, *args)
    assert result.exit_code == 2
    assert text in result.output


def test_its_own_errors_pass(own):
    with pytest.raises(RuntimeError, match=r"^of my own$"):
        raise own("fails", "--lr", 0.1).exception


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["no_such_module:f"], "No module 'no_such_module' in "),
        (["own_problem"], "Expected DATASET NET CRITERION, or MODULE:FUNCTION, got 'own_problem'."),
        (["digits", "fc-tanh"], "Expected DATASET NET CRITERION, or MODULE:FUNCTION, got 'digits fc-tanh'."),
    ],
)
def test_what_is_no_problem(words, text, own):
    result = invoke("run", *words, "--t-max", 1)
    assert result.exit_code == 2
    assert text in result.output


def test_python_m_gradflow_is_gradflow():
    args = [sys.executable, "-m", "gradflow", "--version"]
    root = Path(gradflow.__file__).parent.parent
    out = subprocess.run(args, cwd=root, check=True, capture_output=True, text=True).stdout
    assert out.strip().endswith(gradflow.__version__)
