"""The options of methods and flows: each method has its own, with the meaning that its class gives."""

import dataclasses

import click
import pytest
from click.shell_completion import ShellComplete
from helpers.cli import config, invoke

from gradflow import open_run
from gradflow.cli import main
from gradflow.cli.options import options_of
from gradflow.flows import FLOWS
from gradflow.integrators import METHODS

PROBLEM = ["run", "chebyshev-3-20", "regression", "mse"]


def words(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_every_option_of_every_method_is_documented():
    missing = [(name, o.name) for name, cls in METHODS.items() for o in options_of(cls) if not o.doc]
    assert missing == []


def test_the_table_has_every_method_once():
    first = [line.split("  ")[0] for line in invoke("methods").output.split("\n\n")[0].splitlines()[1:]]
    assert sorted(name for names in first for name in names.split(", ")) == sorted(METHODS)
    assert "gd, euler" in first
    assert "rkc 2 flow The Runge–Kutta–Chebyshev method of order 2" in words("methods")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_is_described_with_all_its_options(name):
    text = words("methods", name)
    assert f"(order: {METHODS[name].order}, kind: " in text
    for field in dataclasses.fields(METHODS[name]):
        assert f" {field.name}=" in text
        if field.default not in {dataclasses.MISSING, None}:
            assert f"[default {field.default}]" in text


def test_an_option_means_what_its_own_method_says():
    rk4, rmsprop = words("methods", "rk4"), words("methods", "rmsprop")
    assert (
        "alpha=float Step size times λ₁; at most the method's real stability interval. [default 1.0]" in rk4
    )
    assert "alpha=float Decay rate of an average; of squared gradients for rmsprop. [default 0.99]" in rmsprop
    assert "sample=shuffle|replacement|order" in rmsprop
    assert "lr=float Learning rate η. [required]" in words("methods", "polyak")
    assert "rtol=float" in words("methods", "scipy:RK45")


@pytest.mark.parametrize(
    ("name", "where"),
    [("adam", "torch.optim.Adam"), ("elra", "gradflow.optim.ElraOptimizer"), ("esgd", "gradflow.optim.ESGD")],
)
def test_an_optimiser_says_where_it_is_from(name, where):
    assert f"{where}, run as an integrator." in words("methods", name)


def test_formulas_keep_their_lines():
    assert "\n    zₙ₊₁ = zₙ + h φ₁ F + h (16 φ₃ − 48 φ₄) D(U₂)" in invoke("methods", "exprb43").output


def test_an_unknown_method_has_a_suggestion():
    result = invoke("methods", "expr43")
    assert result.exit_code == 1
    assert "No method 'expr43'; did you mean 'exprb43'? Valid: adadelta, " in result.output


def test_the_help_of_run_fits_two_screens_and_leaves_methods_out():
    lines = invoke("run", "--help").output.splitlines()
    assert any(line.strip().startswith("gradflow run digits fc-tanh mse --method rk4") for line in lines)
    assert len(lines) <= 100
    assert max(map(len, lines)) <= 80
    assert not any("--alpha" in line for line in lines)


def test_the_help_with_a_method_has_its_flags():
    text = words("run", "--method", "expeuler", "--help")
    assert "Options of expeuler: --stiff-dim INTEGER" in text
    assert "--cap-growth / --no-cap-growth" in text
    assert "--minibatch-size INTEGER" in words("run", "--opt=adam", "--help")


def test_flags_and_assignments_set_the_same(tmp_path):
    given = {
        "flags": ["--method", "expeuler", "--max-step", 0.5, "--no-cap-growth", "--stiff-dim", 3],
        "assigned": ["-o", "max_step=0.5", "-o", "cap-growth=no", "-o", "stiff_dim=3", "--method=expeuler"],
    }
    stored = {}
    for name, args in given.items():
        result = invoke(*PROBLEM, *args, "--t-max", 0.5, "--out", tmp_path / f"{name}.nc")
        assert result.exit_code == 0, result.output
        stored[name] = config(tmp_path / f"{name}.nc")["options"]
    assert stored["flags"] == stored["assigned"]
    assert (stored["flags"]["max_step"], stored["flags"]["cap_growth"]) == (0.5, False)


def test_none_is_a_value_where_it_is_one(tmp_path):
    args = [*PROBLEM, "--method", "adam", "-o", "clip_norm=none", "-o", "batch_size=7", "--max-steps", 2]
    result = invoke(*args, "--out", tmp_path / "x.nc")
    assert result.exit_code == 0, result.output
    options = config(tmp_path / "x.nc")["options"]
    assert (options["clip_norm"], options["batch_size"]) == (None, 7)


def test_the_default_method_is_auto(tmp_path):
    result = invoke(*PROBLEM, "--t-max", 0.5, "--rtol", 1e-3, "--out", tmp_path / "x.nc")
    assert result.exit_code == 0, result.output
    assert config(tmp_path / "x.nc")["options"]["rtol"] == 1e-3


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--method", "rk4", "-o", "alhpa=1"], "'rk4' has no option 'alhpa'; did you mean 'alpha'? Valid: alpha, "),
        (["--method", "rk4", "--alhpa", 1], "'rk4' has no option 'alhpa'; did you mean 'alpha'? Valid: alpha, "),
        (["--method", "rk4", "--t-mx", 1], "'rk4' has no option 't_mx'; did you mean 't_max'? Valid: alpha, "),
        (["--method", "gd", "--no-cap", "--lr", 1], "Method 'gd' has no option 'cap'; Valid: lr."),
        (["--method", "gdd", "--alpha", 1], "No method 'gdd'; did you mean 'gd'?"),
        (["--method", "gd", "-o", "lr"], "Expected -o as name=value, got 'lr'."),
        (["--method", "gd", "-o", "lr=fast"], "-o lr: 'fast' is not a valid float."),
        (["--method", "gd", "-o", "lr=1", "-o", "lr=2"], "-o lr was given twice."),
        (["--method", "gd", "-o", "lr=1", "--lr", 2], "-o lr and --lr say the same; give one."),
        (["--method", "adam", "-o", "betas=a,b"], "-o betas: expected a number, or several separated by commas"),
        (["-f", "lr=1"], "-f is an option of a flow: give --flow."),
        (["--flow", "modified"], "Flow 'modified' needs lr: give -f lr=…."),
        (["--event", "los=1"], "No quantity 'los'; did you mean 'loss'? Valid: accuracy, gradient_norm, loss, sharp"),
        (["--event", "loss"], "expected NAME=VALUE[:rising|:falling][!], such as sharpness=20:rising! or loss=0.1"),
        (["--event", "loss=much"], "got 'loss=much'"),
        (["--event", "loss=1:up"], "got 'loss=1:up'"),
        (["--event", "loss=1!:rising"], "got 'loss=1!:rising'"),
        (["--event", "loss=nan"], "Expected the threshold of an event to be finite, got nan."),
        (["--flow", "modifed"], "No flow 'modifed'; did you mean 'modified'? Valid: "),
    ],
)  # fmt: skip
def test_mistakes(args, text):
    result = invoke(*PROBLEM, *args, "--t-max", 1)
    assert result.exit_code == 2
    assert text in result.output


def test_events_are_recorded_and_end_the_run(tmp_path):
    out = tmp_path / "x.nc"
    events = ["--event", "loss=0.24:falling", "--event", "loss=0.23!", "--event", "gradient_norm=0:rising"]
    result = invoke(*PROBLEM, "--dtype", "float64", "--method", "rk4", "--t-max", 50, *events, "--out", out)
    assert result.exit_code == 0, result.output
    with open_run(out) as run:
        assert run.attrs["status"] == "event"
        first, last = (run.train_loss.values[run[name] == 1] for name in ("event_loss", "event_loss_2"))
        assert first == pytest.approx([0.24], abs=1e-7)
        assert last == pytest.approx([0.23], abs=1e-7)
        assert run.event_loss_2[-1] == 1
        assert run.event_gradient_norm.sum() == 0


def test_flows_are_listed_and_described():
    assert "gradient Gradient flow dθ/dt = −∇L(θ), along which" in words("flows")
    assert "lr=float Learning rate η of the gradient descent that it describes. [required]" in words(
        "flows", "modified"
    )
    assert "No flow 'modifed'; did you mean 'modified'?" in invoke("flows", "modifed").output


def complete(*args):
    return [
        item.value
        for item in ShellComplete(main, {}, "gradflow", "").get_completions(list(args[:-1]), args[-1])
    ]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["run", "dig"], ["digits"]),
        (["run", "digits", "fc-tanh"], ["fc-tanh", "fc-tanh-depthN"]),
        (["run", "digits", "fc-tanh", ""], ["mse", "ce"]),
        (["run", "digits", "fc-tanh", "mse", ""], []),
        (["run", "digits", "fc-tanh", "mse", "--method", "exprb"], ["exprb32", "exprb43", "exprb54"]),
        (
            ["run", "--method", "rk4", "-o", ""],
            ["alpha=", "max_step=", "sharpness_every=", "loss_rtol=", "step_size="],
        ),
        (["run", "--method", "rk4", "--alp"], ["--alpha"]),
        (["run", "-o", "kr"], ["krylov_tol="]),
        (["run", "--flow", "m"], ["modified"]),
        (["run", "--flow", "modified", "-f", ""], ["lr="]),
        (["methods", "rk"], ["rk4", "rkc"]),
        (["flows", ""], list(FLOWS)),
    ],
)
def test_the_shell_completes(args, expected):
    assert complete(*args) == expected


def test_commands_are_listed():
    assert isinstance(main, click.Group)
    assert sorted(main.commands) == ["compare", "fetch", "flows", "info", "methods", "plot", "run"]
