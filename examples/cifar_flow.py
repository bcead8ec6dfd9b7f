"""The gradient flow of a real network on CIFAR-10 to 99.9 % training accuracy, beside gradient descent.

The fully connected tanh network of Cohen et al. (2021), 656,810 parameters, squared error. The flow is integrated
under error control; its sharpness grows far beyond 2/η, where gradient descent stays. Prints what the flow cost,
and what fourth-order Runge–Kutta with steps of 1/λ₁ would: 4 ∫ λ₁ dt gradients.

    python examples/cifar_flow.py --data DIR [--images 1000|5000] [--out-dir DIR]
    python examples/cifar_flow.py --small          # the digits instead, to t = 20
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np

import gradflow


def main() -> None:
    """Integrate both, print the cost, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--images", choices=["1000", "5000"], default="1000")
    parser.add_argument(
        "--lr", type=float, default=0.02, help="learning rate of gradient descent (default: 0.02)"
    )
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--every", type=float, default=0.5, help="time between records (default: 0.5)")
    parser.add_argument("--small", action="store_true", help="the digits, for a short time")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("demo"), help="where the files go (default: demo)"
    )
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if args.small:
        train, test, params = gradflow.problems.load("digits", "fc-tanh", "mse")
        t_max, every, lr = 20.0, 1.0, 0.6
    else:
        train, test, params = gradflow.problems.load(
            f"cifar10-{args.images[0]}k", "fc-tanh", "mse", data=args.data
        )
        t_max, every, lr = 200.0, args.every, args.lr
    shared = {"save_every": every, "n_eigs": 1, "n_projections": 100, "test": test, "overwrite": True}

    print(f"fc-tanh with {len(params):,} parameters on {train.n_samples:,} images, squared error")
    flow = gradflow.integrate(
        train,
        params,
        method="auto",
        rtol=args.rtol,
        t_max=t_max,
        acc_goal=0.999,
        out=args.out_dir / "cifar_flow.nc",
        **shared,
    )
    t, λ = flow.time.values, flow.eigenvalue.values[:, 0]
    print(f"flow ({flow.attrs['method']}, rtol {args.rtol:g}): {flow.attrs['message']}")
    print(
        f"  t = {t[-1]:g} in {flow.attrs['n_steps']} steps: {int(flow.n_gradients[-1]):,} gradients, "
        f"{int(flow.n_hvps[-1]):,} H·v, {float(flow.wall_time[-1]):.0f} s with the records' spectra "
        f"({flow.attrs['n_gradients_observing']:,} gradients and {flow.attrs['n_hvps_observing']:,} H·v)"
    )
    print(
        f"  loss {float(flow.train_loss[-1]):.4g}, training accuracy {float(flow.train_accuracy[-1]):.2%}, "
        f"λ₁ {λ[0]:.1f} → {λ[-1]:.1f}; rk4 with steps of 1/λ₁ would take {4 * np.trapezoid(λ, t):,.0f} gradients"
    )
    gd = gradflow.integrate(
        train, params, method="gd", lr=lr, t_max=float(t[-1]), out=args.out_dir / "cifar_gd.nc", **shared
    )
    print(
        f"gradient descent, η = {lr:g}: {int(gd.n_gradients[-1]):,} gradients, loss {float(gd.train_loss[-1]):.4g}, "
        f"training accuracy {float(gd.train_accuracy[-1]):.2%}, λ₁ → {float(gd.eigenvalue[-1, 0]):.1f}, "
        f"2/η = {2 / lr:g}"
    )
    figure = gradflow.plot.overview(gd, flow)
    figure.savefig(args.out_dir / "cifar_flow.png", dpi=150)
    print(
        f"written: {', '.join(str(args.out_dir / n) for n in ('cifar_flow.nc', 'cifar_gd.nc', 'cifar_flow.png'))}"
    )


if __name__ == "__main__":
    main()
