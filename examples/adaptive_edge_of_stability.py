"""Adaptive optimisers have an edge of stability of their own (Cohen et al. 2022, arXiv:2207.14484).

Full-batch Adam and RMSprop on real data: what stops growing is not the sharpness λ₁ of the Hessian H but that of the
preconditioned Hessian P^(−1/2) H P^(−1/2), P being the diagonal that the optimiser divides by: at
(2 + 2β₁)/((1 − β₁)η) for Adam, at 2/η for RMSprop. Draws adaptive_edge_of_stability.png from the files.

    python examples/adaptive_edge_of_stability.py [--data DIR] [--max-steps 1500] [--out-dir DIR]
    python examples/adaptive_edge_of_stability.py --small          # 30 steps on the digits

Without --data (and without $GRADFLOW_DATA) the digits are used, else 1,000 images of CIFAR-10.
"""

import argparse
import os
from pathlib import Path

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt

import gradflow

RUNS = {
    "adam": {"lr": 1e-3, "betas": (0.9, 0.99)},
    "rmsprop": {"lr": 2e-4, "alpha": 0.99},
}


def main() -> None:
    """Record both, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("GRADFLOW_DATA"), help="directory of CIFAR-10")
    parser.add_argument("--max-steps", type=int, default=1500)
    parser.add_argument("--small", action="store_true", help="30 steps on the digits")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/adaptive_edge_of_stability"))
    args = parser.parse_args()
    if args.small:
        args.max_steps, args.data = 30, None
    args.out_dir.mkdir(parents=True, exist_ok=True)
    dataset = "digits" if args.data is None else "cifar10-1k"
    train, _, theta = gradflow.problems.load(dataset, "fc-tanh", "mse", data=args.data)
    for method, options in RUNS.items():
        gradflow.integrate(
            train, theta, method=method, max_steps=args.max_steps, n_eigs=1, save_every=gradflow.steps(5),
            eigs_every=gradflow.steps(max(1, args.max_steps // 100)), out=args.out_dir / f"{method}.nc", overwrite=True,
            **options,
        )  # fmt: skip

    runs = {method: gradflow.open_run(args.out_dir / f"{method}.nc") for method in RUNS}
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, run in runs.items():
        steps, measured = run.step, run.eigenvalue[:, 0].notnull()
        axes[0].plot(steps, run.train_loss, label=name, linewidth=1.2)
        axes[1].plot(steps[measured], run.eigenvalue[:, 0][measured], label=name, linewidth=1.2)
        effective = run.effective_eigenvalue[:, 0]
        threshold = run.attrs["stability_threshold"]
        known = effective.notnull()
        axes[2].plot(steps[known], effective[known] / threshold, label=name, linewidth=1.2)
        late = float(effective.where(run.step > 2 / 3 * run.step[-1]).mean())
        print(
            f"{name}: effective λ₁ over the last third {late:.4g} in the mean, "
            f"{run.attrs['stability_threshold_formula']} = {threshold:.4g}; loss {float(run.train_loss[-1]):.4g}"
        )
    axes[0].set(xlabel="step", ylabel="training loss", yscale="log")
    axes[1].set(xlabel="step", ylabel="sharpness λ₁ of H")
    axes[2].axhline(1.0, color="0.4", linestyle="--", linewidth=1, label="threshold")
    axes[2].set(xlabel="step", ylabel="effective sharpness / threshold", ylim=(0, 2))
    for ax in axes:
        ax.legend(frameon=False, fontsize="small")
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out_dir / "adaptive_edge_of_stability.png", dpi=150)
    print(f"drawn: {args.out_dir / 'adaptive_edge_of_stability.png'}")


if __name__ == "__main__":
    main()
