"""The edge of stability (Cohen et al. 2021): gradient descent at several learning rates beside the gradient flow.

First runs and records, one netCDF file a run; then draws from the files alone:

- edge_of_stability.png: training loss, training accuracy, and sharpness with 2/η, over time t = η · steps;
- distance.png: how far each run is from the flow, with the time at which its sharpness crosses 2/η.

    python examples/edge_of_stability.py --data DIR [--images 1000|5000] [--lrs 0.02 0.01] [--t-max 40]
    python examples/edge_of_stability.py --small          # the digits instead
    python examples/edge_of_stability.py --draw-only      # from the files that are there
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import xarray as xr
from matplotlib import pyplot as plt

import gradflow


def record(args: argparse.Namespace) -> None:
    """Run the flow, and gradient descent at each learning rate."""
    if args.small:
        train, test, theta = gradflow.problems.load("digits", "fc-tanh", "mse")
    else:
        name = f"cifar10-{args.images // 1000}k"
        train, test, theta = gradflow.problems.load(name, "fc-tanh", "mse", data=args.data)
    shared = {
        "t_max": args.t_max, "n_eigs": 2, "n_projections": 100, "test": test, "test_every": args.tick,
        "eigs_every": args.tick, "projections_every": args.tick, "overwrite": True,
    }  # fmt: skip
    ran = gradflow.integrate(
        train, theta, method="auto", rtol=1e-3, save_every=args.tick, out=args.out_dir / "flow.nc", **shared
    )
    print(f"flow: {int(ran.n_gradients[-1]):,} gradients, {int(ran.n_hvps[-1]):,} H·v", flush=True)
    for lr in args.lrs:
        ran = gradflow.integrate(
            train, theta, method="gd", lr=lr, out=args.out_dir / f"gd_lr_{lr:g}.nc", **shared
        )
        print(f"gd, η = {lr:g}: {int(ran.n_gradients[-1]):,} gradients", flush=True)


def draw(directory: Path) -> None:
    """Draw both figures from the files in a directory."""
    flow = gradflow.open_run(directory / "flow.nc")
    gd = gradflow.combine([gradflow.open_run(path) for path in directory.glob("gd_lr_*.nc")]).sortby("lr")
    runs = {"gradient flow": flow} | {
        f"gd, η = {lr:g}": gradflow.open_run(directory / f"gd_lr_{lr:g}.nc") for lr in gd.lr.values
    }
    figure = gradflow.plot.figure(runs, ["loss", "accuracy", "sharpness"])
    figure.savefig(directory / "edge_of_stability.png", dpi=150)

    figure, axes = plt.subplots(
        1, gd.sizes["lr"], figsize=(4.4 * gd.sizes["lr"], 3.4), layout="constrained", squeeze=False
    )
    for (name, run), ax in zip(list(runs.items())[1:], axes.flat, strict=True):
        gradflow.plot.distance(run, flow, ax)
        ax.set_title(name, fontsize="medium")
        print(f"{name}: {describe(run, flow)}")
    figure.savefig(directory / "distance.png", dpi=150)
    print(f"drawn: {directory / 'edge_of_stability.png'}, {directory / 'distance.png'}")


def describe(run: xr.Dataset, flow: xr.Dataset) -> str:
    """Say where λ₁ went, and how far the run is from the flow."""
    λ, difference = run.eigenvalue[:, 0], gradflow.compare(run, flow)
    crossing, apart = float(difference.crossing_time_a), difference.relative_distance
    late = float(λ.where(run.time > 2 / 3 * run.time[-1]).mean())
    said = f"λ₁ {float(λ[0]):.4g} → {late:.4g} (mean of the last third), 2/η = {run.attrs['stability_threshold']:.4g}"
    if np.isfinite(crossing):
        before = float(apart[apart.time < crossing][-1])
        said += f", crossed at t = {crossing:.4g}, {before:.2%} of the path from the flow"
    return f"{said}; {float(apart[-1]):.2%} at t = {float(apart.time[-1]):.4g}"


def main() -> None:
    """Record and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--images", type=int, choices=[1000, 2000, 5000], default=1000)
    parser.add_argument("--lrs", type=float, nargs="+", help="learning rates (default: 0.02 0.01)")
    parser.add_argument("--t-max", type=float, help="time to run to (default: 40)")
    parser.add_argument("--tick", type=float, help="time between records of θ and λ₁ (default: 0.5)")
    parser.add_argument("--small", action="store_true", help="the digits, with settings of their own")
    parser.add_argument("--draw-only", action="store_true", help="draw from the files that are there")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/edge_of_stability"))
    args = parser.parse_args()
    defaults = ([0.6, 0.4], 150.0, 1.2) if args.small else ([0.02, 0.01], 40.0, 0.5)
    args.lrs, args.t_max, args.tick = (
        own if own is not None else default
        for own, default in zip((args.lrs, args.t_max, args.tick), defaults, strict=True)
    )
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if not args.draw_only:
        record(args)
    draw(args.out_dir)


if __name__ == "__main__":
    main()
