"""Momentum has an edge of stability of its own (Cohen et al. 2021, section 3.3).

On the digits: gradient descent with Polyak's momentum trains at λ₁ = (2 + 2β)/η, with Nesterov's at
(2 + 2β)/(η(1 + 2β)), as plain gradient descent does at 2/η. Learning rates are chosen so that all three thresholds lie
between λ₁ at the start and what the flow reaches. Draws momentum_thresholds.png from the files.

    python examples/momentum_thresholds.py [--t-max 250] [--out-dir DIR]
    python examples/momentum_thresholds.py --small          # to t = 12
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt

import gradflow

#: Method, options, threshold.
RUNS = {
    "gd": {"lr": 2 / 3.0},
    "polyak": {"lr": 3 / 3.4, "momentum": 0.5},
    "nesterov": {"lr": 3 / (2 * 3.8), "momentum": 0.5},
}


def main() -> None:
    """Record the three optimisers and the flow, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--t-max", type=float, default=250.0)
    parser.add_argument("--small", action="store_true", help="to t = 12 alone")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/momentum_thresholds"))
    args = parser.parse_args()
    if args.small:
        args.t_max = 12.0
    args.out_dir.mkdir(parents=True, exist_ok=True)
    train, _, theta = gradflow.problems.load("digits", "fc-tanh", "mse")
    shared = {"t_max": args.t_max, "save_every": args.t_max / 100, "n_eigs": 1, "overwrite": True}
    for method, options in RUNS.items():
        gradflow.integrate(
            train, theta, method=method, out=args.out_dir / f"{method}.nc", **options, **shared
        )
    gradflow.integrate(train, theta, method="auto", rtol=1e-3, out=args.out_dir / "flow.nc", **shared)

    runs = {name: gradflow.open_run(args.out_dir / f"{name}.nc") for name in [*RUNS, "flow"]}
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    gradflow.plot.train_loss(runs, axes[0])
    gradflow.plot.sharpness(runs, axes[1])
    figure.savefig(args.out_dir / "momentum_thresholds.png", dpi=150)
    for name, run in runs.items():
        late = run.eigenvalue[:, 0].where(run.time > 2 / 3 * run.time[-1]).mean()
        threshold = run.attrs.get("stability_threshold")
        said = "" if threshold is None else f", {run.attrs['stability_threshold_formula']} = {threshold:.4g}"
        print(f"{name}: mean λ₁ over the last third {float(late):.4g}{said}")
    print(f"drawn: {args.out_dir / 'momentum_thresholds.png'}")


if __name__ == "__main__":
    main()
