"""Flows at the edge of stability: how well they predict gradient descent on networks, and what they cost.

    python benchmarks/edge_flows.py networks --data DIR --work DIR
    python benchmarks/edge_flows.py cost --work DIR
    python benchmarks/edge_flows.py publish --work DIR

Runs of networks are kept in --work; what is there isn't run again. `publish` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import edge_flows_cost
import torch
import xarray as xr
from common import publish
from torch import nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow.problems.datasets import load_data

#: Net, criterion, learning rate, steps of gradient descent.
CONFIGURATIONS = (
    ("cnn-gelu", "mse", 0.1, 250),
    ("fc-tanh", "mse", 0.024, 600),
    ("fc-tanh", "ce", 0.1, 250),
    ("cnn-gelu", "ce", 0.15, 200),
    ("fc-tanh", "mse", 0.02, 800),
    ("cnn-gelu", "mse", 0.07, 330),
    ("fc-tanh", "ce", 0.08, 300),
    ("cnn-gelu", "ce", 0.1, 300),
)
FLOWS: dict[str, dict[str, Any]] = {
    "central": {},
    "edge": {},
    "rod": {"without_drift": True},
    "gradient": {},
}
#: Tolerance of the flows' methods. Paths are short beside ‖θ‖: at 1e-3 a step of the central flow may err by a
#: hundredth of its path.
RTOL = {"central": 1e-4, "edge": 1e-3, "rod": 1e-3, "gradient": 1e-3}
#: Steps between records, odd so that both phases of an oscillation are seen; and between eigenvalues.
EVERY, EIGS_EVERY = 5, 15
#: Standard deviation of the Gaussian that averages gradient descent, in steps.
SMOOTH = 25.0
#: Seconds after which a run is ended.
LONGEST = 600.0


def networks(directory: str | None, work: Path, flows: list[str]) -> None:
    """Measure the rows of real networks that `work` hasn't got."""
    for net, criterion, lr, n_steps in CONFIGURATIONS:
        name = f"{net}_{criterion}_{lr:g}"
        loss = problem(net, criterion, directory)
        gd = recorded(
            loss, work / f"{name}_gd.nc", lr, n_steps, method="gd", method_options={"lr": lr}, midpoint=True
        )
        for flow in flows:
            options = FLOWS[flow]
            path = work / f"{name}_{flow}.nc"
            try:
                of_flow = {} if flow == "gradient" else {"flow_options": {"lr": lr, **options}}
                run = recorded(loss, path, lr, n_steps, flow=flow, method="auto", rtol=RTOL[flow], **of_flow)
            except gradflow.errors.GradflowError as error:  # a row of its own
                row: dict[str, object] = {"failed": f"{type(error).__name__}: {error}"}
            else:
                row = measured(gd, run, lr)
            row = {"net": net, "criterion": criterion, "η": lr, "flow": flow, "rtol": RTOL[flow], **row}
            (work / f"{name}_{flow}.json").write_text(json.dumps(row, ensure_ascii=False))
            print(row, flush=True)


def recorded(loss: gradflow.LossFunction, path: Path, lr: float, n_steps: int, **options: Any) -> xr.Dataset:
    """Return a run, from its file if that is complete."""
    if path.exists():
        return gradflow.open_run(path).load()
    unit = {} if options["method"] == "gd" else {"of": lr}
    unfinished = path.with_suffix(".part.nc")
    run = gradflow.integrate(
        loss,
        t_max=n_steps * lr,
        save_every=gradflow.steps(EVERY if options["method"] == "gd" else EIGS_EVERY, **unit),
        n_eigs=2,
        eigs_every=gradflow.steps(EIGS_EVERY, **unit),
        params_every=gradflow.steps(EIGS_EVERY, **unit),
        max_wall_time=LONGEST,
        out=str(unfinished),
        overwrite=True,
        progress=False,
        **options,
    ).load()
    unfinished.rename(path)
    return run


def measured(gd: xr.Dataset, run: xr.Dataset, lr: float) -> dict[str, object]:
    """Return what the table says of a flow."""
    seen = gradflow.compare(gd, run, smooth=SMOOTH)
    n_steps = float(run.time[-1]) / lr
    share = {
        name: float(run[name][-1]) / n_steps for name in ("n_gradients", "n_hvps", "n_third") if name in run
    }
    return {
        "steps": round(n_steps),
        "crossing": round(float(seen.crossing_time_a) / lr),
        "most active": int(run.n_active.max()) if "n_active" in run else None,
        "loss error": float(seen.mean_loss_error),
        "λ₁ error": float(seen.mean_sharpness_error),
        "distance to midpoints": float(seen.mean_midpoint_distance),
        "to iterates": float(seen.mean_distance),
        "path": float(seen.path_length[-1]),
        "seconds": float(run.wall_time[-1]) if "wall_time" in run else None,
        "status": run.attrs.get("status"),
        **share,
    }


def problem(net: str, criterion: str, directory: str | None) -> gradflow.LossFunction:
    """Return the loss on 1,000 images of CIFAR-10, with torch's default weights from seed 0, in float32."""
    if net != "cnn-gelu":
        return gradflow.problems.load("cifar10-1k", net, criterion, data=directory)[0]
    data = load_data("cifar10-1k", directory)
    x, labels = data.train_inputs.float(), data.train_targets
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = cnn_gelu()
    if criterion == "mse":
        one_hot = nn.functional.one_hot(labels, 10).float()
        return gradflow.LossFunction(
            TensorDataset(x, one_hot), gradflow.HalfSquaredError(), made, batch_size=100
        )
    return gradflow.LossFunction(TensorDataset(x, labels), nn.CrossEntropyLoss(), made, batch_size=100)


def cnn_gelu() -> nn.Module:
    """Two convolutions of 16 channels and stride 2."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GELU()),
        *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.GELU()),
        *(nn.Flatten(), nn.Linear(1024, 10)),
    )


def tables(work: Path) -> dict[str, list[dict[str, object]]]:
    """Return the tables of what has been measured."""
    of_networks = []
    for net, criterion, lr, _ in CONFIGURATIONS:
        for flow in FLOWS:
            path = work / f"{net}_{criterion}_{lr:g}_{flow}.json"
            if path.exists():
                of_networks.append(_row(json.loads(path.read_text())))
    of_central = [_row(row) for k in (1, 2, 3) for row in _read(work / f"cost_central_{k}.json")]
    of_all = [_row(row) for flow in FLOWS for row in _read(work / f"cost_whole_{flow}.json")]
    found = {
        "Networks": of_networks,
        "Gradient equivalents a step: the central flow's schemes": of_central,
        "Gradient equivalents a step: a whole run": of_all,
    }
    return {heading: _even(rows) for heading, rows in found.items() if rows}


def _even(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Give all rows all columns."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]


def _read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def _row(row: dict[str, Any]) -> dict[str, object]:
    """Return a row with its numbers as they are printed."""
    return {name: _shown(name, value) for name, value in row.items() if name not in {"price", "seconds"}}


def _shown(name: str, value: object) -> object:
    if not isinstance(value, float):
        return "" if value is None else value
    if name in {"loss error", "λ₁ error", "error"}:
        return f"{value:.2%}"
    return f"{value:.3g}"


NOTES_ON_NETWORKS = """\
Networks: 1,000 images of CIFAR-10, float32; `fc-tanh` has two hidden layers of 200 units, `cnn-gelu` two
convolutions of 16 channels and stride 2. Gradient descent against flows, all by `method="auto"` with
the `rtol` given; the rod flow with `without_drift=True`. `loss error`: mean relative error of the predicted training
loss from the crossing on, where gradient descent is smoothed by a Gaussian of 25 steps; `λ₁ error`: of the sharpness,
against that at the midpoints; distances are means from the crossing on. `path` is the length of the flow's
path; counts are per step of gradient descent. A run ends after 600 s on a core that isn't its own (`max_wall_time`):
`steps` says how far it came, so rows of one net are means over windows of unlike length."""

NOTES_ON_COST = """\
Cost: a tanh net with two hidden layers of 24 on 300 digits, mean squared error, float64, η = 2. `error`:
the largest relative error of the predicted loss in a window with 1, 2 or 3 critical directions, against the
projected scheme at rtol 1e-6. An equivalent is a gradient; products with the Hessian and third derivatives
count at prices that are measured at the same θ (in the JSON file). `eigensolve once a step` is what Euler's
scheme would take if three in four eigensolves were replaced by k + 1 products, as in its authors' package;
all else is measured."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("networks", "cost", "publish"))
    parser.add_argument("--data", default=os.environ.get("GRADFLOW_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", default="docs/benchmarks")
    parser.add_argument("--flows", nargs="+", default=list(FLOWS), choices=list(FLOWS))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if arguments.part == "networks":
        networks(arguments.data, arguments.work, arguments.flows)
    elif arguments.part == "cost":
        edge_flows_cost.central_costs(arguments.work)
        edge_flows_cost.whole_costs(arguments.work)
    else:
        found = tables(arguments.work)
        notes = "\n\n".join([NOTES_ON_NETWORKS] * ("Networks" in found) + [NOTES_ON_COST])
        publish("edge_flows", arguments.out, "Flows at the edge of stability", found, notes)
