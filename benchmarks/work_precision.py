"""Error of θ(T) against cost, for every way to integrate the gradient flow; and `auto` beside the best of them.

All contestants start from the same θ₀ and run in one process, one after another, `--repeat` times round; seconds
are medians. The error is ‖θ(T) − θ*(T)‖ over the distance travelled, with θ* from another library's method at a
tolerance of 1e-9 (1e-7 for the net with kinks). Cost is in gradients: a Hessian–vector product counts what it was
measured to take on the same problem (in blocks of P for a dense Hessian). `auto` is given rtol alone.

    python benchmarks/work_precision.py --work DIR --data DIR [--only NAME …]     measures what DIR hasn't got
    python benchmarks/work_precision.py --work DIR --publish docs/benchmarks      writes the tables
"""

import argparse
import copy
import json
import math
import subprocess
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import median, price_of_products, publish
from flows import FLOWS, Flow

import gradflow

Entry = tuple[str, dict[str, Any]]


def tolerances(name: str, *rtols: float, **more: Any) -> list[Entry]:
    """Return a method with every rtol, atol a hundredth of it."""
    return [(name, {"rtol": rtol, "atol": 0.01 * rtol, **more}) for rtol in rtols]


AUTO: list[Entry] = [("auto", {"rtol": rtol}) for rtol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)]
STIFF = [
    *tolerances("exprb32", 1e-2, 1e-3, 1e-4),
    *tolerances("exprb43", 1e-2, 1e-3, 1e-4, 1e-5),
    *tolerances("exprb54", 1e-3, 1e-4, 1e-5, 1e-6),
    *tolerances("rkc", 1e-2, 1e-3, 1e-4, 1e-5),
]
EXPLICIT = [
    *tolerances("tsit5", 1e-3, 1e-4, 1e-5, 1e-6, cap=False),
    *tolerances("dop853", 1e-4, 1e-6, 1e-8, cap=False),
    *tolerances("torchdiffeq:dopri5", 1e-3, 1e-5),
    *tolerances("torchdiffeq:dopri8", 1e-4, 1e-7),
    *tolerances("torchdiffeq:adaptive_heun", 1e-3, 1e-4),
]
SMALL = [*tolerances("scipy:BDF", 1e-3, 1e-4, 1e-5, 1e-6), *tolerances("scipy:LSODA", 1e-4, 1e-6)]
COMPILED = [
    *tolerances("diffrax Tsit5", 1e-3, 1e-4, 1e-6),
    *tolerances("diffrax Kvaerno5", 1e-3, 1e-4, 1e-6),
]
FIRST_ORDER: list[Entry] = [
    ("expeuler", {}),
    ("stable-solvers AdaptiveGradientDescent", {"lr": 1e9}),
    ("stable-solvers ExponentialEulerSolver", {"max_step_size": 1.0}),
]
#: Problems with squared error, as the solvers of Stable-Solvers are written for, that aren't too long for them.
WITH_FIRST_ORDER = {"chebyshev-3 short", "cifar fc-tanh mse short"}
#: Errors at which `auto` is set against the best.
ERRORS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
#: Seconds above which a contestant runs once, and after which one of another library is stopped.
ONCE, LONGEST = 20.0, 600.0


def contestants(name: str, flow: Flow) -> list[Entry]:
    """Return who runs on a problem."""
    entries: list[Entry] = [("rk4", {}), *AUTO, *STIFF]
    if not flow.long:
        entries += EXPLICIT
    elif not flow.small:
        entries += tolerances("torchdiffeq:adaptive_heun", 1e-4)
    if flow.small:
        entries += SMALL + COMPILED
    if name in WITH_FIRST_ORDER:
        entries += FIRST_ORDER
    return entries


@dataclass
class Run:
    """What one contestant did."""

    theta: np.ndarray
    n_gradients: int | None
    n_hvps: int | None
    seconds: float
    note: str = ""
    dense: bool = False


def ours(
    method: str, options: dict[str, Any], loss: gradflow.LossFunction, theta: torch.Tensor, t: float
) -> Run:
    """Run a method of gradflow, recording its ends alone."""
    started = time.perf_counter()
    ds = gradflow.integrate(
        loss, theta, method=method, t_max=t, save_every=t, params_every=t, max_wall_time=LONGEST, **options
    )
    elapsed = time.perf_counter() - started
    note = "" if float(ds.time[-1]) >= t else f"ended at t = {float(ds.time[-1]):.3g}"
    note = ds.attrs.get("method_choices", note) if not note else note
    small = theta.numel() <= 400
    stiff = str(ds.attrs.get("method_choices", method))
    dense = method == "scipy:BDF" or (small and "exprb" in stiff)
    return Run(ds.params.values, int(ds.n_gradients[-1]), int(ds.n_hvps[-1]), elapsed, note, dense)


def stable_solvers(
    name: str, options: dict[str, Any], loss: gradflow.LossFunction, theta: torch.Tensor, t_max: float
) -> Run:
    """Run a solver of stable-solvers; θ at T is interpolated linearly within its last step."""
    import stable_solvers
    from stable_solvers import operators

    peer = stable_solvers.LossFunction(
        loss.data.dataset,
        lambda output, target: 0.5 * (output - target) ** 2,
        copy.deepcopy(loss.net),
        batch_size=loss.data.n_samples,
    )
    counts = {"gradient": 0, "product": 0}
    gradient = peer.gradient

    def counting(params: torch.Tensor) -> Any:
        counts["gradient"] += 1
        return gradient(params)

    peer.gradient = counting
    forward = operators.LossHessian.forward

    def multiply(self: Any, m: torch.Tensor) -> torch.Tensor:
        counts["product"] += 1 if m.dim() == 1 else m.shape[1]
        return forward(self, m)

    operators.LossHessian.forward = multiply
    if "Exponential" in name:
        options = {**options, "stiff_dim": loss.stiff_dim}
    try:
        solver = getattr(stable_solvers, name)(theta.clone(), peer, **options)
        t, started = 0.0, time.perf_counter()
        while t < t_max:
            before, t0 = solver.params.clone(), t
            report = solver.step()
            t += report.dt if hasattr(report, "dt") else 1 / report.sharpness
            if time.perf_counter() - started > 300:
                return Run(
                    solver.params.numpy(), *counts.values(), math.nan, f"stopped at t = {t:.3g} after 300 s"
                )
        elapsed = time.perf_counter() - started
    finally:
        operators.LossHessian.forward = forward
    part = (t_max - t0) / (t - t0)
    return Run((before + part * (solver.params - before)).numpy(), *counts.values(), elapsed)


def diffrax(
    name: str, options: dict[str, Any], loss: gradflow.LossFunction, theta: torch.Tensor, t_max: float
) -> Run:
    """Run a solver of diffrax on the two-layer regression network, compiled before the clock starts."""
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    X, y = (jnp.asarray(each.numpy()) for each in loss.data.dataset.tensors)
    width = (theta.numel()) // 3

    def value(θ: Any) -> Any:
        W, b, v = θ[:width], θ[width : 2 * width], θ[2 * width : 3 * width]
        return 0.5 * jnp.mean((jnp.tanh(X @ W[None] + b) @ v[:, None] - y) ** 2)

    start = jnp.asarray(theta.numpy())
    assert abs(float(value(start)) - float(loss(theta))) < 1e-12
    gradient = jax.grad(value)

    @jax.jit
    def solve(θ: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -gradient(y)),
            getattr(diffrax, name)(),
            0.0,
            t_max,
            None,
            θ,
            stepsize_controller=diffrax.PIDController(**options),
            max_steps=1_000_000,
            throw=False,
        )
        return solution.ys[-1]

    solve(start).block_until_ready()
    started = time.perf_counter()
    end = np.asarray(solve(start).block_until_ready())
    return Run(end, None, None, time.perf_counter() - started, "compiled")


def contestant(label: str) -> Callable[..., Run]:
    """Return who runs a label."""
    library, _, name = label.partition(" ")
    peers = {"stable-solvers": stable_solvers, "diffrax": diffrax}
    if library in peers:
        return lambda *args: peers[library](name, *args)
    return lambda *args: ours(label, *args)


def measure(name: str, flow: Flow, directory: str | None, work: Path, repeat: int) -> None:
    """Run all contestants of a problem that `work` hasn't got, and keep what they did."""
    loss, theta = flow.make(directory)
    path = work / f"{name.replace(' ', '_')}.json"
    known = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    known |= facts(loss, theta, flow, path.with_suffix(".npy")) if "price" not in known else {}
    reference = np.load(path.with_suffix(".npy"))
    travelled = np.linalg.norm(reference - theta.double().numpy())
    missing = [entry for entry in contestants(name, flow) if key_of(entry) not in known["runs"]]
    runs: dict[str, list[Run]] = {key_of(entry): [] for entry in missing}
    for _ in range(repeat):
        for entry in missing:
            done = runs[key_of(entry)]
            if done and not done[0].seconds < ONCE:
                continue
            done.append(contestant(entry[0])(entry[1], loss, theta, flow.t_max))
            print(f"  {key_of(entry)}: {done[-1].seconds:.2f} s", flush=True)
    for entry in missing:
        run = runs[key_of(entry)][0]
        found = asdict(run) | {
            "error": float(np.linalg.norm(run.theta - reference) / travelled),
            "seconds": [each.seconds for each in runs[key_of(entry)]],
            "commit": commit(),
        }
        del found["theta"]
        known["runs"][key_of(entry)] = found
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False))


def key_of(entry: Entry) -> str:
    """Name a contestant with its options."""
    options = {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in entry[1].items() if k != "atol"}
    return ", ".join([entry[0], *(f"{k}={v}" for k, v in options.items())])


def commit() -> str:
    """Return the commit that is measured."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def facts(loss: gradflow.LossFunction, theta: torch.Tensor, flow: Flow, path: Path) -> dict[str, Any]:
    """Integrate the reference, and measure what products cost."""
    started = time.perf_counter()
    exact = gradflow.integrate(
        loss, theta.double(), method=flow.reference, rtol=flow.reference_rtol, atol=1e-3 * flow.reference_rtol,
        t_max=flow.t_max, save_every=flow.t_max, n_eigs=1,
    )  # fmt: skip
    print(f"  reference: {time.perf_counter() - started:.0f} s", flush=True)
    np.save(path, exact.params.values)
    P = theta.numel()
    return {
        "P": P,
        "sharpness": exact.eigenvalue.values[[0, -1], 0].tolist(),
        "loss": exact.train_loss.values[[0, -1]].tolist(),
        "price": price_of_products(loss, theta),
        "block_price": price_of_products(loss, theta, block=P) if P <= 1000 else None,
    }


def cost_of(run: dict[str, Any], known: dict[str, Any]) -> float:
    """Return what a run cost in gradients; NaN for a compiled one."""
    if run["n_gradients"] is None:
        return math.nan
    price = known["block_price"] if run["dense"] else known["price"]
    return float(run["n_gradients"] + price * run["n_hvps"])


def table(name: str, flow: Flow, known: dict[str, Any]) -> tuple[str, list[dict[str, object]]]:
    """Return the heading and the rows of a problem."""
    base = known["runs"]["rk4"]
    rows: list[dict[str, object]] = []
    for entry in contestants(name, flow):
        run = known["runs"].get(key_of(entry))
        if run is None:
            continue
        cost, seconds = cost_of(run, known), median(run["seconds"])
        rows.append(
            {
                "method": key_of(entry),
                "gradients": "–" if run["n_gradients"] is None else run["n_gradients"],
                "H·v": "–" if run["n_hvps"] is None else run["n_hvps"],
                "error": f"{run['error']:.1e}",
                "seconds": f"{seconds:.2f}",
                "gradient equivalents": "–" if math.isnan(cost) else f"{cost:,.0f}",
                "fewer than rk4": "–" if math.isnan(cost) else f"{cost_of(base, known) / cost:.3g}×",
                "faster than rk4": f"{median(base['seconds']) / seconds:.3g}×",
                "note": run["note"],
            }
        )
    block = f" ({known['block_price']:.2f} in a block of {known['P']})" if known["block_price"] else ""
    rows.insert(0, {"method": f"*price of an H·v: {known['price']:.2f} gradients{block}*"})
    λ, loss = known["sharpness"], known["loss"]
    seen = f"λ₁ {λ[0]:.3g} → {λ[1]:.3g}, loss {loss[0]:.3g} → {loss[1]:.3g}"
    return f"{name}, T = {flow.t_max:g}, P = {known['P']:,}, {seen}", rows


def at_error(points: list[tuple[float, float]], error: float) -> float:
    """Return the cost at an error between two runs of one method, in logarithms; infinite where none is as good."""
    reached = sorted((e, c) for e, c in points if e > 0 and math.isfinite(e) and math.isfinite(c))
    best = [(e, min(c for e2, c in reached if e2 <= e)) for e, _ in reached]  # a tighter run serves too
    if not best or best[0][0] > error:
        return math.inf
    above = [point for point in best if point[0] > error]
    (e0, c0) = [point for point in best if point[0] <= error][-1]
    if not above or above[0][1] >= c0:
        return c0
    e1, c1 = above[0]
    return math.exp(np.interp(math.log(error), np.log([e0, e1]), np.log([c0, c1])))


def front(known: dict[str, Any]) -> list[dict[str, object]]:
    """Return `auto` beside the best contestant at each error, in gradient equivalents and in seconds."""
    curves: dict[str, list[dict[str, Any]]] = {}
    for key, run in known["runs"].items():
        if run["n_gradients"] is not None:  # compiled ones apart
            curves.setdefault(key.split(",")[0], []).append(run)
    rows = []
    for error in ERRORS:
        row: dict[str, object] = {"error": f"{error:.0e}"}
        for what, price in (
            ("gradient equivalents", lambda run: cost_of(run, known)),
            ("seconds", lambda run: median(run["seconds"])),
        ):
            costs = {
                name: at_error([(run["error"], price(run)) for run in runs], error)
                for name, runs in curves.items()
            }
            auto = costs.pop("auto", math.inf)
            best = min(costs, key=costs.__getitem__)
            row[f"{what}: best"] = f"{costs[best]:.3g} ({best})" if math.isfinite(costs[best]) else "–"
            row[f"{what}: auto"] = f"{auto:.3g}" if math.isfinite(auto) else "–"
            row[f"{what}: ratio"] = f"{auto / costs[best]:.2f}" if math.isfinite(auto * costs[best]) else "–"
        rows.append(row)
    return rows


def main() -> None:
    """Run the problems, or write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--work", required=True, help="directory of what has been measured")
    parser.add_argument("--only", nargs="*", choices=list(FLOWS), help="names of problems")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--publish", help="directory for the tables")
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    if args.publish is None:
        for name, flow in FLOWS.items():
            if not args.only or name in args.only:
                print(name, flush=True)
                measure(name, flow, args.data, work, args.repeat)
        return
    sections, fronts = {}, {}
    for name, flow in FLOWS.items():
        path = work / f"{name.replace(' ', '_')}.json"
        if path.exists():
            known = json.loads(path.read_text())
            heading, rows = table(name, flow, known)
            sections[heading] = rows
            fronts[f"auto beside the best: {name}"] = front(known)
    notes = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    publish("work_precision", args.publish, "Work and precision", fronts | sections, notes)


if __name__ == "__main__":
    main()
