"""What becomes of directions that the gradient has no part in, or hardly any.

Odd targets: chebyshev-3 and -5 by a 1-500-1 tanh net (P = 1,500, float64, to t = 3,000). While its biases are 0 the
net is odd, so that the gradient has no part in the biases but for rounding errors, which the flow itself makes grow
slowly. P = 300: the same by the net of the package, to t = 2,990, where the dense Hessian can be had. Errors are over
the distance travelled: against rkc at rtol 1e-7, or exprb43 with the dense Hessian at rtol 1e-8. A saddle:
a′ = a − a³ from a = 1e-10, beside 199 directions that decay; the time at which a has reached a half, against the
closed form. Each is run with the search for such directions and, marked "tolerance alone", without it.

    python benchmarks/unseen.py [--only odd saddle …] [--out DIR]
"""

import argparse
import contextlib
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import publish
from torch.utils.data import TensorDataset

import gradflow
from gradflow.integrators import exprb
from gradflow.integrators.phi import unseen
from gradflow.loss.criteria import HalfSquaredError
from gradflow.problems.datasets import chebyshev
from gradflow.problems.networks import regression

Row = dict[str, object]
METHODS = [("exprb43", 1e-4), ("exprb43", 1e-6), ("exprb32", 1e-4), ("exprb32", 1e-6)]


@contextlib.contextmanager
def tolerance_alone() -> Iterator[None]:
    """Compute φ-functions to the tolerance, whatever the gradient doesn't see."""
    before = exprb.search, exprb._GROWTH
    exprb.search, exprb._GROWTH = lambda *_: unseen.Search(False, 0.0), math.inf
    try:
        yield
    finally:
        exprb.search, exprb._GROWTH = before


def run(loss: Any, theta: torch.Tensor, method: str, rtol: float, t: float, **options: Any) -> Any:
    """Integrate to t, recording the ends, or the times of `save_at`."""
    if method == "rkc":
        options.pop("dense", None)
    cadence = {} if "save_at" in options else {"save_every": t}
    return gradflow.integrate(
        loss, theta, method=method, rtol=rtol, atol=rtol / 100, t_max=t, **cadence, **options
    )


def variants(methods: list[tuple[str, float]]) -> Iterator[tuple[str, float, Any, str]]:
    """Return every method with the search and without."""
    for method, rtol in methods:
        yield method, rtol, contextlib.nullcontext(), ""
        if method != "rkc":
            yield method, rtol, tolerance_alone(), ", tolerance alone"


def costs(ds: Any) -> Row:
    """Return gradients and products of a run."""
    return {"gradients": int(ds.n_gradients[-1]), "H·v": int(ds.n_hvps[-1])}


def odd(degree: int, seed: int) -> tuple[str, list[Row]]:
    """Follow an odd target with a net that could break the symmetry."""
    data = chebyshev(degree, 20)
    torch.manual_seed(seed)
    net = regression(1, 1, width=500).double()
    loss = gradflow.LossFunction(
        TensorDataset(data.train_inputs, data.train_targets), HalfSquaredError(), net
    )
    theta, rows = loss.parameters(), []
    exact = run(loss, theta, "rkc", 1e-7, 3000.0)
    travelled = np.linalg.norm(exact.params.values - theta.numpy())
    for method, rtol, context, note in variants([("rkc", 1e-4), ("rkc", 1e-6), *METHODS]):
        with context:
            ds = run(loss, theta, method, rtol, 3000.0, dense=False)
        θ = ds.params.values
        rows.append(
            {"method": f"{method}{note}", "rtol": f"{rtol:g}"}
            | costs(ds)
            | {
                "error of θ": f"{np.linalg.norm(θ - exact.params.values) / travelled:.1e}",
                "loss": f"{float(ds.train_loss[-1]):.5f}",
                "norm of the biases": f"{np.linalg.norm(θ[500:1000]):.1e}",
            }
        )
    ends = (
        f"loss {float(exact.train_loss[-1]):.5f}, biases {np.linalg.norm(exact.params.values[500:1000]):.1e}"
    )
    return f"Odd target: chebyshev-{degree}, P = 1,500, seed {seed}; the reference ends at {ends}", rows


def small(degree: int) -> tuple[str, list[Row]]:
    """Compare Krylov spaces with the dense Hessian."""
    loss, _, theta = gradflow.problems.load(
        f"chebyshev-{degree}-20", "regression", "mse", dtype=torch.float64
    )
    t, rows = 2990.0, []
    exact = run(loss, theta, "exprb43", 1e-8, t, dense=True).params.values
    travelled = np.linalg.norm(exact - theta.numpy())
    for method in ("exprb43", "exprb32"):
        for rtol in (1e-4, 1e-5, 1e-6):
            error = {}
            for dense in (True, False):
                ds = run(loss, theta, method, rtol, t, dense=dense)
                error[dense] = np.linalg.norm(ds.params.values - exact) / travelled
            rows.append(
                {"method": method, "rtol": f"{rtol:g}"}
                | costs(ds)
                | {
                    "error": f"{error[False]:.2e}",
                    "over the dense Hessian's": f"{error[False] / error[True]:.6f}",
                }
            )
    return f"Krylov spaces and the dense Hessian: chebyshev-{degree}, P = 300", rows


def saddle(κ: float) -> tuple[str, list[Row]]:
    """Leave a saddle along a direction that starts at 1e-10."""
    P, a0 = 200, 1e-10
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(P, P, generator=g, dtype=torch.float64))[0]
    v, R = Q[:, 0], Q[:, 1:]
    λ = torch.as_tensor(np.concatenate([np.linspace(0, 0.01, P - 11), np.geomspace(1, 100, 10)]))

    def loss(x: torch.Tensor) -> torch.Tensor:
        a = v @ x
        return 0.5 * (λ * (R.T @ x) ** 2).sum() - 0.5 * κ * a**2 + 0.25 * a**4

    start, rows = R @ torch.full((P - 1,), 0.1, dtype=torch.float64) + a0 * v, []
    leaves = math.log(math.sqrt(κ) / a0 / math.sqrt(3)) / κ
    times = np.linspace(0.6, 1.4, 161) * leaves
    for method, rtol, context, note in variants(METHODS):
        with context:
            ds = run(loss, start, method, rtol, 1.4 * leaves, dense=False, save_at=times)
        a = np.abs(ds.theta.values @ v.numpy())
        met = float(np.interp(math.sqrt(κ) / 2, a, ds.time.values))
        rows.append(
            {"method": f"{method}{note}", "rtol": f"{rtol:g}"}
            | costs(ds)
            | {"leaves at": f"{met:.2f}", "error": f"{met / leaves - 1:+.2%}"}
        )
    return f"A saddle with λ = −{κ:g}, left at t = {leaves:.2f}", rows


PARTS = {
    "odd": lambda: [odd(3, 0), odd(3, 1), odd(5, 1)],
    "small": lambda: [small(3), small(5)],
    "saddle": lambda: [saddle(1.0), saddle(0.1)],
}


def main() -> None:
    """Run the parts, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=PARTS, help="the others stay in the table")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    known = Path(args.out) / "unseen.json"
    sections: dict[str, list[Row]] = {}
    if args.only and known.exists():
        sections = json.loads(known.read_text())["tables"]
    for name in args.only or PARTS:
        sections |= dict(PARTS[name]())
        notes = " ".join((__doc__ or "").split("\n\n")[1].split())
        publish("unseen", args.out, "Directions that the gradient hardly sees", sections, notes)


if __name__ == "__main__":
    main()
