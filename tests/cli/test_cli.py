"""The command line: every option arrives, and failures are failures."""

import dataclasses
import inspect
import json

import click
import numpy as np
import pytest
from helpers.cli import config, invoke

import gradflow
from gradflow import open_run, problems
from gradflow.cli import main
from gradflow.cli.options import NOT_FLAGS
from gradflow.integrators import METHODS
from gradflow.integrators.controlled import FlowMethod

PROBLEM = ["run", "chebyshev-3-20", "regression", "mse"]


def test_run_records_what_integrate_records(tmp_path):
    result = invoke(
        *PROBLEM,
        "--method",
        "rk4",
        "--t-max",
        2,
        "--n-eigs",
        2,
        "--save-every",
        0.5,
        "--out",
        tmp_path / "x.nc",
    )
    assert result.exit_code == 0, result.output
    train, test, theta = problems.load("chebyshev-3-20", "regression", "mse")
    expected = gradflow.integrate(train, theta, method="rk4", t_max=2.0, n_eigs=2, save_every=0.5, test=test)
    with open_run(tmp_path / "x.nc") as ds:
        for name in expected.variables:
            if name != "wall_time":
                assert np.array_equal(ds[name], expected[name], equal_nan=True), name
    for text in ("training loss", "λ₁", "gradients", "H·v", "recorded in"):
        assert text in result.output


# One value that is not the default for every option of integrate(), and where it must be found.
GENERAL = {
    "t-max": ("1.5", lambda c: c["t_max"] == 1.5),
    "save-every": ("2steps", lambda c: c["cadences"]["scalars"] == [{"n": 2}]),
    "save-at": ("0.25,0.5", lambda c: c["cadences"]["scalars"] == [{"times": [0.25, 0.5]}]),
    "n-eigs": ("3", lambda c: c["n_eigs"] == 3),
    "eigs-every": ("0.125", lambda c: c["cadences"]["eigenvalues"] == [{"dt": 0.125, "n": 1}]),
    "eigs-tol": ("0.01", lambda c: c["eigs_tol"] == 0.01),
    "density-at": ("-1,0,1.5", lambda c: c["density_at"] == [-1.0, 0.0, 1.5]),
    "density-every": ("0.25", lambda c: c["cadences"]["density"] == [{"dt": 0.25, "n": 1}]),
    "n-projections": ("4", lambda c: c["n_projections"] == 4),
    "projections-every": ("3 steps", lambda c: c["cadences"]["projections"] == [{"n": 3}]),
    "projection-seed": ("9", lambda c: c["projection_seed"] == 9),
    "params-every": ("0.2", lambda c: c["cadences"]["params"] == [{"dt": 0.2, "n": 1}]),
    "midpoint": (True, None),  # of optimisers: in test_flow_options.py
    "error-estimate": (True, lambda c: c["error_estimate"] is True),
    "test-every": ("2steps@0.125", lambda c: c["cadences"]["test"] == [{"dt": 0.125, "n": 2}]),
    "abridged-size": ("15", lambda c: c["abridged_size"] == 15),
    "loss-goal": ("0.01", lambda c: c["loss_goal"] == 0.01),
    "acc-goal": ("0.99", lambda c: c["acc_goal"] == 0.99),
    "max-steps": ("7", lambda c: c["max_steps"] == 7),
    "max-wall-time": ("100", lambda c: c["max_wall_time"] == 100),
    "out": (None, None),
    "overwrite": (True, None),
    "sync-every": ("0.5", None),
    "checkpoint-every": ("0.5", None),
    "progress": (True, None),
    "on-failure": ("raise", None),
}
METHOD_VALUES = {
    "rtol": "0.001", "atol": "1e-05",
    "cap": False,
    "step_size": "0.05",
    "v": "0.25", "lr_warmup": "0.5", "update_d_every": "3", "d_warmup": "2", "accumulator": "max", "classes": "3",
    "warmup": "2", "noise_free": True, "lr": "0.05",
    "momentum": "0.75", "dampening": "0.25", "weight_decay": "0.5", "nesterov": True, "amsgrad": True,
    "betas": "0.5,0.75", "eps": "0.25", "rho": "0.25", "lambd": "0.5", "t0": "5.0", "d": "1.5",
    "decoupled_weight_decay": True, "centered": True, "etas": "0.25,1.5", "step_sizes": "0.125,10.0",
    "momentum_decay": "0.25", "lr_decay": "0.25",
    "initial_accumulator_value": "0.25", "beta2_decay": "-0.5", "max_iter": "3", "max_eval": "7", "history_size": "5",
    "tolerance_grad": "0.125", "tolerance_change": "0.125", "line_search_fn": "strong_wolfe",
    "scheduler_every": "epoch",
    "ns_coefficients": "3.0,-4.0,2.0", "ns_steps": "3", "adjust_lr_fn": "original", "scheduler": "StepLR(step_size=2)",
    "clip_norm": "0.5", "clip_value": "0.25", "batch_size": "7", "sample": "order", "sample_seed": "3",
    "alpha": "0.5", "max_step": "0.25", "sharpness_every": "0.5", "stiff_dim": "3", "warmup_iters": "2",
    "warmup_factor": "0.5", "cap_growth": False, "eigs_rtol": "0.02", "loss_rtol": "0.125",
    "krylov_tol": "0.05", "max_basis": "50", "dense": False, "damping": "2.5", "max_stages": "50",
}  # fmt: skip


SPECIAL = {("elra", "weight_decay"): "0.05", ("adafactor", "eps"): "none,0.25", ("muon", "nesterov"): False}


def flag(name, value):
    name = name.replace("_", "-")
    return [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", value]


def test_every_argument_of_integrate_is_an_option():
    names = {n for n in inspect.signature(gradflow.integrate).parameters if n not in NOT_FLAGS}
    assert {n.replace("-", "_") for n in GENERAL} == names
    options = {p.name: p for p in main.commands["run"].params if isinstance(p, click.Option)}
    assert names <= set(options)
    assert all(option.help for option in options.values() if not option.hidden)


@pytest.mark.parametrize("name", [n for n, (_, found) in GENERAL.items() if found])
def test_general_options_arrive(name, tmp_path):
    value, found = GENERAL[name]
    problem = ["run", "digits", "fc-tanh-depth1", "ce"] if name == "acc-goal" else PROBLEM
    needed = {
        "density-at": ["--save-every", 0.5],
        "density-every": ["--density-at", "0,1"],
        "abridged-size": ["--n-eigs", 1],
        "eigs-every": ["--n-eigs", 1],
        "projections-every": ["--n-projections", 2],
    }.get(name, [])
    end = [] if name in {"t-max"} else ["--t-max", 0.5]
    result = invoke(
        *problem, "--method", "rk4", *end, *needed, "--out", tmp_path / "x.nc", *flag(name, value)
    )
    assert result.exit_code == 0, result.output
    assert found(config(tmp_path / "x.nc"))


def read(value):
    """What is stored of a value that was given as text."""
    if isinstance(value, bool):
        return value
    try:
        numbers = [json.loads(part.replace("none", "null")) for part in value.split(",")]
    except ValueError:
        return value
    return numbers[0] if len(numbers) == 1 else numbers


@pytest.mark.parametrize("method", sorted(cls.name for cls in set(METHODS.values())))
def test_method_options_arrive(method, tmp_path):
    conflicts = {"sgd": {"dampening"}, "esgd": {"v"}}  # not with nesterov, not with the maximum
    left_out = {"options"} | conflicts.get(method, set())
    if issubclass(METHODS[method], FlowMethod):  # whose step_size takes the place of other options
        left_out.add("step_size")
    names = [field.name for field in dataclasses.fields(METHODS[method]) if field.name not in left_out]
    flags = {"batch_size": "minibatch_size"}
    given = {name: SPECIAL.get((method, name), METHOD_VALUES[name]) for name in names}
    chosen = []
    for i, name in enumerate(names):  # one as a flag, the next by -o
        written = str(given[name]).lower() if isinstance(given[name], bool) else given[name]
        chosen += flag(flags.get(name, name), given[name]) if i % 2 else ["-o", f"{name}={written}"]
    problem = PROBLEM if method != "muon" else ["run", "linear-50-50", "deeplinear", "mse"]  # matrices alone
    end = ["--max-steps", 3] if METHODS[method].discrete else ["--t-max", 0.5]
    if (flow := METHODS[method].only_for) is not None:
        end += ["--flow", flow, "-f", "lr=0.1"]
    result = invoke(*problem, "--method", method, *end, "--out", tmp_path / "x.nc", *chosen)
    assert result.exit_code == 0, result.output
    stored = config(tmp_path / "x.nc")["options"]
    for name in left_out:
        stored.pop(name, None)
    if method == "auto":  # what is stored is the method that it chose, with the options that they share
        names = [name for name in names if name in stored]
        assert "rtol" in names
        stored = {name: stored[name] for name in names}
    assert stored == {name: read(given[name]) for name in names}
    defaults = {f.name: f.default for f in dataclasses.fields(METHODS[method])}
    assert all(stored[name] != defaults[name] for name in names)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["--step-size", 0.125], "FixedStep(h=0.125, exact=True)"),
        (["-o", "step_size=ErrorControl(rtol=1e-5)"], "ErrorControl(rtol=1e-05, atol=1e-06, "),
    ],
)
def test_a_step_size_arrives(given, stored, tmp_path):
    result = invoke(*PROBLEM, "--method", "rk4", "--t-max", 0.5, "--out", tmp_path / "x.nc", *given)
    assert result.exit_code == 0, result.output
    assert config(tmp_path / "x.nc")["options"]["step_size"].startswith(stored)


def test_problem_options_arrive(tmp_path):
    path = tmp_path / "x.nc"
    result = invoke(*PROBLEM, "--method", "gd", "--lr", 0.1, "--max-steps", 1, "--seed", 3, "--dtype", "float64",
                    "--batch-size", 7, "--no-test", "--device", "cpu", "--out", path)  # fmt: skip
    assert result.exit_code == 0, result.output
    with open_run(path) as ds:
        loss = json.loads(ds.attrs["gradflow_config"])["loss"]
        assert (loss["seed"], loss["batch_size"], ds.attrs["dtype"]) == (3, 7, "float64")
        assert np.isnan(ds.test_loss).all()


def test_help_shows_defaults():
    text = " ".join(invoke("run", "--help").output.split())
    for part in ("[default: 0.001]", "[default: 5.0]", "Default: every record."):
        assert part in text, part
    assert invoke("--version").output.strip().endswith(gradflow.__version__)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["run", "digit", "fc-tanh", "mse", "--method", "gd"], "did you mean 'digits'"),
        ([*PROBLEM, "--method", "rk44", "--t-max", 1], "did you mean 'rk4'"),
        ([*PROBLEM, "--method", "gd", "--t-max", 1], "needs lr: pass --lr"),
        ([*PROBLEM, "--method", "gd", "--lr", 0.1], "The run has no end"),
        ([*PROBLEM, "--method", "gd", "--lr", 0.1, "--t-max", 1, "--eigs-every", 1], "give --n-eigs ≥ 1"),
        ([*PROBLEM, "--method", "gd", "--lr", 0.1, "--t-max", 1, "--seed", 2**70], "seed as an int"),
        ([*PROBLEM, "--method", "gd", "--lr", 0.1, "--t-max", 1, "--projection-seed", 2**64], "-seed < 2⁶⁴"),
        (["info", "."], "got the directory"),
        ([*PROBLEM, "--method", "rk4", "--lr", 0.1, "--t-max", 1], "'rk4' has no option 'lr'"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--save-every", "often"], "a time such as 0.5"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--save-every", "0steps"], "number of steps ≥ 1"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--save-at", "1;2"], "expected times such as 1,2,5"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--out", "/nowhere/x.nc"], "doesn't exist"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--device", "tpu"], "No device 'tpu'"),
        ([*PROBLEM, "--method", "rk4", "--t-max", 1, "--device", "cuda:99"], "CUDA"),
        (["info", "/nowhere/x.nc"], "No run at"),
        (["compare", "/nowhere/x.nc", "/nowhere/y.nc"], "No run at"),
        (["info", __file__], "can't be read as netCDF"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line_and_a_non_zero_exit(args, text):
    result = invoke(*args)
    assert result.exit_code != 0
    assert text in result.output
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("on_failure", ["return", "raise"])
def test_a_numerical_failure_is_a_non_zero_exit(tmp_path, on_failure):
    path = tmp_path / "x.nc"
    result = invoke(
        *PROBLEM, "--method", "gd", "--lr", 50, "--t-max", 50_000, "--out", path, "--on-failure", on_failure
    )
    assert result.exit_code == 1
    assert "stopped being finite" in result.output
    with open_run(path) as ds:
        assert ds.attrs["success"] == 0


def test_compare_and_info(tmp_path):
    a, b, out = tmp_path / "a.nc", tmp_path / "b.nc", tmp_path / "c.nc"
    invoke(*PROBLEM, "--method", "gd", "--lr", 0.1, "--t-max", 2, "--n-eigs", 1, "--out", a)
    invoke(*PROBLEM, "--method", "rk4", "--save-every", 0.5, "--t-max", 2, "--out", b)
    result = invoke("compare", a, b, "--out", out)
    assert result.exit_code == 0, result.output
    assert "a: gd(lr=0.1)   b: rk4" in result.output
    assert len([line for line in result.output.splitlines() if "%" in line]) == 5
    with gradflow.open_run(out) as written:
        expected = gradflow.compare(open_run(a), open_run(b))
        assert np.array_equal(written.distance, expected.distance)
    assert "exists. Pass --overwrite" in invoke("compare", a, b, "--out", out).output
    assert (
        len([line for line in invoke("compare", a, b, "--interp").output.splitlines() if "%" in line]) == 20
    )
    result = invoke("info", a)
    assert result.exit_code == 0
    for text in (
        "chebyshev-3-20",
        "status               t_max",
        "2/η                  20",
        "eigenvalue",
        "torch",
    ):
        assert text in result.output


def test_compare_never_overwrites_a_run(tmp_path):
    a, b = tmp_path / "a.nc", tmp_path / "b.nc"
    for path, lr in ((a, 0.1), (b, 0.05)):
        invoke(*PROBLEM, "--method", "gd", "--lr", lr, "--t-max", 1, "--out", path)
    before = a.read_bytes()
    result = invoke("compare", a, b, "--interp", "--out", a, "--overwrite")
    assert result.exit_code == 1
    assert "--out is one of the runs" in result.output
    assert a.read_bytes() == before
    for bad in (tmp_path / "no" / "x.nc", tmp_path):
        result = invoke("compare", a, b, "--out", bad, "--overwrite")
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert isinstance(result.exception, SystemExit)


def test_options_of_a_library_are_passed_through(tmp_path):
    path = tmp_path / "x.nc"
    result = invoke(
        *PROBLEM,
        "--method",
        "torchdiffeq:dopri5",
        "--t-max",
        0.5,
        "--options",
        "safety=0.5,ifactor=2",
        "--out",
        path,
    )
    assert result.exit_code == 0, result.output
    assert config(path)["options"]["options"] == {"safety": 0.5, "ifactor": 2}
    result = invoke(*PROBLEM, "--method", "torchdiffeq:dopri5", "--t-max", 0.5, "--options", "safty=0.5")
    assert result.exit_code == 1
    assert "safty" in result.output
    assert (
        "name=number"
        in invoke(*PROBLEM, "--method", "torchdiffeq:dopri5", "--t-max", 0.5, "--options", "safety").output
    )
    result = invoke(*PROBLEM, "--method", "dopri5", "--t-max", 0.5, "--options", "safety=0.5")
    assert result.exit_code == 2
    assert "method='torchdiffeq:dopri5'" in result.output


def test_info_and_compare_say_which_sharpness_the_threshold_bounds(tmp_path):
    adam, gd = tmp_path / "adam.nc", tmp_path / "gd.nc"
    common = ["--max-steps", 5, "--n-eigs", 1, "--dtype", "float64", "--out"]
    printed = invoke(*PROBLEM, "--method", "adam", "--lr", 0.01, *common, adam).output
    invoke(*PROBLEM, "--method", "gd", "--lr", 0.1, *common, gd)
    with open_run(adam) as ds:
        λ1, effective = float(ds.eigenvalue[-1, 0]), float(ds.effective_eigenvalue[-1, 0])
    expected = [
        f"{'λ₁':<20} {λ1:.6g}",
        f"{'effective λ₁':<20} {effective:.6g}",
        f"{'(2+2β₁)/((1−β₁)η)':<20} 3800",
        f"{'bounds':<20} effective λ₁",
    ]
    for output in (printed, invoke("info", adam).output):
        assert [line for line in output.splitlines() if line in expected] == expected
    assert f"{'bounds':<20} λ₁" in invoke("info", gd).output.splitlines()
    with open_run(adam) as ds:
        high = ds.load().assign(effective_eigenvalue=ds.effective_eigenvalue + 1e4)
    high.to_netcdf(tmp_path / "high.nc")
    assert f"{'effective λ₁ crosses at t':<20} 0.01" in invoke("info", tmp_path / "high.nc").output
    said = "a: first time at which the effective sharpness is above the threshold: t = 0.01"
    assert said in invoke("compare", tmp_path / "high.nc", adam).output
