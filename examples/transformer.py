"""A transformer that learns to sort: its gradient flow beside Adam, with loss, accuracy and sharpness of both.

Both times are other things (Adam's is learning rate times steps), so losses and accuracies are drawn over the part of
each run, and the sharpness over the training loss that both have reached.

    python examples/transformer.py [--t-max 40] [--steps 400] [--sequences 128] [--out-dir DIR]
    python examples/transformer.py --small
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import xarray as xr
from matplotlib import pyplot as plt

import gradflow


def record(args: argparse.Namespace) -> dict[str, xr.Dataset]:
    """Run the flow and Adam from the same weights."""
    train, test, theta = gradflow.problems.load("sort-8-6", "transformer", "ce")
    loss = train.first(args.sequences)
    shared = {"n_eigs": 1, "test": test, "overwrite": True}
    tick = args.t_max / 40
    flow = gradflow.integrate(
        loss, theta, t_max=args.t_max, rtol=1e-3, save_every=tick, eigs_every=tick,
        out=args.out_dir / "flow.nc", **shared,
    )  # fmt: skip
    print(
        f"flow: {int(flow.n_gradients[-1])} gradients, {int(flow.n_hvps[-1])} H·v, {flow.method_choices[:60]} …"
    )
    every = gradflow.steps(max(1, args.steps // 40))
    adam = gradflow.integrate(
        loss, theta, method="adam", lr=1e-3, max_steps=args.steps, save_every=every, eigs_every=every,
        out=args.out_dir / "adam.nc", **shared,
    )  # fmt: skip
    print(f"adam: {args.steps} steps, loss {float(adam.train_loss[-1]):.3g}")
    return {"gradient flow": flow, "Adam, lr = 0.001": adam}


def draw(runs: dict[str, xr.Dataset], path: Path) -> None:
    """Draw loss and accuracy over each run's own time, and sharpness over the loss."""
    figure, (losses, accuracies, sharpnesses) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for name, run in runs.items():
        part = run.time / run.time[-1]
        (line,) = losses.plot(part, run.train_loss, label=f"{name}, to t = {float(run.time[-1]):g}")
        accuracies.plot(part, 100 * run.train_accuracy, color=line.get_color(), label="training")
        accuracies.plot(part, 100 * run.test_accuracy, "--", color=line.get_color(), label="test")
        sharpnesses.plot(run.train_loss, run.eigenvalue[:, 0], ".-", color=line.get_color(), label=name)
    losses.set(xlabel="part of the run", ylabel="training loss", yscale="log")
    accuracies.set(xlabel="part of the run", ylabel="places that are right, %")
    sharpnesses.set(xlabel="training loss", ylabel="λ₁ of the Hessian", xscale="log", yscale="log")
    sharpnesses.invert_xaxis()
    for ax in (losses, accuracies, sharpnesses):
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    """Run and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--t-max", type=float, default=40.0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--out-dir", type=Path, default=Path("demo/transformer"))
    parser.add_argument("--small", action="store_true", help="a few seconds")
    args = parser.parse_args()
    if args.small:
        args.t_max, args.steps, args.sequences = 1.0, 10, 32
    args.out_dir.mkdir(parents=True, exist_ok=True)
    runs = record(args)
    draw(runs, args.out_dir / "transformer.png")


if __name__ == "__main__":
    main()
