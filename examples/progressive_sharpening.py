"""Progressive sharpening on the smallest task that shows it: chebyshev-5-20 (Cohen et al. 2021).

Twenty points of a Chebyshev polynomial of degree 5 and a network of 300 parameters. Along the gradient flow the top
eigenvalues of the Hessian grow one after another, each as its mode is learnt; gradient descent follows until the first
reaches 2/η. Draws progressive_sharpening.png from the two files.

    python examples/progressive_sharpening.py [--t-max 3000] [--lr 0.04] [--out-dir DIR]
    python examples/progressive_sharpening.py --small          # to t = 60
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import torch
from matplotlib import pyplot as plt

import gradflow


def main() -> None:
    """Record the flow and gradient descent, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--t-max", type=float, default=3000.0)
    parser.add_argument("--lr", type=float, default=0.04, help="of gradient descent (default: 0.04)")
    parser.add_argument("--small", action="store_true", help="to t = 60 alone")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/progressive_sharpening"))
    args = parser.parse_args()
    if args.small:
        args.t_max, args.lr = 60.0, 0.2
    args.out_dir.mkdir(parents=True, exist_ok=True)
    train, _, theta = gradflow.problems.load("chebyshev-5-20", "regression", "mse", dtype=torch.float64)
    tick = gradflow.steps(round(args.t_max / 300 / args.lr), of=args.lr)  # times of every n-th step of gd
    shared = {"t_max": args.t_max, "save_every": tick, "n_eigs": 5, "overwrite": True}
    gradflow.integrate(
        train, theta, method="auto", rtol=1e-5, atol=1e-7, out=args.out_dir / "flow.nc", **shared
    )
    gradflow.integrate(train, theta, method="gd", lr=args.lr, out=args.out_dir / "gd.nc", **shared)

    flow, gd = (gradflow.open_run(args.out_dir / name) for name in ("flow.nc", "gd.nc"))
    runs = {f"gradient flow ({flow.attrs['method']})": flow, f"gradient descent, η = {args.lr:g}": gd}
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    gradflow.plot.train_loss(runs, axes[0])
    gradflow.plot.sharpness(runs, axes[1])
    gradflow.plot.spectrum({"gradient flow": flow}, axes[2])
    figure.savefig(args.out_dir / "progressive_sharpening.png", dpi=150)
    for name, run in runs.items():
        numbers = gradflow.summary(run)
        print(
            f"{name}: loss {float(run.train_loss[0]):.4g} → {numbers['train_loss']:.4g}, "
            f"λ₁ {float(run.eigenvalue[0, 0]):.4g} → {numbers['sharpness']:.4g}, "
            f"{numbers['n_gradients']:,} gradients, {numbers['n_hvps']:,} H·v"
        )
    print(f"drawn: {args.out_dir / 'progressive_sharpening.png'}")


if __name__ == "__main__":
    main()
