"""Wrong uses: each raises one clear error at once, of the right type, leaves no file behind and no thread running."""

import os
import random
import threading

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from helpers.classification import data, network, problem
from helpers.cli import invoke
from helpers.problems import bowl
from torch import nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import gradflow
from gradflow import LossFunction, open_run, problems, steps
from gradflow.errors import GradflowError

double = torch.float64
ONES = torch.ones(3, dtype=double)


def run(out=None, loss=bowl, params=ONES, **kwargs):
    return gradflow.integrate(
        loss, params, **({"method": "gd", "lr": 0.1, "max_steps": 2, "out": out} | kwargs)
    )


def loss(dataset=None, criterion=None, net=None, **kwargs):
    X, y = data()
    dataset = TensorDataset(X, y) if dataset is None else dataset
    return LossFunction(
        dataset, nn.CrossEntropyLoss() if criterion is None else criterion, net or network(), **kwargs
    )


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network().requires_grad_(False)

    def forward(self, x):
        return self.inner(x)


class Empty(nn.Module):
    def forward(self, x):
        return x[:, :3]


class Augmented(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return data()[0][i] + random.random(), data()[1][i]


class Iterates(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from zip(*data(), strict=True)


class InPlace(nn.Module):
    def forward(self, output, target):
        output[:] = 0
        return output.sum()


class Words(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return "word", 1


def with_nan(where):
    X, y = data()
    X = X.clone()
    X[3, 2] = where
    return TensorDataset(X, y)


def no_samples():
    X, y = data()
    return TensorDataset(X[:0], y[:0])


def write(path, content):
    path.write_bytes(content)
    return path


def truncated(tmp):
    xr.Dataset({"train_loss": ("time", np.zeros(99))}).to_netcdf(tmp / "ok.nc")
    content = (tmp / "ok.nc").read_bytes()
    (tmp / "ok.nc").unlink()
    return write(tmp / "cut.nc", content[: len(content) // 2])


def foreign(tmp):
    with netCDF4.Dataset(tmp / "foreign.nc", "w") as file:
        file.createDimension("x", 2)
        file.createVariable("a", "f8", ("x",))[:] = [1, 2]
    return tmp / "foreign.nc"


WRONG = {
    # the loss
    "a net for a loss": (
        lambda tmp: run(tmp / "x.nc", loss=network()),
        TypeError,
        "LossFunction or a callable",
    ),
    "a loss that is none": (lambda tmp: run(tmp / "x.nc", loss=3.0), TypeError, "LossFunction or a callable"),
    "a loss of a vector": (
        lambda tmp: run(tmp / "x.nc", loss=lambda x: x**2),
        ValueError,
        r"scalar .*shape \(3,\)",
    ),
    "a loss of NumPy": (
        lambda tmp: run(tmp / "x.nc", loss=lambda x: float(x.detach().sum())),
        ValueError,
        "scalar torch.Tensor, got float",
    ),
    "a loss of whole numbers": (
        lambda tmp: run(tmp / "x.nc", loss=lambda x: x.long().sum()),
        ValueError,
        r"scalar torch.Tensor, got shape \(\) in torch.int64",
    ),
    "a loss that can't be differentiated": (
        lambda tmp: run(tmp / "x.nc", loss=lambda x: x.detach().sum()),
        ValueError,
        "doesn't depend on θ through differentiable torch functions",
    ),
    "a loss that isn't finite": (
        lambda tmp: run(tmp / "x.nc", loss=lambda x: x.sum() / 0),
        ValueError,
        "finite loss",
    ),
    "NaN in the data": (
        lambda tmp: run(tmp / "x.nc", loss=loss(with_nan(float("nan"))), params=None),
        ValueError,
        "finite",
    ),
    "inf in the data": (
        lambda tmp: run(tmp / "x.nc", loss=loss(with_nan(float("inf"))), params=None),
        ValueError,
        "finite",
    ),
    "no data": (lambda tmp: loss(no_samples()), ValueError, "The data set is empty"),
    "a data set that can't be indexed": (
        lambda tmp: loss(Iterates()),
        TypeError,
        "map-style data set with __len__ and __getitem__, got Iterates",
    ),
    "a list of numbers for data": (
        lambda tmp: loss([1, 2, 3]),
        TypeError,
        r"items must be \(inputs…, target\)",
    ),
    "data without targets": (lambda tmp: loss(TensorDataset(data()[0])), TypeError, r"inputs…, target"),
    "words for data": (lambda tmp: loss(Words()), TypeError, "collate to tensors"),
    "a loader that chooses": (
        lambda tmp: loss(DataLoader(TensorDataset(*data()), sampler=SubsetRandomSampler([0]))),
        ValueError,
        "chooses samples by a SubsetRandomSampler",
    ),
    "a shuffling loader": (lambda tmp: loss(shuffle=True), ValueError, "shuffle=True can't be used"),
    "a sampler": (lambda tmp: loss(sampler=[1, 2]), ValueError, "sampler=.* can't be used"),
    "drop_last": (lambda tmp: loss(drop_last=True), ValueError, "drop_last=True can't be used"),
    "an option that loaders don't have": (
        lambda tmp: loss(num_worker=2),
        TypeError,
        "did you mean 'num_workers'",
    ),
    "random augmentation": (lambda tmp: loss(Augmented()), ValueError, "random augmentation"),
    "dropout": (
        lambda tmp: loss(net=nn.Sequential(network(), nn.Dropout())),
        ValueError,
        r"Dropout\(p=0.5, inplace=False\) in train mode",
    ),
    "a criterion for a class": (
        lambda tmp: loss(criterion=nn.CrossEntropyLoss),
        TypeError,
        "instance as criterion",
    ),
    "a criterion of NumPy": (
        lambda tmp: loss(criterion=lambda o, t: np.float64(1.0)),
        ValueError,
        "must return a torch.Tensor",
    ),
    "a criterion of another shape": (
        lambda tmp: loss(criterion=lambda o, t: torch.ones(7)),
        ValueError,
        r"returned shape \(7,\)",
    ),
    "a criterion that couples samples": (
        lambda tmp: loss(criterion=lambda o, t: o.std(), batch_size=9),
        ValueError,
        "can't be computed in chunks",
    ),
    "no criterion": (lambda tmp: loss(criterion=7), TypeError, "criterion to be a callable"),
    "a net that is none": (
        lambda tmp: LossFunction(TensorDataset(*data()), nn.CrossEntropyLoss(), len),
        TypeError,
        "nn.Module",
    ),
    "a net without parameters": (lambda tmp: loss(net=Empty()), ValueError, "no trainable parameters"),
    "a net that is frozen": (lambda tmp: loss(net=Frozen()), ValueError, "all frozen"),
    "a net in half precision": (
        lambda tmp: loss(net=network().half()),
        TypeError,
        "net in float32 or float64, got torch.float16",
    ),
    "a net in two precisions": (
        lambda tmp: loss(net=nn.Sequential(network(), nn.Linear(3, 3).double())),
        ValueError,
        "one device and in one dtype",
    ),
    "a lazy net": (lambda tmp: loss(net=nn.LazyLinear(3)), ValueError, "lazy parameters"),
    "a batch size of zero": (lambda tmp: loss(batch_size=0), ValueError, "batch_size ≥ 1"),
    "a batch size that is a fraction": (
        lambda tmp: loss(batch_size=0.5),
        TypeError,
        "batch_size to be an int",
    ),
    "batch-norm with one sample": (
        lambda tmp: loss(
            TensorDataset(data()[0][:1], data()[1][:1]), net=nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
        ),
        ValueError,
        "at least two samples in a chunk",
    ),
    # θ
    "θ of another length": (
        lambda tmp: run(tmp / "x.nc", loss=problem(), params=ONES.float()),
        ValueError,
        r"shape \(53,\)",
    ),
    "θ as a matrix": (
        lambda tmp: run(tmp / "x.nc", params=torch.ones(3, 1)),
        ValueError,
        r"flat θ.*\(3, 1\)",
    ),
    "θ as a list": (lambda tmp: run(tmp / "x.nc", params=[1.0]), TypeError, "torch.Tensor, got list"),
    "θ of whole numbers": (
        lambda tmp: run(tmp / "x.nc", params=torch.ones(3, dtype=torch.int64)),
        TypeError,
        "float32 or float64",
    ),
    "θ in half precision": (
        lambda tmp: run(tmp / "x.nc", params=torch.ones(3).half()),
        TypeError,
        "float32 or float64",
    ),
    "θ on the meta device": (
        lambda tmp: run(tmp / "x.nc", params=torch.ones(3, device="meta")),
        ValueError,
        "meta device",
    ),
    "θ with NaN": (
        lambda tmp: run(tmp / "x.nc", params=ONES * float("nan")),
        ValueError,
        "finite loss and gradient",
    ),
    "no θ for a callable": (lambda tmp: run(tmp / "x.nc", params=None), ValueError, "needs a network"),
    # the run
    "no method of that name": (
        lambda tmp: run(tmp / "x.nc", method="rk44"),
        ValueError,
        "did you mean 'rk4'",
    ),
    "an option that the method hasn't": (
        lambda tmp: run(tmp / "x.nc", alpha=1.0),
        TypeError,
        "no option 'alpha'",
    ),
    "an argument with a slip": (
        lambda tmp: run(tmp / "x.nc", save_evry=1.0),
        TypeError,
        "did you mean 'save_every'",
    ),
    "no end": (lambda tmp: run(tmp / "x.nc", max_steps=None), ValueError, "has no end"),
    "t_max = 0": (lambda tmp: run(tmp / "x.nc", t_max=0.0), ValueError, "t_max > 0"),
    "a negative t_max": (lambda tmp: run(tmp / "x.nc", t_max=-1.0), ValueError, "t_max > 0"),
    "t_max as text": (lambda tmp: run(tmp / "x.nc", t_max="1"), TypeError, "t_max to be a number"),
    "times outside": (lambda tmp: run(tmp / "x.nc", t_max=1.0, save_at=[2.0]), ValueError, "within t_max"),
    "times unsorted": (
        lambda tmp: run(tmp / "x.nc", t_max=1.0, save_at=[0.5, 0.1]),
        ValueError,
        "increase strictly",
    ),
    "times twice": (
        lambda tmp: run(tmp / "x.nc", t_max=1.0, save_at=[0.5, 0.5]),
        ValueError,
        "increase strictly",
    ),
    "negative times": (
        lambda tmp: run(tmp / "x.nc", t_max=1.0, save_at=[-0.5]),
        ValueError,
        "finite times ≥ 0",
    ),
    "more eigenvalues than parameters": (
        lambda tmp: run(tmp / "x.nc", n_eigs=4),
        ValueError,
        "n_eigs ≤ P = 3",
    ),
    "a negative learning rate": (lambda tmp: run(tmp / "x.nc", lr=-0.1), ValueError, "lr > 0"),
    "a learning rate that isn't a number": (
        lambda tmp: run(tmp / "x.nc", lr=float("nan")),
        ValueError,
        "lr to be finite",
    ),
    "a tolerance of zero": (
        lambda tmp: gradflow.integrate(bowl, ONES, method="rkc", rtol=0.0, max_steps=2, out=tmp / "x.nc"),
        ValueError,
        "rtol > 0",
    ),
    "a callback that is none": (
        lambda tmp: run(tmp / "x.nc", callback=3),
        TypeError,
        "callback as a callable",
    ),
    "a test set that is none": (
        lambda tmp: run(tmp / "x.nc", test=bowl),
        TypeError,
        "test as a LossFunction",
    ),
    "an accuracy above one": (
        lambda tmp: run(tmp / "x.nc", loss=problem(), params=None, acc_goal=99),
        ValueError,
        "Expected acc_goal ≤ 1, got 99.",
    ),
    "no such failure mode": (lambda tmp: run(tmp / "x.nc", on_failure="ignore"), ValueError, "on_failure"),
    "steps of nothing": (lambda tmp: run(tmp / "x.nc", save_every=steps(0)), ValueError, "≥ 1"),
    # files
    "a directory for a file": (lambda tmp: run(tmp), ValueError, "got the directory"),
    "a directory that isn't there": (lambda tmp: run(tmp / "none" / "x.nc"), ValueError, "doesn't exist"),
    "a file for a directory": (lambda tmp: run(write(tmp / "f", b"") / "x.nc"), ValueError, "doesn't exist"),
    "a run that isn't there": (lambda tmp: open_run(tmp / "x.nc"), FileNotFoundError, "No run at"),
    "a directory for a run": (lambda tmp: open_run(tmp), ValueError, "got the directory"),
    "a text for a run": (
        lambda tmp: open_run(write(tmp / "x.nc", b"hello")),
        ValueError,
        "can't be read as netCDF",
    ),
    "an empty file for a run": (
        lambda tmp: open_run(write(tmp / "x.nc", b"")),
        ValueError,
        "can't be read as netCDF",
    ),
    "half a run": (lambda tmp: open_run(truncated(tmp)), ValueError, "can't be read as netCDF"),
    "a foreign file to compare": (
        lambda tmp: gradflow.compare(open_run(foreign(tmp)), open_run(tmp / "foreign.nc")),
        ValueError,
        "run of gradflow",
    ),
    "a foreign file to sum up": (
        lambda tmp: gradflow.summary(open_run(foreign(tmp))),
        ValueError,
        "run of gradflow",
    ),
    "a file that exists": (
        lambda tmp: [run(write(tmp / "x.nc", b"mine"))],
        FileExistsError,
        "overwrite=True",
    ),
    # problems
    "no such data set": (
        lambda tmp: problems.load("cifar", "fc-tanh", "ce"),
        ValueError,
        "did you mean 'cifar10'",
    ),
    "no such network": (
        lambda tmp: problems.load("digits", "fc-tan", "ce"),
        ValueError,
        "did you mean 'fc-tanh'",
    ),
    "no such loss": (lambda tmp: problems.load("digits", "fc-tanh", "bce"), ValueError, "did you mean 'ce'"),
    "no such device": (
        lambda tmp: problems.load("digits", "fc-tanh", "ce", device="gpu"),
        ValueError,
        "expected cpu, cuda",
    ),
    "a seed that is none": (
        lambda tmp: problems.load("digits", "fc-tanh", "ce", seed=1.5),
        ValueError,
        "seed as an int",
    ),
}


@pytest.fixture
def no_step(monkeypatch):
    """Fail at the first step: a mistake is found before."""

    def advance(*args, **kwargs):
        pytest.fail("a step was made")

    monkeypatch.setattr(gradflow.driver.Stepper, "advance", advance)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("name", WRONG)
def test_through_the_api(name, tmp_path):
    wrong, kind, text = WRONG[name]
    threads = threading.active_count()
    with torch.random.fork_rng(), pytest.raises(kind, match=text) as caught:
        wrong(tmp_path)
    assert isinstance(caught.value, GradflowError)
    assert len(str(caught.value)) < 2000
    assert threading.active_count() == threads
    left = {p.name for p in tmp_path.iterdir()}
    assert left <= {"f", "cut.nc", "foreign.nc", "x.nc"}
    if "x.nc" in left:  # what was there before stays as it was
        assert (tmp_path / "x.nc").read_bytes() in {b"mine", b"hello", b""}


RUN = ["run", "chebyshev-3-20", "regression", "mse"]
COMMANDS = {
    "no command": (["rnu"], "No such command 'rnu'"),
    "no data set": (["run"], "Missing argument"),
    "no end": ([*RUN, "--method", "gd", "--lr", 0.1], "give --t-max"),
    "no lr": ([*RUN, "--method", "gd", "--max-steps", 1], "needs lr: pass --lr"),
    "a slip in a flag": (
        [*RUN, "--method", "gd", "--lrr", 0.1],
        "Method 'gd' has no option 'lrr'; did you mean 'lr'? Valid: lr.",
    ),
    "text for a number": ([*RUN, "--method", "gd", "--lr", "fast"], "not a valid float"),
    "no cadence": ([*RUN, "--method", "gd", "--lr", 0.1, "--save-every", "often"], "expected a time such as"),
    "a directory for a file": (
        [*RUN, "--method", "gd", "--lr", 0.1, "--max-steps", 1, "--out", "."],
        "directory",
    ),
    "no data": (
        [
            "run",
            "cifar10",
            "fc-tanh",
            "ce",
            "--method",
            "gd",
            "--lr",
            0.1,
            "--max-steps",
            1,
            "--data",
            "none",
        ],
        "No CIFAR-10 in",
    ),
    "a loss without classes": (
        ["run", "chebyshev-3-20", "regression", "ce", "--method", "gd", "--lr", 0.1],
        "needs classes",
    ),
    "no file": (["info", "none.nc"], "No run at"),
    "no files": (["compare", "none.nc", "none2.nc"], "No run at"),
    "a device that isn't there": (
        [*RUN, "--method", "gd", "--lr", 0.1, "--max-steps", 1, "--device", "tpu"],
        "No device",
    ),
    "options of another method": (
        [*RUN, "--method", "gd", "--lr", 0.1, "--max-steps", 1, "--alpha", 1],
        "no option 'alpha'",
    ),
}


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("name", COMMANDS)
def test_from_the_command_line(name, tmp_path, monkeypatch):
    args, text = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRADFLOW_DATA", raising=False)
    result = invoke(*args)
    assert result.exit_code != 0
    assert text in result.output
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["λ₁ über alles.nc", "with space.nc", "a'b.nc", "100%.nc"])
def test_any_name_will_do(name, tmp_path):
    run(tmp_path / name).close()
    assert open_run(tmp_path / name).attrs["status"] == "max_steps"
    with xr.open_dataset(tmp_path / name) as ds:
        assert len(ds.time) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="can't be written to"):
        run(tmp_path / "x.nc")
