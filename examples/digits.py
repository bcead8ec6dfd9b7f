"""Gradient descent leaves the gradient flow at the edge of stability: a real network on real digits.

Integrates both from the same initial weights, records them, and draws loss, sharpness and distance from
the files.

    python examples/digits.py [--small] [--out-dir DIR]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import gradflow
from gradflow.analysis import summary


def main() -> None:
    """Integrate, record, compare and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a few steps only")
    parser.add_argument(
        "--out-dir", type=Path, default=Path("demo"), help="where the files go (default: demo)"
    )
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    t_max = 6.0 if args.small else 150.0

    train, test, params = gradflow.problems.load("digits", "fc-tanh", "mse", seed=0)
    shared = {
        "t_max": t_max,
        "test": test,
        "n_eigs": 1,
        "n_projections": 100,
        "save_every": 3.0,
        "overwrite": True,
    }
    print(
        f"fc-tanh with {len(params):,} parameters on {train.n_samples:,} digits, squared error, to t = {t_max:g}"
    )
    flow = gradflow.integrate(train, params, method="auto", out=args.out_dir / "flow.nc", **shared)
    gd = gradflow.integrate(train, params, method="gd", lr=0.6, out=args.out_dir / "gd.nc", **shared)

    print(f"\n{'':28}{f'gradient flow ({flow.method})':>25}{'gradient descent':>20}")
    a, b = summary(flow), summary(gd)
    for label, key, form in (
        ("training loss", "train_loss", ".5f"),
        ("training accuracy", "train_accuracy", ".2%"),
        ("test accuracy", "test_accuracy", ".2%"),
        ("sharpness λ₁", "sharpness", ".3f"),
        ("gradients", "n_gradients", ",d"),
        ("Hessian-vector products", "n_hvps", ",d"),
        ("seconds", "wall_time", ".1f"),
    ):
        print(f"{label:28}{a[key]:>25{form}}{b[key]:>20{form}}")

    difference = gradflow.compare(gd, flow)
    last = difference.isel(time=-1)
    print(f"\ndistance at t = {float(last.time):g}: {float(last.distance):.4g}, ", end="")
    print(f"{float(last.relative_distance):.2%} of the flow's path")
    if "crossing_time" in b:
        print(
            f"gradient descent first above 2/η = {b['stability_threshold']:.3g} at t = {b['crossing_time']:g}"
        )

    figure = gradflow.plot.overview(gd, flow)
    figure.savefig(args.out_dir / "digits.png", dpi=150)
    print(f"\nwritten: {', '.join(str(args.out_dir / name) for name in ('flow.nc', 'gd.nc', 'digits.png'))}")


if __name__ == "__main__":
    main()
