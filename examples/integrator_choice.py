"""What an accurate gradient flow costs: error against gradient equivalents, for every flow method.

The flow of a 300-parameter network on chebyshev-3-20 to t = 20, against the classical Runge–Kutta method at
a sixth of its usual step. An H·v counts as one gradient, which is about what it costs here.

    python examples/integrator_choice.py [--small] [--out-dir DIR]
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")

from matplotlib import pyplot as plt

import gradflow

METHODS = {
    "gd": [("lr", value) for value in (0.4, 0.2, 0.1, 0.05)],
    "rk4": [("alpha", value) for value in (2.5, 2.0, 1.0, 0.5)],
    "expeuler": [("max_step", value) for value in (1.0, 0.2, 0.1, 0.05)],
}


def main() -> None:
    """Run every method at four settings, print the table and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a shorter flow")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("demo"), help="where the picture goes (default: demo)"
    )
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    t_max = 2.0 if args.small else 20.0

    train, _, params = gradflow.problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    reference = gradflow.integrate(train, params, method="rk4", alpha=1 / 6, t_max=t_max, save_every=t_max)

    figure, ax = plt.subplots(figsize=(5.5, 4), layout="constrained")
    print(f"{'method':10}{'option':>16}{'gradients':>11}{'H·v':>8}{'steps':>7}{'error':>11}")
    for method, settings in METHODS.items():
        costs, errors = [], []
        for option, value in settings:
            run = gradflow.integrate(
                train, params, method=method, t_max=t_max, save_every=t_max, method_options={option: value}
            )
            end = run.isel(time=-1)
            error = float(gradflow.compare(run, reference).relative_distance[-1])
            costs.append(int(end.n_gradients) + int(end.n_hvps))
            errors.append(error)
            row = f"{method:10}{f'{option}={value:g}':>16}{int(end.n_gradients):11d}{int(end.n_hvps):8d}"
            print(f"{row}{run.attrs['n_steps']:7d}{error:11.2e}")
        ax.loglog(costs, errors, "o-", label=method)
    ax.set(
        xlabel="gradients + H·v",
        ylabel="error of θ / path length",
        title=f"chebyshev-3-20, flow to t = {t_max:g}",
    )
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out_dir / "integrator_choice.png", dpi=150)
    print(f"written: {args.out_dir / 'integrator_choice.png'}")


if __name__ == "__main__":
    main()
