"""Gradient descent beyond the edge of stability beside the flows that describe it.

A small tanh network on 200 of the digits, in float64. Gradient descent is recorded with its midpoints, and gradient
flow, central flow and edge flow from the same weights. First runs and records, one netCDF file a run; then draws
edge_flows.png from the files alone, and prints what each flow costs and how well it predicts.

    python examples/edge_flows.py [--lr 0.5] [--t-max 400]        # about a minute
    python examples/edge_flows.py --all                           # six minutes: the table of docs/flows.md
    python examples/edge_flows.py --small                         # to see that it runs; too short for averages
    python examples/edge_flows.py --draw-only                     # from the files that are there
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import torch
import xarray as xr
from scipy.ndimage import gaussian_filter1d
from torch import nn

import gradflow
from gradflow.problems.datasets import digits

#: Name of each run of a flow, with what integrate is told, the learning rate apart. The first three are drawn.
FLOWS = {
    "gradient": {"flow": "gradient"},
    "central": {"flow": "central"},
    "edge": {"flow": "edge"},
    "modified": {"flow": "modified"},
    "central, rtol 1e-3": {"flow": "central", "rtol": 1e-3},
    "central, Euler": {"flow": "central", "scheme": "euler"},
    "rod": {"flow": "rod"},
    "rod without drift": {"flow": "rod", "without_drift": True},
    "period-2": {"flow": "period-2"},
}
DRAWN = list(FLOWS)[:3]
#: Steps between records of λ₁ and of θ.
TICK = 5


def problem(n: int, width: int) -> gradflow.LossFunction:
    """Return ½‖output − one-hot target‖² of the first n digits, whose network starts well below the edge."""
    data = digits()
    x = data.train_inputs[:n].double().reshape(n, -1)
    y = nn.functional.one_hot(data.train_targets[:n], 10).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10)
        ).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(0.0 if name.endswith("bias") else 0.6)
    dataset = torch.utils.data.TensorDataset((x - x.mean()) / x.std(), y)
    return gradflow.LossFunction(dataset, lambda out, target: 0.5 * ((out - target) ** 2).sum(1).mean(), net)


def record(args: argparse.Namespace) -> None:
    """Run gradient descent and the flows."""
    loss = problem(*((100, 12) if args.small else (200, 24)))
    shared = {"t_max": args.t_max, "n_eigs": 1, "overwrite": True}
    gradflow.integrate(
        loss, method="gd", lr=args.lr, midpoint=True, eigs_every=gradflow.steps(TICK),
        params_every=gradflow.steps(TICK), out=args.out_dir / "gd.nc", **shared,
    )  # fmt: skip
    tick = gradflow.steps(TICK, of=args.lr)
    for name in FLOWS if args.all else DRAWN:
        options = FLOWS[name] | ({} if name == "gradient" else {"lr": args.lr})
        gradflow.integrate(
            loss, save_every=tick, params_every=tick, out=file_of(args.out_dir, name), **options, **shared
        )
        print(f"recorded: {name}", flush=True)


def file_of(directory: Path, name: str) -> Path:
    """Return where the run of a flow is recorded."""
    return directory / f"{name.replace(', ', '_').replace(' ', '_')}.nc"


def draw(directory: Path) -> None:
    """Draw the figure, and print the table, from the files in a directory."""
    gd = gradflow.open_run(directory / "gd.nc")
    flows = {
        name: gradflow.open_run(file_of(directory, name))
        for name in FLOWS
        if file_of(directory, name).exists()
    }
    gradflow.plot.edge(gd, {name: flows[name] for name in DRAWN}).savefig(
        directory / "edge_flows.png", dpi=110
    )
    print(
        "| flow | loss | both smoothed | in the second half | λ₁ | midpoints | steps | gradients | H·v | third |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, run in flows.items():
        found = gradflow.compare(gd, run)
        error = error_of_averages(found, run, float(gd.step[-1] / gd.time[-1]))
        crossed, half = found.time >= found.crossing_time_a, found.time >= found.time[-1] / 2
        third = f"{int(run.n_third[-1]):,}" if "n_third" in run else ""
        print(
            f"| {name} | {float(found.mean_loss_error):.1%} | {float(error[crossed].mean()):.1%} | "
            f"{float(error[half].mean()):.1%} | {float(found.mean_sharpness_error):.1%} | "
            f"{float(found.mean_midpoint_distance):.3f} | {run.attrs['n_steps']:,} | {int(run.n_gradients[-1]):,} | "
            f"{int(run.n_hvps[-1]):,} | {third} |"
        )
    print(f"drawn: {directory / 'edge_flows.png'}")


def error_of_averages(
    found: xr.Dataset, run: xr.Dataset, steps_per_time: float, width: float = 50
) -> xr.DataArray:
    """Return the relative error of a flow's loss, whose cycles are smoothed as the optimiser's are."""
    predicted = run.get("predicted_train_loss", run.train_loss)
    spacing = float(run.time[1] - run.time[0]) * steps_per_time
    averaged = predicted.copy(data=gaussian_filter1d(predicted.values, width / spacing, mode="nearest"))
    return abs(averaged.interp(time=found.time.values) / found.train_loss_smoothed - 1)


def main() -> None:
    """Record and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lr", type=float, help="learning rate (default: 0.5)")
    parser.add_argument("--t-max", type=float, help="time to run to (default: 400)")
    parser.add_argument(
        "--small", action="store_true", help="100 digits and a network of width 12, to t = 40"
    )
    parser.add_argument("--all", action="store_true", help="every flow, for the table")
    parser.add_argument("--draw-only", action="store_true", help="draw from the files that are there")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/edge_flows"))
    args = parser.parse_args()
    args.lr = args.lr or (0.8 if args.small else 0.5)
    args.t_max = args.t_max or (40.0 if args.small else 400.0)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if not args.draw_only:
        record(args)
    draw(args.out_dir)


if __name__ == "__main__":
    main()
