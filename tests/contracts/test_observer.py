"""A stranger's observer, by the contract and with public names only: the angle between gradient and top eigenvector."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import gradflow


@dataclass(kw_only=True, eq=False)
class Alignment(gradflow.Observer):
    """Share of the gradient in each of the top eigenvectors, and its mean so far."""

    k: int = 2
    variables = {
        "alignment": gradflow.Variable(("mode",), "squared cosine of gradient and eigenvector"),
        "alignment_mean": gradflow.Variable((), "mean over the records so far"),
    }

    def __post_init__(self):
        self._sum, self._n = 0.0, 0

    def measure(self, point):
        g = point.gradient
        share = (point.top(self.k, tol=1e-6).vectors.T @ g) ** 2 / (g @ g)
        self._sum, self._n = self._sum + float(share.sum()), self._n + 1
        return {"alignment": share, "alignment_mean": self._sum / self._n}

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "n": self._n}

    def load_state_dict(self, state):
        self._sum, self._n = state["sum"], state["n"]


def test_it_is_in_the_file_and_a_resumed_run_goes_on_with_it(tmp_path):
    train, _, theta = gradflow.problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    options = {"method": "rk4", "t_max": 2.0, "save_every": 0.5, "checkpoint_every": 1e-9}

    def dies(report):
        if report.t > 1.2:
            raise RuntimeError("the machine went down")

    whole = gradflow.integrate(train, theta, observe=[Alignment()], out=tmp_path / "whole.nc", **options)
    try:
        gradflow.integrate(
            train, theta, observe=[Alignment()], out=tmp_path / "a.nc", callback=dies, **options
        )
    except RuntimeError:
        resumed = gradflow.integrate(train, theta, observe=[Alignment()], resume=tmp_path / "a.nc", **options)
    assert whole.alignment.dims == ("time", "mode")
    assert whole.alignment.attrs == {"units": "1", "long_name": "squared cosine of gradient and eigenvector"}
    assert np.array_equal(whole.alignment, resumed.alignment)
    assert np.array_equal(whole.alignment_mean, resumed.alignment_mean)
    _, V = torch.linalg.eigh(torch.autograd.functional.hessian(train, theta))
    g = train.gradient(theta)[1]
    expected = (V[:, -2:].flip(1).T @ g) ** 2 / (g @ g)
    assert np.allclose(whole.alignment[0], expected, rtol=1e-4, atol=1e-8)
