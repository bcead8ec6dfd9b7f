"""Error of θ(T) against cost, for every way to integrate the gradient flow.

All contestants start from the same θ₀ and run in one process, one after another, `--repeat` times round; seconds
are medians. The error is ‖θ(T) − θ*(T)‖ over the distance travelled, with θ* from another library's
explicit method at a tolerance of 1e-9 (scipy:DOP853 in float64; torchdiffeq's dopri8 for the images). Cost is
in gradients: a Hessian–vector product counts what it was measured to take on the same problem (in blocks of
P for a dense Hessian).

    python benchmarks/work_precision.py --data DIR [--only chebyshev-3-short …] [--quick] [--out DIR]
"""

import argparse
import copy
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cifar, cnn_tanh, fc_tanh, median, price_of_products, publish

import gradflow


@dataclass
class Problem:
    """A flow to integrate."""

    make: Callable[[str | None], tuple[gradflow.LossFunction, torch.Tensor]]
    t_max: float
    reference: str
    peers: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def named(dataset: str, net: str, criterion: str, dtype: torch.dtype) -> Callable[..., Any]:
    """Take one of gradflow's problems."""

    def make(directory: str | None) -> tuple[gradflow.LossFunction, torch.Tensor]:
        train, _, theta = gradflow.problems.load(dataset, net, criterion, dtype=dtype)
        return train, theta

    return make


def images(net: Callable[[], Any], n: int, criterion: str) -> Callable[..., Any]:
    """Take a net on CIFAR-10."""

    def make(directory: str | None) -> tuple[gradflow.LossFunction, torch.Tensor]:
        loss = cifar(net, n, criterion, directory)
        return loss, loss.parameters()

    return make


def tolerances(*rtols: float, **more: Any) -> list[dict[str, Any]]:
    """Return options for every rtol, atol a hundredth of it."""
    return [{"rtol": rtol, "atol": 0.01 * rtol, **more} for rtol in rtols]


SMALL = {
    "exprb32": tolerances(1e-4, 1e-5, 1e-6) + tolerances(1e-5, 1e-6, dense=False, krylov_tol=1e-4),
    "exprb43": tolerances(1e-4, 1e-5, 1e-6) + tolerances(1e-4, 1e-5, 1e-6, dense=False, krylov_tol=1e-4),
    "rkc": tolerances(1e-3, 1e-4, 1e-5, 1e-6),
    "scipy:BDF": tolerances(1e-3, 1e-4, 1e-5),
    "scipy:LSODA": tolerances(1e-4),
    "rk4": [{}],
}
LARGE = {
    "rk4": [{}],
    "exprb32": tolerances(1e-3, 1e-4, 1e-5),
    "exprb43": tolerances(1e-3, 1e-4, 1e-5),
    "rkc": tolerances(1e-3, 1e-4, 1e-5),
    "torchdiffeq:dopri5": tolerances(1e-4),
    "torchdiffeq:dopri8": tolerances(1e-4),
    "torchdiffeq:adaptive_heun": tolerances(1e-4),
}
LONG = {
    "rk4": [{}],
    "exprb32": tolerances(1e-3, 1e-4),
    "exprb43": tolerances(1e-3, 1e-4),
    "rkc": tolerances(1e-3, 1e-4),
    "torchdiffeq:dopri5": tolerances(1e-4),
    "torchdiffeq:adaptive_heun": tolerances(1e-4),
    "stable-solvers AdaptiveGradientDescent": [{"lr": 1e9}],
}
UNCAPPED = {"torchdiffeq:dopri5": [*LARGE["torchdiffeq:dopri5"], *tolerances(1e-2, cap=False)]}
FIRST_ORDER = {"expeuler": [{}], "adaptive-gd": [{"lr": 1e9}]}
PEERS = {
    "stable-solvers AdaptiveGradientDescent": [{"lr": 1e9}],
    "stable-solvers ExponentialEulerSolver": [{"max_step_size": 1.0}],
}
JAX = {"diffrax Tsit5": tolerances(1e-4), "diffrax Kvaerno5": tolerances(1e-4, 1e-6)}
EXPLICIT = {"scipy:DOP853": tolerances(1e-4), "torchdiffeq:dopri5": tolerances(1e-4)}

double, single = torch.float64, torch.float32
PROBLEMS = {
    "chebyshev-3 short": Problem(
        named("chebyshev-3-20", "regression", "mse", double),
        20.0,
        "scipy:DOP853",
        SMALL | EXPLICIT | FIRST_ORDER | JAX | PEERS,
    ),
    "chebyshev-3 long": Problem(
        named("chebyshev-3-20", "regression", "mse", double), 2990.0, "scipy:DOP853", SMALL | JAX
    ),
    "chebyshev-5 long": Problem(
        named("chebyshev-5-20", "regression", "mse", double), 2990.0, "scipy:DOP853", SMALL | JAX
    ),
    "digits fc-tanh ce": Problem(
        named("digits", "fc-tanh", "ce", single), 150.0, "torchdiffeq:dopri8", LARGE
    ),
    "digits fc-tanh mse": Problem(
        named("digits", "fc-tanh", "mse", single), 150.0, "torchdiffeq:dopri8", LARGE
    ),
    "cifar fc-tanh mse short": Problem(
        images(lambda: fc_tanh(100), 500, "mse"),
        8.0,
        "torchdiffeq:dopri8",
        LARGE | UNCAPPED | FIRST_ORDER | PEERS,
    ),
    "cifar fc-tanh mse long": Problem(
        images(lambda: fc_tanh(100), 500, "mse"), 100.0, "torchdiffeq:dopri8", LONG
    ),
    "cifar fc-tanh ce": Problem(images(lambda: fc_tanh(100), 500, "ce"), 20.0, "torchdiffeq:dopri8", LARGE),
    "cifar cnn-tanh mse": Problem(images(cnn_tanh, 100, "mse"), 10.0, "torchdiffeq:dopri8", LARGE),
    "cifar cnn-tanh ce": Problem(images(cnn_tanh, 100, "ce"), 10.0, "torchdiffeq:dopri8", LARGE),
}


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
    limit = {"max_steps": 2000} if options.get("cap") is False else {}
    started = time.perf_counter()
    ds = gradflow.integrate(
        loss, theta, method=method, t_max=t, save_every=t, params_every=t, **limit, **options
    )
    elapsed = time.perf_counter() - started
    small = theta.numel() <= 400
    dense = method == "scipy:BDF" or (method.startswith("exprb") and options.get("dense", small))
    note = "" if float(ds.time[-1]) >= t else f"ended at t = {float(ds.time[-1]):.3g}"
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


def measure(
    name: str, problem: Problem, directory: str | None, repeat: int
) -> tuple[str, list[dict[str, object]]]:
    """Run all contestants of a problem, and give its heading and table."""
    loss, theta = problem.make(directory)
    started = time.perf_counter()
    exact = gradflow.integrate(
        loss, theta.double(), method=problem.reference, rtol=1e-9, atol=1e-12, t_max=problem.t_max,
        save_every=problem.t_max, n_eigs=1,
    )  # fmt: skip
    reference = exact.params.values
    λ = exact.eigenvalue.values[[0, -1], 0]
    print(f"  reference: {time.perf_counter() - started:.0f} s", flush=True)
    travelled = np.linalg.norm(reference - theta.double().numpy())
    price, P = price_of_products(loss, theta), theta.numel()
    block_price = price_of_products(loss, theta, block=P) if P <= 1000 else math.nan
    entries = [(label, options) for label, settings in problem.peers.items() for options in settings]
    runs: dict[int, list[Run]] = {i: [] for i in range(len(entries))}
    for _ in range(repeat):
        for i, (label, options) in enumerate(entries):
            if runs[i] and not runs[i][0].seconds < 20:
                continue  # once is enough
            runs[i].append(contestant(label)(options, loss, theta, problem.t_max))
            print(f"  {label} {options}: {runs[i][-1].seconds:.2f} s", flush=True)
    rows, costs = [], []
    for i, (label, options) in enumerate(entries):
        run = runs[i][0]
        error = float(np.linalg.norm(run.theta - reference) / travelled)
        cost = math.nan
        if run.n_gradients is not None and run.n_hvps is not None:
            cost = run.n_gradients + (block_price if run.dense else price) * run.n_hvps
        costs.append(cost)
        rows.append(
            {
                "method": label,
                "options": ", ".join(
                    f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}"
                    for k, v in options.items()
                    if k != "atol"
                ),
                "gradients": run.n_gradients if run.n_gradients is not None else "–",
                "H·v": run.n_hvps if run.n_hvps is not None else "–",
                "error": f"{error:.1e}",
                "seconds": f"{median([r.seconds for r in runs[i]]):.2f}",
                "note": run.note,
            }
        )
    base = next(i for i, (label, options) in enumerate(entries) if label == "rk4" and not options)
    base_seconds = median([r.seconds for r in runs[base]])
    for i, (row, cost) in enumerate(zip(rows, costs, strict=True)):
        speed = base_seconds / median([r.seconds for r in runs[i]])
        note = row.pop("note")
        row["gradient equivalents"] = "–" if math.isnan(cost) else f"{cost:,.0f}"
        row["fewer than rk4"] = "–" if math.isnan(cost) else f"{costs[base] / cost:.3g}×"
        row["faster than rk4"] = f"{speed:.3g}×" if math.isfinite(speed) else "–"
        row["note"] = note
    rows.insert(
        0,
        {
            "method": f"*price of an H·v: {price:.2f} gradients"
            + (f" ({block_price:.2f} in a block of {P})*" if P <= 1000 else "*")
        },
    )
    rows[0] |= dict.fromkeys(list(rows[1])[1:], "")
    heading = (
        f"{name}, T = {problem.t_max:g}, P = {P:,}, λ₁ {λ[0]:.3g} → {λ[1]:.3g}, "
        f"loss {float(exact.train_loss[0]):.3g} → "
        f"{float(exact.train_loss[-1]):.3g}"
    )
    return heading, rows


def main() -> None:
    """Run the problems, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--only", nargs="*", help="names of problems; the others stay in the table")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", default="docs/benchmarks")
    parser.add_argument("--name", default="work_precision", help="of the files")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    known = Path(args.out) / f"{args.name}.json"
    sections = json.loads(known.read_text())["tables"] if args.only and known.exists() else {}
    for name, problem in PROBLEMS.items():
        if args.only and name not in args.only:
            continue
        print(name, flush=True)
        heading, rows = measure(name, problem, args.data, args.repeat)
        sections = {title: table for title, table in sections.items() if not title.startswith(f"{name},")}
        sections[heading] = rows
        order = {
            title: i
            for i, known in enumerate(PROBLEMS)
            for title in sections
            if title.startswith(f"{known},")
        }
        sections = {title: sections[title] for title in sorted(order, key=order.__getitem__)}
        publish(
            args.name,
            args.out,
            "Work and precision",
            sections,
            (__doc__ or "").split("\n\n")[1].replace("\n", " "),
        )


if __name__ == "__main__":
    main()
