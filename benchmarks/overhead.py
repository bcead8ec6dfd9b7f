"""The time that the driver and the recorder take beside the work itself.

The share of `integrate` that is not spent in gradients and products, measured inside one run by timing every call
of the loss; gradient descent, one record a step (loss and gradient norm), in memory and to a file.

    python benchmarks/overhead.py [--out DIR]
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import median, publish
from torch import nn
from torch.utils.data import TensorDataset

import gradflow


def problem(n: int, width: int) -> gradflow.LossFunction:
    """Make a classifier on random data."""
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(n, 20, generator=g), torch.randint(0, 10, (n,), generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 10))
    return gradflow.LossFunction(TensorDataset(X, y), nn.CrossEntropyLoss(), net)


def share(loss: gradflow.LossFunction, n_steps: int, out: Path | None, every: int) -> tuple[float, float]:
    """Give (seconds a step, part of them outside the loss)."""
    inside = 0.0

    def timing(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                inside += time.perf_counter() - started

        return run

    gradient, evaluate = loss.gradient, loss.evaluate
    loss.gradient, loss.evaluate = timing(gradient), timing(evaluate)
    started = time.perf_counter()
    try:
        gradflow.integrate(
            loss,
            method="gd",
            lr=0.01,
            max_steps=n_steps,
            save_every=gradflow.steps(every),
            out=out,
            progress=False,
        )
    finally:
        del loss.gradient, loss.evaluate
    elapsed = time.perf_counter() - started
    return elapsed / n_steps, 1 - inside / elapsed


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n, width, steps in ((10, 32, 1000), (1000, 32, 1000), (5000, 128, 200), (20000, 128, 100)):
            loss = problem(n, width)
            for every in (1, 10):
                for where in ("memory", "file"):
                    runs = [
                        share(
                            loss,
                            steps,
                            Path(folder) / f"{n}-{width}-{every}-{i}.nc" if where == "file" else None,
                            every,
                        )
                        for i in range(3)
                    ]
                    rows.append(
                        {
                            "samples": n,
                            "P": f"{loss.n_parameters:,}",
                            "a record every": f"{every} steps" if every > 1 else "step",
                            "to": where,
                            "milliseconds a step": f"{1e3 * median([r[0] for r in runs]):.3f}",
                            "outside the loss": f"{median([r[1] for r in runs]):.1%}",
                        }
                    )
        growth = []
        loss = problem(10, 32)
        for steps in (100, 1000, 10000):
            for where in ("memory", "file"):
                out = Path(folder) / f"growth-{steps}.nc" if where == "file" else None
                a_step, _ = share(loss, steps, out, 1)
                growth.append(
                    {"records": f"{steps:,}", "to": where, "milliseconds a record": f"{1e3 * a_step:.3f}"}
                )
    sections = {"Share of the run": rows, "Growth with the number of records (10 samples)": growth}
    publish("overhead", args.out, "Overhead", sections, (__doc__ or "").split("\n\n")[1].replace("\n", " "))


if __name__ == "__main__":
    main()
