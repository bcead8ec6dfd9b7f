"""What the central flow and the edge flow cost, in gradients, for the table of edge_flows.py."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from common import median
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow.problems.datasets import digits

LR = 2.0
#: Time that the whole run takes, and steps of gradient descent in a window at most, and between its records.
T_MAX, WINDOW, EVERY = 2000.0, 100, 5
#: Tolerances of the default scheme that are tried, loosest first, and that of the reference.
RTOLS, REFERENCE = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4), 1e-6
#: Error of the predicted loss that is asked for.
ASKED = 0.01
COUNTS = ("n_gradients", "n_hvps", "n_third")


def central_costs(work: Path) -> None:
    """Measure the rows of the table of the central flow's cost, one file for each number of critical directions."""
    loss = digits_net()
    whole = followed(loss, None, 0.0, T_MAX, every=EVERY, rtol=1e-4)
    for k in (1, 2, 3):
        start, n_steps = window(whole, k)
        theta = torch.from_numpy(whole.theta.sel(time=start).values)
        price = prices(loss, theta)
        reference = followed(loss, theta, start, n_steps * LR, rtol=REFERENCE)
        rows = []
        for rtol in RTOLS:
            run = followed(loss, theta, start, n_steps * LR, rtol=rtol)
            rows.append({"scheme": f"projected, rtol={rtol:g}", **cost(run, price, reference, n_steps)})
            if rows[-1]["error"] <= ASKED:
                break
        run = followed(loss, theta, start, n_steps * LR)
        rows.append({"scheme": "projected, default", **cost(run, price, reference, n_steps)})
        for backend in ("lobpcg", "block-krylov"):
            with eigensolver(backend):
                run = followed(loss, theta, start, n_steps * LR, scheme="euler", substeps=4)
            rows.append({"scheme": f"euler, 4 substeps, {backend}", **cost(run, price, reference, n_steps)})
            once = rows[-1]["n_gradients"] + price["n_third"] * rows[-1]["n_third"]
            once += price["n_hvps"] * (rows[-1]["n_hvps"] / 4 + 3 * (k + 1))
            rows[-1]["eigensolve once a step"] = once
        rows = [{"critical": k, "start": start, "steps": n_steps, **row, "price": price} for row in rows]
        keep(work / f"cost_central_{k}.json", rows)


def whole_costs(work: Path) -> None:
    """Measure the rows of the table of all flows' costs over a whole run, before and after they reach the edge."""
    loss = digits_net()
    for flow, options in {"central": {}, "edge": {}, "rod": {"without_drift": True}, "gradient": {}}.items():
        of_flow = {} if flow == "gradient" else {"flow_options": {"lr": LR, **options}}
        run = gradflow.integrate(
            loss,
            flow=flow,
            method="auto",
            t_max=T_MAX,
            save_every=20 * LR,
            n_eigs=1,
            progress=False,
            **of_flow,
        )
        price = prices(loss, torch.cat([p.detach().flatten() for p in loss.net.parameters()]))
        spent = equivalents(run, price)
        i = int(np.argmax(run.eigenvalue[:, 0].values > 0.999 * 2 / LR))
        rows = [
            {
                "flow": flow,
                "before the edge": float(spent[i] / (run.time[i] / LR)),
                "at the edge": float((spent[-1] - spent[i]) / ((run.time[-1] - run.time[i]) / LR)),
                **{
                    f"{name} at the edge": float(run[name][-1] - run[name][i])
                    for name in COUNTS
                    if name in run
                },
                "steps at the edge": float((run.time[-1] - run.time[i]) / LR),
                "price": price,
            }
        ]
        keep(work / f"cost_whole_{flow}.json", rows)


def followed(
    loss: gradflow.LossFunction,
    theta: Tensor | None,
    start: float,
    t_max: float,
    every: int = EVERY,
    **options: Any,
) -> xr.Dataset:
    """Return a run of the central flow, whose options are `options`, with θ at its records."""
    return gradflow.integrate(
        loss,
        theta,
        flow="central",
        method="auto",
        t_max=t_max,
        save_every=gradflow.steps(every, of=LR),
        params_every=gradflow.steps(every, of=LR),
        progress=False,
        flow_options={"lr": LR},
        **options,
    )


def window(run: xr.Dataset, k: int) -> tuple[float, int]:
    """Return start and steps of the longest part of a run with k critical directions, less its first records."""
    rows = np.flatnonzero(run.n_active.values == k)
    parts = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    rows = max(parts, key=len)[2:]
    rows = rows[np.isfinite(run.theta.values[rows, 0])]
    first, last = run.time.values[rows[[0, -1]]]
    return float(first), min(WINDOW, int((last - first) / LR) // EVERY * EVERY)


def cost(run: xr.Dataset, price: dict[str, float], reference: xr.Dataset, n_steps: int) -> dict[str, Any]:
    """Return counts and gradient equivalents per step of gradient descent, and the error of the predicted loss."""
    at = reference.predicted_train_loss.drop_duplicates("time").isel(time=slice(1, None))
    found = run.predicted_train_loss.drop_duplicates("time").reindex(
        time=at.time, method="nearest", tolerance=1e-6
    )
    errors = abs(found.values / at.values - 1)
    per_step = {name: (float(run[name][-1]) - float(run[name][0])) / n_steps for name in COUNTS}
    return {
        **per_step,
        "equivalents": sum(price[name] * n for name, n in per_step.items()),
        "error": float(errors.max()),
        "most active": int(run.n_active.max()),
        "least active": int(run.n_active.min()),
        "status": run.attrs["status"],
    }


def equivalents(run: xr.Dataset, price: dict[str, float]) -> np.ndarray:
    """Return the gradient equivalents of a run up to each record."""
    return sum(price[name] * run[name].values.astype(float) for name in COUNTS if name in run)


@contextlib.contextmanager
def eigensolver(backend: str) -> Iterator[None]:
    """Make another eigensolver the default."""
    defaults = gradflow.SpectrumService.__init__.__kwdefaults__
    before = defaults["backend"]
    defaults["backend"] = backend
    try:
        yield
    finally:
        defaults["backend"] = before


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows to a file, and print them."""
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1))
    print(*rows, sep="\n", flush=True)


def digits_net() -> gradflow.LossFunction:
    """Return the mean squared error of a tanh net with two hidden layers of 24 on 300 digits, in float64."""
    data = digits()
    x = data.train_inputs[:300].double().flatten(1)
    y = nn.functional.one_hot(data.train_targets[:300], 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10))
        net = nn.Sequential(*layers).double()
    return gradflow.LossFunction(TensorDataset(x, y), nn.MSELoss(), net)


def prices(loss: gradflow.LossFunction, theta: Tensor) -> dict[str, float]:
    """Measure what products with the Hessian and its derivative cost at a θ, in gradients, by processor time."""
    u = torch.randn(len(theta), generator=torch.Generator().manual_seed(0)).to(theta)
    u /= u.norm()
    linearization = loss.linearize(theta)
    calls = {
        "n_gradients": lambda: loss.gradient(theta),
        "n_hvps": lambda: linearization.hvp(u),
        "n_third": lambda: linearization.third(u) @ u,
    }
    rounds = [{name: processor_time(call) for name, call in calls.items()} for _ in range(25)][5:]
    return {name: median([r[name] / r["n_gradients"] for r in rounds]) for name in calls}


def processor_time(call: Callable[[], object]) -> float:
    """Time a call; what else the machine does hardly shows."""
    started = time.process_time()
    call()
    return time.process_time() - started
