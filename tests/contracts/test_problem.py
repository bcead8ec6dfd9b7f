"""A stranger's problem, by the contract and with public names only: from a module of their own, on the command line."""

import subprocess
import sys

import gradflow

MODULE = '''
import torch

import gradflow


def problem():
    """Noisy sines, a small network, and a penalty on its weights."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
    y = torch.sin(3 * x) + 0.1 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    data = torch.utils.data.TensorDataset
    train = gradflow.LossFunction(data(x[::2], y[::2]), torch.nn.MSELoss(), net)
    test = gradflow.LossFunction(data(x[1::2], y[1::2]), torch.nn.MSELoss(), net)
    return train + 1e-3 * gradflow.penalty(lambda theta: theta.square().sum()), test
'''


def test_it_runs_from_the_command_line(tmp_path):
    (tmp_path / "sines.py").write_text(MODULE, encoding="utf-8")
    command = [sys.executable, "-m", "gradflow", "run", "sines:problem", "--t-max", "2", "--n-eigs", "1"]
    done = subprocess.run(
        [*command, "--method", "exprb43", "-o", "rtol=1e-5", "--out", "run.nc"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with gradflow.open_run(tmp_path / "run.nc") as run:
        assert run.attrs["method"] == "exprb43"
        assert float(run.train_loss[-1]) < float(run.train_loss[0])
        assert bool(run.test_loss.notnull().all())
