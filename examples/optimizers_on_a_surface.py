"""What optimisers do on surfaces that one can see: the pictures of a teaching notebook, from recorded runs.

- pathological.png: gradient descent with three learning rates, momentum, RMSProp and Adam on
  tanh(w₀)² + 0.01|w₁| + σ(w₁), a ravine between plateaus, with the losses beside it, and the surface itself;
- saddle_and_plateau.png: leaving a saddle and a plateau;
- learning_rates.png: the learning rate range test, and step decay against a constant rate;
- mini_batches.png: the surfaces of four mini-batches and of all data, and stochastic against full-batch descent.

    python examples/optimizers_on_a_surface.py [--small] [--out-dir DIR]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import gradflow
from gradflow import landscape, plot

AXES = list(torch.eye(2, dtype=torch.float64))
ORIGIN = torch.zeros(2, dtype=torch.float64)


def follow(loss, start, n_steps, methods):
    """Run every method from a point; give runs, and paths on the plane of both parameters, by name."""
    theta = torch.tensor(start, dtype=torch.float64)
    runs = {
        name: gradflow.integrate(loss, theta, method=method, max_steps=n_steps, **options)
        for name, (method, options) in methods.items()
    }
    return runs, {name: landscape.project(run, ORIGIN, AXES) for name, run in runs.items()}


def seen(loss, x, y, n):
    """Evaluate a function of two parameters on a rectangle."""
    plane = landscape.plane(loss, ORIGIN, AXES, x=np.linspace(*x, n), y=np.linspace(*y, n), progress=False)
    plane.x.attrs["long_name"], plane.y.attrs["long_name"] = "w₀", "w₁"
    return plane


def losses(ax, runs):
    """Plot losses over steps."""
    for name, run in runs.items():
        ax.plot(run.step, run.train_loss, label=name, linewidth=1.3)
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.legend(frameon=False, fontsize="small")
    ax.spines[["top", "right"]].set_visible(False)


def pathological(n: int, n_steps: int) -> Figure:
    """Draw six methods in the ravine."""
    loss, start = landscape.pathological_loss, [-2.5, 3.0]
    rates = {f"GD, η = {lr:g}": ("gd", {"lr": lr}) for lr in (0.5, 1.0, 2.0)}
    others = {
        "momentum": ("polyak", {"lr": 0.5, "momentum": 0.9}),
        "RMSProp": ("rmsprop", {"lr": 0.1, "alpha": 0.9, "eps": 0.0}),
        "Adam": ("adam", {"lr": 0.2}),
    }
    figure = plt.figure(figsize=(14, 8), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.1])
    plane = seen(loss, (-4, 4), (-9, 5), n)
    for i, methods in enumerate((rates, others)):
        runs, paths = follow(loss, start, n_steps, methods)
        plot.contour(plane, paths, figure.add_subplot(grid[i, 0]))
        losses(figure.add_subplot(grid[i, 1]), runs)
    plot.surface(plane, figure.add_subplot(grid[:, 2], projection="3d"))
    return figure


def saddle_and_plateau(n: int, n_steps: int) -> Figure:
    """Draw how a saddle and a plateau are left."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    methods = {
        "GD": ("gd", {"lr": 0.1}),
        "momentum": ("polyak", {"lr": 0.1, "momentum": 0.9}),
        "RMSProp": ("rmsprop", {"lr": 0.05, "alpha": 0.9}),
        "Adam": ("adam", {"lr": 0.1}),
    }
    for row, (loss, start, x, y) in zip(
        axes,
        (
            (landscape.saddle, [1.2, 1e-3], (-1.5, 1.5), (-1.5, 1.5)),
            (landscape.plateau, [3.0, 2.0], (-4, 4), (-4, 4)),
        ),
        strict=True,
    ):
        runs, paths = follow(loss, start, n_steps, methods)
        plot.contour(seen(loss, x, y, n), paths, row[0])
        row[0].set_title(loss.__name__, fontsize="medium")
        for name, run in runs.items():
            row[1].plot(run.step, run.train_loss, label=name, linewidth=1.3)
        row[1].set(xlabel="step", ylabel="loss")
        row[1].legend(frameon=False, fontsize="small")
        row[1].spines[["top", "right"]].set_visible(False)
        at = torch.from_numpy(runs["Adam"].params.values.copy())
        print(
            f"{loss.__name__}: from {start}, Adam ends at a point that is: {landscape.classify(loss, at).verdict}"
        )
    return figure


def learning_rates(n_steps: int) -> Figure:
    """Draw the range test, and a decayed learning rate."""
    train, _, theta = gradflow.problems.load("digits", "fc-tanh-depth1", "ce")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    found = landscape.lr_find(train, theta, lr_min=1e-3, lr_max=100.0, n=80, progress=False)
    plot.lr_curve(found, axes[0])
    axes[0].set_title("all data", fontsize="medium")
    noisy = landscape.lr_find(
        train, theta, method="adam", lr_min=1e-5, lr_max=1.0, n=100, batch_size=64, progress=False
    )
    plot.lr_curve(noisy, axes[1])
    axes[1].set_title("Adam, mini-batches of 64", fontsize="medium")
    shared = {
        "method": "sgd",
        "lr": 1.0,
        "batch_size": 16,
        "max_steps": n_steps,
        "save_every": gradflow.steps(5),
    }
    decay = f"StepLR(step_size={n_steps // 3}, gamma=0.1)"
    losses(
        axes[2],
        {
            "constant rate": gradflow.integrate(train, theta, **shared),
            "step decay": gradflow.integrate(train, theta, scheduler=decay, **shared),
        },
    )
    axes[2].set_title("SGD, mini-batches of 16", fontsize="medium")
    return figure


def mini_batches(n: int, n_steps: int) -> Figure:
    """Draw the surfaces of mini-batches, and descent on them."""
    train, _, theta = gradflow.problems.load("digits", "fc-tanh-depth1", "ce")
    shared = {"lr": 0.5, "max_steps": n_steps, "params_every": gradflow.steps(1), "n_projections": 0}
    runs = {
        "full batch": gradflow.integrate(train, theta, method="sgd", **shared),
        "mini-batches of 16": gradflow.integrate(train, theta, method="sgd", batch_size=16, **shared),
    }
    end = torch.from_numpy(runs["full batch"].params.values.copy())
    directions = landscape.principal_directions(runs["mini-batches of 16"])
    paths = {name: landscape.project(run, end, directions) for name, run in runs.items()}
    reach = 1.2 * max(float(np.abs(path[c]).max()) for path in paths.values() for c in "xy")
    grid = np.linspace(-reach, reach, n)
    plane = landscape.plane(
        train, end, directions, x=grid, y=grid, batch_size=16, n_batches=4, progress=False
    )
    figure = plt.figure(figsize=(15, 4.8), layout="constrained")
    plot.contour(plane, paths, figure.add_subplot(1, 3, 1))
    losses(figure.add_subplot(1, 3, 2), runs)
    plane.x.attrs["long_name"], plane.y.attrs["long_name"] = "first component", "second component"
    plot.surface(plane, figure.add_subplot(1, 3, 3, projection="3d"), batches=True)
    return figure


def main() -> None:
    """Draw all four."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="fewer points and steps")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/surfaces"))
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    n, n_steps = (15, 30) if args.small else (61, 300)
    for name, figure in (
        ("pathological", pathological(n, n_steps)),
        ("saddle_and_plateau", saddle_and_plateau(n, n_steps)),
        ("learning_rates", learning_rates(n_steps)),
        ("mini_batches", mini_batches(min(n, 31), min(n_steps, 100))),
    ):
        figure.savefig(args.out_dir / f"{name}.png", dpi=130)
        print(f"drawn: {args.out_dir / name}.png")


if __name__ == "__main__":
    main()
