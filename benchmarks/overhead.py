"""The time that the driver and the recorder take beside the work itself.

The share of `integrate` that is not spent in gradients, measured inside one run by timing every call of the loss;
gradient descent with records of loss, gradient norm and accuracy, in memory and to a file. The accuracy comes from
the forward pass of the gradient. What a run takes to begin and to end is that of a run of one step.

The time that Python takes inside the loss is what captured gradients and products save: both are timed in turn, in CPU
time, and give the same bits.

    python benchmarks/overhead.py [--out DIR]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import median, publish
from torch import nn
from torch.utils.data import Subset, TensorDataset

import gradflow
from gradflow.problems import load


def problem(n: int, width: int) -> gradflow.LossFunction:
    """Make a classifier on random data."""
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(n, 20, generator=g), torch.randint(0, 10, (n,), generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 10))
    return gradflow.LossFunction(TensorDataset(X, y), nn.CrossEntropyLoss(), net)


@dataclass
class Times:
    """Seconds of a run: in all, and in gradients."""

    total: float
    gradients: float

    @property
    def outside(self) -> float:
        """Seconds that the driver and the recorder took."""
        return self.total - self.gradients


def measure(loss: gradflow.LossFunction, n_steps: int, out: Path | None, every: int) -> Times:
    """Time a run."""
    spent, evaluated = 0.0, loss.evaluated

    def timing(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        started = time.perf_counter()
        try:
            return evaluated(*args, **kwargs)
        finally:
            spent += time.perf_counter() - started

    loss.evaluated = timing
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
        total = time.perf_counter() - started
    finally:
        del loss.evaluated
    if not spent:
        raise RuntimeError("The run took its gradients elsewhere: nothing was timed.")
    return Times(total, spent)


def in_turn(*contestants: Callable[[], object]) -> list[float]:
    """Time functions in turn, and return the median CPU microseconds of a call of each."""
    spent: list[list[float]] = [[] for _ in contestants]
    for _ in range(9):
        for function, taken in zip(contestants, spent, strict=True):
            function()
            started = time.process_time()
            for _ in range(20):
                function()
            taken.append((time.process_time() - started) / 20)
    return [1e6 * median(taken) for taken in spent]


def small_losses() -> dict[str, Callable[[bool], gradflow.LossFunction]]:
    """Return small problems, by name, as functions of whether they are captured."""

    def chebyshev(compile: bool) -> gradflow.LossFunction:
        return load("chebyshev-3-20", "regression", "mse", dtype=torch.float64, compile=compile)[0]

    def digits(n: int, compile: bool) -> gradflow.LossFunction:
        train = load("digits", "fc-tanh", "ce", check=None)[0]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        rows = Subset(train.data.dataset, range(n))
        return gradflow.LossFunction(rows, nn.CrossEntropyLoss(), net, compile=compile)

    return {"chebyshev-3-20, mse, float64": chebyshev} | {
        f"digits, {n}, ce": partial(digits, n) for n in (100, 500)
    }


def captured() -> list[dict[str, object]]:
    """Compare captured gradients and products with those of the net itself."""
    rows: list[dict[str, object]] = []
    for name, make in small_losses().items():
        plain, quick = make(False), make(True)
        theta = plain.parameters()
        at, there = plain.linearize(theta), quick.linearize(theta)
        contestants: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "gradient": (partial(plain.gradient, theta), partial(quick.gradient, theta)),
            "linearize": (partial(plain.linearize, theta), partial(quick.linearize, theta)),
            "H·v": (partial(at.hvp, theta), partial(there.hvp, theta)),
        }
        V = torch.randn(len(theta), 7, generator=torch.Generator().manual_seed(0), dtype=theta.dtype)
        contestants["H·V, 7 vectors"] = (partial(at.hvp, V), partial(there.hvp, V))
        for what, (by_net, by_capture) in contestants.items():
            before, after = in_turn(by_net, by_capture)
            rows.append(
                {
                    "problem": name,
                    "P": f"{len(theta):,}",
                    "what": what,
                    "by the net": f"{before:.0f} µs",
                    "captured": f"{after:.0f} µs",
                    "ratio": f"{before / after:.1f}",
                }
            )
    return rows


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n, width, steps in ((10, 32, 5000), (1000, 32, 5000), (5000, 128, 1000), (20000, 128, 200)):
            loss = problem(n, width)
            begin_and_end = median([measure(loss, 1, None, 1).outside for _ in range(5)])
            for every in (1, 10):
                for where in ("memory", "file"):
                    runs = [
                        measure(
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
                            "milliseconds a step": f"{1e3 * median([r.total for r in runs]) / steps:.3f}",
                            "outside the loss, begin and end": f"{1e3 * begin_and_end:.0f} ms",
                            "a step": f"{1e6 * (median([r.outside for r in runs]) - begin_and_end) / steps:.0f} µs",
                            "share of the run": f"{median([r.outside / r.total for r in runs]):.1%}",
                        }
                    )
        growth = []
        loss = problem(10, 32)
        for steps in (100, 1000, 10000):
            for where in ("memory", "file"):
                out = Path(folder) / f"growth-{steps}.nc" if where == "file" else None
                a_record = measure(loss, steps, out, 1).total / steps
                growth.append(
                    {"records": f"{steps:,}", "to": where, "milliseconds a record": f"{1e3 * a_record:.3f}"}
                )
    sections = {
        "Captured gradients and products": captured(),
        "Share of the run": rows,
        "Growth with the number of records (10 samples)": growth,
    }
    publish("overhead", args.out, "Overhead", sections, (__doc__ or "").split("\n\n")[1].replace("\n", " "))


if __name__ == "__main__":
    main()
