"""Gradient descent in a valley that gets sharper (Berthier 2026, arXiv:2609.01034), and the flows that describe it.

f(x, y) = ½ (y + x) x² − 0.01 (x + y), from (0, 5.5), with η = 0.3. Along the floor λ₁ is about y, which grows slowly
until gradient descent keeps it near 2/η = 6.67. Draws y over steps from the files, and prints where each run has its
largest y, and its late mean.

    python examples/berthier_toy.py [--steps 2600] [--every 5] [--out-dir DIR]      # less than a minute
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import torch
import xarray as xr
from matplotlib import pyplot as plt
from torch import Tensor

import gradflow

#: Learning rate.
LR = 0.3
#: Name of each run, with what integrate is told.
RUNS = {
    "gd": {"method": "gd", "lr": LR, "midpoint": True},
    "gradient flow": {},
    "central": {"flow": "central", "lr": LR},
    "edge": {"flow": "edge", "lr": LR},
    "rod": {"flow": "rod", "lr": LR},
    "rod without drift": {"flow": "rod", "lr": LR, "without_drift": True},
    "period-2": {"flow": "period-2", "lr": LR},
}
#: Colors as in gradflow.plot.edge.
COLORS = dict(zip(RUNS, ["0.6", "C0", "C1", "C2", "C3", "C4", "C5"], strict=True))


def valley(w: Tensor) -> Tensor:
    """Return ½ (y + x) x² − 0.01 (x + y)."""
    x, y = w
    return 0.5 * (y + x) * x**2 - 0.01 * (x + y)


def y_of(run: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return steps, and y: of gradient descent at its midpoints, between the first and the last step."""
    theta = run.midpoint_theta[1:-1] if "midpoint_theta" in run else run.theta
    return theta.time / LR, theta[:, 1]


def draw(runs: dict[str, xr.Dataset], path: Path) -> None:
    """Draw y over steps: first what follows gradient descent, then what loses it."""
    figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.6), layout="constrained")
    panels = (["gd", "gradient flow", "central", "edge"], ["gd", "rod", "rod without drift", "period-2"])
    for ax, names, top in zip(axes, panels, (8.0, 14.0), strict=True):
        for name in names:
            ax.plot(*y_of(runs[name]), label=name, color=COLORS[name], linewidth=2.5 if name == "gd" else 1.3)
        ax.axhline(2 / LR, color="0.3", linestyle="--", linewidth=1, label="2/η")
        ax.set(xlabel="step", ylabel="y ≈ λ₁", ylim=(5.4, top))
        ax.legend(frameon=False, fontsize="small", loc="best")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Record, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2600, help="steps of gradient descent (default: 2600)")
    parser.add_argument("--every", type=int, default=5, help="steps between records (default: 5)")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/berthier_toy"))
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    start = torch.tensor([0.0, 5.5], dtype=torch.float64)
    runs = {}
    for name, options in RUNS.items():
        file = args.out_dir / f"{name.replace(' ', '_')}.nc"
        every = gradflow.steps(args.every, of=LR)
        gradflow.integrate(
            valley, start, t_max=args.steps * LR, save_every=every, out=file, overwrite=True, **options
        )
        runs[name] = gradflow.open_run(file)
        steps, y = y_of(runs[name])
        peak, late = y.isel(y.argmax(["time"])), y[steps.values > 0.75 * args.steps]
        print(
            f"{name}: largest y {float(peak):.4g} at step {float(peak.time) / LR:.0f}, mean of the last quarter "
            f"{float(late.mean()):.4g}"
        )
    draw(runs, args.out_dir / "berthier_toy.png")
    print(f"drawn: {args.out_dir / 'berthier_toy.png'}")


if __name__ == "__main__":
    main()
