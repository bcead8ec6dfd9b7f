"""The options of flows as flags: --lr goes to whoever has it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from helpers.cli import config, invoke

from gradflow import Flow, open_run, problems
from gradflow.flows import FLOWS
from gradflow.problems.networks import ACTIVATIONS

PROBLEM = ["run", "chebyshev-3-20", "regression", "mse", "--max-steps", 3]


@dataclass(frozen=True)
class Schemed(Flow):
    """Gradient flow, slower.

    Parameters
    ----------
    scheme : {"first", "second"}, default "first"
        Which of its methods follows it.
    slowness : float, default 1.0
        What time is divided by.
    alpha : float, default 1.0
        What a method has too.
    seed : int, default 7
        What the command has too.
    """

    scheme: Literal["first", "second"] = "first"
    slowness: float = 1.0
    alpha: float = 1.0
    seed: int = 7

    name: ClassVar[str] = "schemed"
    schemes: ClassVar = {"first": "rk4", "second": "dopri5"}

    def velocity(self, point):
        return -point.gradient / self.slowness


@pytest.fixture
def schemed(monkeypatch):
    monkeypatch.setitem(FLOWS, "schemed", Schemed)


def settings(tmp_path, *args):
    out = tmp_path / "x.nc"
    result = invoke(*PROBLEM, *args, "--t-max", 0.1, "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    found = config(out)
    return found["flow"], found["flow_options"], found["method"], found["options"]


def test_a_flag_and_an_assignment_say_the_same(tmp_path):
    for args in (["--lr", 0.25], ["-f", "lr=0.25"], ["--lr=0.25"]):
        flow, options, *_ = settings(tmp_path, "--flow", "modified", *args)
        assert (flow, options) == ("modified", {"lr": 0.25})


def test_flags_of_flow_and_method_go_to_their_owners(tmp_path):
    args = ["--flow=modified", "--method=rk4", "--lr", 0.25, "--alpha", 0.5]
    _, of_flow, _, of_method = settings(tmp_path, *args)
    assert (of_flow["lr"], of_method["alpha"]) == (0.25, 0.5)


def test_what_both_have_goes_to_the_one_that_has_it_not_yet(tmp_path):
    """gd is a method for flows too, and has a learning rate of its own."""
    expected = ({"lr": 0.25}, {"lr": 0.125})
    for args in (["-f", "lr=0.25", "--lr", 0.125], ["--lr", 0.25, "-o", "lr=0.125"]):
        _, of_flow, _, of_method = settings(tmp_path, "--flow", "modified", "--method", "gd", *args)
        assert (of_flow, of_method) == expected


def test_the_flags_of_the_command_stay_its_own(schemed, tmp_path):
    _, of_flow, *_ = settings(tmp_path, "--flow", "schemed", "--seed", 3)
    assert of_flow["seed"] == 7
    assert config(tmp_path / "x.nc")["loss"]["seed"] == 3
    assert settings(tmp_path, "--flow", "schemed", "-f", "seed=5")[1]["seed"] == 5


@pytest.mark.parametrize("args", [["--scheme", "second"], ["-f", "scheme=second"], ["--scheme=second"]])
def test_auto_stands_for_the_method_of_the_scheme(args, schemed, tmp_path):
    flow, options, method, of_method = settings(
        tmp_path, "--flow", "schemed", "--slowness", 2, "--rtol", 0.125, "-o", "atol=0.25", *args
    )
    assert (flow, options["slowness"], options["scheme"], method) == ("schemed", 2.0, "second", "dopri5")
    assert (of_method["rtol"], of_method["atol"]) == (0.125, 0.25)
    assert settings(tmp_path, "--flow", "schemed", "-o", "alpha=0.5")[2:4][0] == "rk4"


def test_the_help_has_the_options_of_flow_and_scheme(schemed):
    text = " ".join(invoke("run", "--flow", "schemed", "--help").output.split())
    assert "Options of the flow schemed: --scheme [first|second] Which of its methods follows it." in text
    assert "Options of rk4: --alpha" in text
    assert text.count("--seed") == 1
    assert "--lr FLOAT" in invoke("run", "--help", "--flow", "modified").output


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--flow", "modified", "--lr", 1, "-f", "lr=1"], "-f lr and --lr say the same; give one."),
        (["--flow", "modified", "--method", "gd", "--lr", 1],
         "Flow 'modified' and method 'gd' both have an option 'lr': give -f lr=… or -o lr=…."),
        (["--flow", "modified", "--slownes", 1], "Method 'auto' and flow 'modified' have no option 'slownes'; Valid:"),
        (["--flow", "schemed", "--slownes", 1],
         "Method 'rk4' and flow 'schemed' have no option 'slownes'; did you mean 'slowness'?"),
        (["--flow", "modifed", "--lr", 1], "No flow 'modifed'; did you mean 'modified'?"),
        (["--flow", "schemed", "-o", "rtol=1"], "Method 'rk4' has no option 'rtol'"),
    ],
)  # fmt: skip
def test_mistakes(args, text, schemed):
    result = invoke(*PROBLEM, *args, "--t-max", 1)
    assert result.exit_code == 2
    assert text in result.output


def test_midpoints_by_a_flag(tmp_path):
    out = tmp_path / "x.nc"
    result = invoke(*PROBLEM, "--method", "gd", "--lr", 0.1, "--midpoint", "--out", out)
    assert result.exit_code == 0, result.output
    assert "loss at midpoint" in result.output
    with open_run(out) as run:
        assert float(run.midpoint_train_loss[1]) < float(run.train_loss[0])
    refused = invoke(*PROBLEM, "--method", "rk4", "--t-max", 1, "--midpoint")
    assert "Leave out --midpoint, or choose an optimiser" in refused.output


def test_gelu_is_an_activation_with_the_derivatives_that_differences_give():
    assert "gelu" in ACTIVATIONS
    whole, _, θ = problems.load("digits", "cnn-avgpool-gelu", "mse", dtype=torch.float64)
    train = whole.first(40)
    v = torch.randn(len(θ), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v /= v.norm()
    before, here, after = (train.gradient(θ + x * v)[1] for x in (-1e-3, 0.0, 1e-3))
    at = train.linearize(θ)
    for exact, difference in (
        (at @ v, (after - before) / 2e-3),
        (at.third(v) @ v, (after - 2 * here + before) / 1e-6),
    ):
        assert float((exact - difference).norm() / difference.norm()) < 1e-6
