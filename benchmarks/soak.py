"""What survives when a run is killed, again and again, and whether memory stays flat.

A run is killed (SIGKILL) at random moments and resumed, until it has ended. Before each resume its records are read:
they must be the first records of the run that nobody killed, bit for bit, and reach to within the promised interval of
the kill. At the end the file must equal the uninterrupted one, wall time apart. Workers are forked after the imports.
The other table is the resident memory of one process over a long run with a record at every step.

    python benchmarks/soak.py [--kills 300] [--steps 100000] [--out DIR]
"""

import argparse
import gc
import multiprocessing
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from common import publish

import gradflow

SYNC_EVERY, CHECKPOINT_EVERY = 0.05, 0.2
METHODS = {
    "gd": {"method": "gd", "lr": 0.1, "max_steps": 400},
    "adam, mini-batches": {"method": "adam", "lr": 0.01, "batch_size": 7, "max_steps": 400},
    "exprb32": {"method": "exprb32", "dense": False, "t_max": 400.0, "save_every": 2.0},
    "rk4": {"method": "rk4", "t_max": 40.0, "save_every": 0.2},
}


def work(path: Path, options: dict[str, object], *, pause: float = 0.002) -> xr.Dataset:
    """Run, or resume; with a pause after each step, so that a run lasts."""
    torch.set_num_threads(1)
    train, test, theta = gradflow.problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    partial = path.with_name(path.name + ".partial")
    where = {"resume": path} if list(partial.glob("checkpoint-*.pt")) else {"out": path, "overwrite": True}
    return gradflow.integrate(
        train, theta, test=test, n_eigs=2, eigs_every=gradflow.steps(5), n_projections=3, sync_every=SYNC_EVERY,
        checkpoint_every=CHECKPOINT_EVERY, callback=lambda report: time.sleep(pause), **where, **options,
    )  # fmt: skip


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Whether two runs are equal, wall time and history apart."""
    if set(a.variables) != set(b.variables):
        return False
    arrays = all(
        np.array_equal(a[name], b[name], equal_nan=a[name].dtype.kind == "f")
        for name in a.variables
        if name != "wall_time"
    )
    return arrays and all(str(a.attrs[k]) == str(b.attrs.get(k)) for k in a.attrs if k != "history")


def soak(options: dict[str, object], n_kills: int, seed: int) -> dict[str, object]:
    """Kill a run n times, over as many runs as that takes; say what was lost."""
    folder, rng = Path(tempfile.mkdtemp()), random.Random(seed)
    whole = work(folder / "whole.nc", options, pause=0.0).load()
    kills = runs = lost = 0
    latest = 0.0
    equal = True
    fork = multiprocessing.get_context("fork")
    while kills < n_kills:
        path = folder / f"{runs}.nc"
        process = fork.Process(target=work, args=(path, options))
        process.start()
        process.join(rng.uniform(0.05, 1.0))
        if process.is_alive():
            process.kill()
            killed = time.time()
            process.join()
            kills += 1
            segments = sorted(path.with_name(path.name + ".partial").glob("segment-*.nc"))
            if not path.exists() and segments:
                part = gradflow.open_run(path)
                n = len(part.time)
                lost += not all(
                    np.array_equal(part[v], whole[v][:n], equal_nan=True)
                    for v in ("time", "theta", "eigenvalue", "train_loss")
                )
                latest = max(latest, killed - segments[-1].stat().st_mtime)
        if path.exists():
            equal &= same(whole, gradflow.open_run(path).load())
            runs += 1
    path = folder / f"{runs}.nc"
    if path.with_name(path.name + ".partial").exists():
        equal &= same(whole, work(path, options, pause=0.0).load())
        runs += 1
    shutil.rmtree(folder)
    return {
        "kills": kills,
        "runs ended": runs,
        "records lost or changed": lost,
        "longest time since the last segment, s": f"{latest:.2f}",
        "files equal to the uninterrupted one": "all" if equal else "NOT ALL",
    }


def resident() -> float:
    """Return the resident memory of this process, MiB."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def memory(n_steps: int, make: Callable[..., xr.Dataset]) -> list[dict[str, object]]:
    """Measure resident memory along a run with a record at every step."""
    rows: list[dict[str, object]] = []
    marks = {n_steps * k // 10 for k in (1, 2, 4, 6, 8, 10)}

    def look(report: gradflow.StepReport) -> None:
        if report.step in marks:
            rows.append(
                {"steps and records": f"{report.step:,}", "resident memory, MiB": f"{resident():.1f}"}
            )

    make(look).close()
    rows.append({"steps and records": "merged", "resident memory, MiB": f"{resident():.1f}"})
    return rows


def main() -> None:
    """Run both, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=300, help="over all methods")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for i, (name, options) in enumerate(METHODS.items()):
        rows.append({"method": name, **soak(options, args.kills // len(METHODS), seed=i)})
        print(rows[-1], flush=True)

    with tempfile.TemporaryDirectory() as folder:
        scale = torch.linspace(0.1, 1.0, 50, dtype=torch.float64)

        def make(look: Callable[[gradflow.StepReport], None]) -> xr.Dataset:
            return gradflow.integrate(
                lambda x: 0.5 * (scale * x**2).sum(), torch.ones(50, dtype=torch.float64), method="gd", lr=0.01,
                max_steps=args.steps, out=Path(folder) / "x.nc", sync_every=1.0, checkpoint_every=5.0, callback=look,
            )  # fmt: skip

        long = memory(args.steps, make)
    notes = (
        f"Records are promised to be on disk within sync_every = {SYNC_EVERY} s of being made, at the end of the step "
        f"then; checkpoints every {CHECKPOINT_EVERY} s. The time since the last segment includes the step that was "
        "going on, the start of a resumed process, and the writing of the segment that the kill cut off."
    )
    publish(
        "soak",
        args.out,
        "Killed runs, and memory",
        {"SIGKILL at random moments": rows, "Memory": long},
        notes,
    )


if __name__ == "__main__":
    main()
