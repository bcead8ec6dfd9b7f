"""Estimated errors of θ over true ones, at every record, for the methods that have an estimate.

The true error is the distance from another library's method at a tolerance of 1e-9, in float64, at the same times. The
estimate is that of integrate(..., error_estimate=True). What its second run takes, in gradients and in products at
their measured price, is given over what the run itself takes.

    python benchmarks/error_estimate.py --data DIR [--only chebyshev-3-short …] [--cache DIR] [--out DIR]
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import price_of_products, publish
from work_precision import PROBLEMS, Problem, tolerances

import gradflow

#: Records of a run.
N_RECORDS = 40
#: The reference of long stiff flows of small nets, where explicit methods take a hundred thousand gradients.
IMPLICIT = {"chebyshev-3 long": "scipy:Radau", "chebyshev-5 long": "scipy:Radau"}
#: An estimate is right within this factor.
FACTOR = 5.0

SMALL = {name: tolerances(1e-4, 1e-5, 1e-6) for name in ("auto", "exprb43", "exprb32", "rkc")}
LONG = {"auto": tolerances(1e-4, 1e-5), "exprb43": tolerances(1e-4, 1e-5), "exprb32": tolerances(1e-4)}
EXPLICIT = {name: tolerances(1e-4, 1e-5, 1e-6) for name in ("dopri5", "tsit5")} | {"rk4": [{}]}
LARGE = {"auto": tolerances(1e-4, 1e-5), "exprb32": tolerances(1e-4), "rkc": tolerances(1e-4)}
CONTESTANTS = {
    "chebyshev-3 short": SMALL | EXPLICIT | {"dopri8": tolerances(1e-5)},
    "chebyshev-3 long": LONG,
    "chebyshev-5 long": LONG,
    "digits fc-tanh ce": LARGE | {"dopri5": tolerances(1e-4, 1e-5)},
    "digits fc-tanh mse": LARGE | {"dopri5": tolerances(1e-4, 1e-5)},
    "cifar fc-tanh mse short": {"auto": tolerances(1e-4)},
    "cifar fc-tanh mse long": {"auto": tolerances(1e-4)},
    "cifar fc-tanh ce": {"auto": tolerances(1e-4)},
    "cifar cnn-tanh mse": LARGE,
    "cifar cnn-tanh ce": LARGE,
}


def reference(
    name: str,
    problem: Problem,
    loss: gradflow.LossFunction,
    theta: torch.Tensor,
    times: Sequence[float],
    cache: str | None,
) -> np.ndarray:
    """Return θ at the times, shape (n, P), float64; it is kept in the cache, if there is one."""
    kept = None if cache is None else Path(cache) / f"{name.replace(' ', '-')}.npy"
    if kept is not None and kept.exists():
        return np.load(kept)
    exact = gradflow.integrate(
        loss, theta.double(), method=IMPLICIT.get(name, problem.reference), rtol=1e-9, atol=1e-12, t_max=problem.t_max,
        save_at=times, params_every=times,
    )  # fmt: skip
    found = exact.theta.values[1:]
    if kept is not None:
        np.save(kept, found)
    return found


def judge(
    method: str,
    options: dict[str, Any],
    problem: Problem,
    loss: gradflow.LossFunction,
    theta: torch.Tensor,
    exact: np.ndarray,
    times: Sequence[float],
    price: float,
) -> dict[str, object]:
    """Run a method with its estimate, and give its row."""
    settings = {"method": method, "t_max": problem.t_max, "save_at": times, "params_every": times, **options}
    ends: list[Any] = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", gradflow.errors.IntegrationWarning)
        run = gradflow.integrate(loss, theta, error_estimate=True, callback=ends.append, **settings)
    error = np.linalg.norm(run.theta.values[1:].astype(float) - exact, axis=1)
    ratio = run.theta_error_estimate.values[1:] / error
    known = ratio[np.isfinite(ratio)]
    low, middle, high = np.quantile(known, (0.05, 0.5, 0.95)) if len(known) else [np.nan] * 3
    right = np.mean((ratio >= 1 / FACTOR) & (ratio <= FACTOR))  # what isn't known isn't right
    promised = run.theta_error_tolerance.values[-1] / error[-1] if "theta_error_tolerance" in run else np.nan
    within_steps = len(set(run.time.values[1:].tolist()) - {report.t for report in ends})  # a gradient each
    cost = run.attrs["n_gradients_observing"] - within_steps + price * run.attrs["n_hvps_observing"]
    row = {
        "method": method if method != "auto" else f"auto ({run.attrs['method']})",
        "rtol": f"{options['rtol']:g}" if "rtol" in options else "–",
        "steps": run.attrs["n_steps"],
        "error": f"{error[-1]:.1e}",
        "5 %": f"{low:.2f}",
        "median": f"{middle:.2f}",
        "95 %": f"{high:.2f}",
        "within factor 5": f"{right:.0%}",
        "cost of the second run": f"{cost / (float(run.n_gradients[-1]) + price * float(run.n_hvps[-1])):.2f}",
        "tolerance over error": "–" if np.isnan(promised) else f"{promised:.0f}",
        "warned": "yes" if said else "",
    }
    print("  ", *row.values(), flush=True)
    return row


NOTES = (
    "Quantiles of the estimate over the true error ‖θ − θ*‖₂ at 40 records of each run; the share of them that is "
    "right within a factor of 5; the cost of the second run over the first's, in gradients; and what the tolerance "
    "promises at the end over the true error there. A record whose estimate is NaN, as both runs took the same steps, "
    "counts as wrong."
)


def main() -> None:
    """Measure, and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data")
    parser.add_argument(
        "--only", nargs="+", help="problems, with - for spaces; the tables of the others stay"
    )
    parser.add_argument("--cache", help="directory of references")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    kept = Path(args.out) / "error_estimate.json"
    sections = json.loads(kept.read_text())["tables"] if args.only and kept.exists() else {}
    for name, contestants in CONTESTANTS.items():
        if args.only and name.replace(" ", "-") not in args.only:
            continue
        problem = PROBLEMS[name]
        loss, theta = problem.make(args.data)
        times = np.linspace(0, problem.t_max, N_RECORDS + 1)[1:].tolist()
        print(f"{name}, P = {theta.numel():,}", flush=True)
        exact = reference(name, problem, loss, theta, times, args.cache)
        price = price_of_products(loss, theta, block=theta.numel() if theta.numel() <= 400 else 1)
        sections[name] = [
            judge(method, each, problem, loss, theta, exact, times, price)
            for method, settings in contestants.items()
            for each in settings
        ]
    in_order = {name: sections[name] for name in CONTESTANTS if name in sections}
    publish("error_estimate", args.out, "Estimated errors of θ over true ones", in_order, NOTES)


if __name__ == "__main__":
    main()
