"""What an accurate gradient flow costs: error against cost, for every flow method and gradient descent.

The flow of a 300-parameter network on chebyshev-3-20 from one θ₀ to t = 20. The reference is SciPy's Radau at
rtol 1e-10. Cost is gradients + H·v, an H·v counting as one gradient, which is about what it costs.

    python examples/compare_integrators.py [--small] [--out-dir DIR]
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")

from matplotlib import pyplot as plt

import gradflow

RTOLS = (1e-3, 1e-4, 1e-5, 1e-6)
STEPS = (0.2, 0.1, 0.05, 0.025)
METHODS = {
    "gd": ("lr", (0.4, 0.2, 0.1, 0.05)),
    "adaptive-gd": ("lr", (0.4, 0.2, 0.1, 0.05)),
    "rk4": ("alpha", (2.5, 2.0, 1.0, 0.5)),
    "expeuler": ("max_step", (1.0, 0.2, 0.1, 0.05)),
    "rkc": ("rtol", RTOLS),
    "exprb32": ("rtol", RTOLS),
    "exprb43": ("rtol", RTOLS),
    "dopri5": ("rtol", RTOLS),
    "tsit5": ("rtol", RTOLS),
    "dopri8": ("rtol", RTOLS),
    "bosh3": ("rtol", RTOLS),
    "adaptive_heun": ("rtol", RTOLS),
    "fehlberg2": ("rtol", RTOLS),
    "midpoint": ("step_size", STEPS),
    "heun2": ("step_size", STEPS),
    "heun3": ("step_size", STEPS),
    "torchdiffeq:dopri5": ("rtol", RTOLS),
    "torchdiffeq:euler": ("step_size", STEPS),
    "torchdiffeq:rk4": ("step_size", STEPS),
    "explicit_adams": ("step_size", (0.05, 0.025, 0.0125)),
    "implicit_adams": ("step_size", (0.05, 0.025, 0.0125)),
    "scipy:RK45": ("rtol", RTOLS),
    "scipy:DOP853": ("rtol", RTOLS),
    "scipy:LSODA": ("rtol", RTOLS),
    "scipy:BDF": ("rtol", RTOLS),
    "scipy:Radau": ("rtol", RTOLS),
}


def main() -> None:
    """Run every method at several settings, print the table and draw it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a shorter flow, two settings a method")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("demo"), help="where the picture goes (default: demo)"
    )
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    t_max = 2.0 if args.small else 20.0

    train, _, params = gradflow.problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    shared = {"t_max": t_max, "save_every": t_max}
    # Beyond t_max and densely: adaptive-gd doesn't land on times, so that the reference is interpolated for it.
    reference = gradflow.integrate(
        train, params, method="scipy:Radau", rtol=1e-10, atol=1e-12, t_max=t_max + 1, save_every=0.01
    )

    figure, ax = plt.subplots(figsize=(7.5, 5.5), layout="constrained")
    print(f"{'method':19}{'option':>16}{'gradients':>11}{'H·v':>8}{'steps':>7}{'error':>11}")
    markers = {"torchdiffeq": "s--", "scipy": "^:"}
    ax.set_prop_cycle(color=plt.get_cmap("tab20").colors)
    for method, (option, values) in METHODS.items():
        costs, errors = [], []
        for value in values[:2] if args.small else values:
            run = gradflow.integrate(train, params, method=method, method_options={option: value}, **shared)
            end = run.isel(time=-1)
            difference = gradflow.compare(run, reference, interp=method == "adaptive-gd")
            error = float(difference.relative_distance[-1])
            costs.append(int(end.n_gradients) + int(end.n_hvps))
            errors.append(error)
            row = f"{method:19}{f'{option}={value:g}':>16}{int(end.n_gradients):11d}{int(end.n_hvps):8d}"
            print(f"{row}{run.attrs['n_steps']:7d}{error:11.2e}")
        library = run.attrs["method"].split(":")[0]
        ax.loglog(costs, errors, markers.get(library, "o-"), label=method, markersize=4, linewidth=1)
    ax.set(
        xlabel="gradients + H·v",
        ylabel="error of θ / path length",
        title=f"chebyshev-3-20, flow to t = {t_max:g}",
    )
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out_dir / "compare_integrators.png", dpi=130)
    print(f"written: {args.out_dir / 'compare_integrators.png'}")


if __name__ == "__main__":
    main()
