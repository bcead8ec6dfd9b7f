"""ELRA against Adam in Rosenbrock's valley.

f(x, y) = (1 − x)² + 100 (y − x²)² from (0.3, 0.8), in float64. ELRA (variant P2M, noise-free) starts with a step
length of 1e-6 and finds its own; Adam has lr = 1e-3 and gradients clipped to norm 1. A call is one loss and one
gradient. Draws elra_rosenbrock.png.

    python examples/elra_rosenbrock.py [--calls 4000] [--out-dir DIR]
    python examples/elra_rosenbrock.py --small          # 400 calls
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from gradflow.optim import ElraOptimizer

START = (0.3, 0.8)
TARGETS = (1e-1, 1e-2, 1e-4, 1e-6, 1e-10)
#: Below it, differences are rounding.
FLOOR = 1e-12


def rosenbrock(x, y):
    """Rosenbrock's function; its minimum is 0, at (1, 1)."""
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def run(advance: Callable[[torch.Tensor, float], None], θ: torch.Tensor, calls: int) -> np.ndarray:
    """Return x, y and loss before every call, until the loss is below `FLOOR`."""
    rows = []
    for _ in range(calls):
        θ.grad = None
        loss = rosenbrock(*θ)
        rows.append([*θ.tolist(), loss.item()])
        if loss.item() < FLOOR:
            break
        loss.backward()
        advance(θ, loss.item())
    return np.array(rows)


def start() -> torch.Tensor:
    """Return the point that both begin at."""
    return torch.tensor(START, dtype=torch.float64, requires_grad=True)


def elra(calls: int) -> np.ndarray:
    """Run ELRA."""
    θ = start()
    optimizer = ElraOptimizer([θ], lr=1e-6)
    return run(lambda _, loss: optimizer.step(loss), θ, calls)


def adam(calls: int) -> np.ndarray:
    """Run Adam."""
    θ = start()
    optimizer = torch.optim.Adam([θ], lr=1e-3)

    def advance(θ: torch.Tensor, loss: float) -> None:
        torch.nn.utils.clip_grad_norm_([θ], 1.0)
        optimizer.step()

    return run(advance, θ, calls)


def draw_losses(runs: dict[str, np.ndarray], axis: Axes) -> None:
    """Loss by calls, and the lowest so far."""
    for color, (name, rows) in enumerate(runs.items()):
        calls = np.arange(1, len(rows) + 1)
        axis.loglog(calls, rows[:, 2], lw=0.8, alpha=0.5, color=f"C{color}")
        axis.loglog(
            calls, np.minimum.accumulate(rows[:, 2]), color=f"C{color}", label=f"{name}, lowest so far"
        )
    axis.set(xlabel="calls", ylabel="loss", ylim=(FLOOR, None))
    axis.legend(loc="lower left")


def draw_paths(runs: dict[str, np.ndarray], axis: Axes) -> None:
    """Points at which the loss was taken, over its contours; a step that leaves the frame was taken back."""
    x, y = np.meshgrid(np.linspace(-1.5, 2, 400), np.linspace(-1, 3, 400))
    axis.contour(
        x, y, np.log10(rosenbrock(x, y) + 1e-6), levels=14, colors="0.75", linewidths=0.6, linestyles="solid"
    )
    for color, (name, rows) in enumerate(runs.items()):
        marker = "." if len(rows) < 300 else ""
        axis.plot(rows[:, 0], rows[:, 1], marker=marker, lw=1.0, color=f"C{color}", label=name)
    axis.plot(*START, "ko", ms=5, label="start")
    axis.plot(1, 1, "k*", ms=10, label="minimum")
    axis.set(xlabel="x", ylabel="y", xlim=(-1.5, 2), ylim=(-1, 3))
    axis.legend(loc="upper left")


def main() -> None:
    """Run both, tell how many calls they took, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=4000, help="at most, for each (default: 4000)")
    parser.add_argument("--small", action="store_true", help="400 calls")
    parser.add_argument("--out-dir", type=Path, default=Path("demo/elra"))
    args = parser.parse_args()
    calls = 400 if args.small else args.calls
    args.out_dir.mkdir(parents=True, exist_ok=True)
    runs = {"ELRA": elra(calls), "Adam": adam(calls)}
    for name, rows in runs.items():
        reached = [(target, np.flatnonzero(rows[:, 2] < target)) for target in TARGETS]
        counts = ", ".join(
            f"{at[0]:,} calls to {target:g}" if at.size else f"not to {target:g}" for target, at in reached
        )
        print(f"{name}: {counts}; lowest loss {rows[:, 2].min():.3g} in {len(rows):,}")
    figure, (losses, paths) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_losses(runs, losses)
    draw_paths(runs, paths)
    figure.savefig(args.out_dir / "elra_rosenbrock.png", dpi=150)
    print(f"drawn: {args.out_dir / 'elra_rosenbrock.png'}")


if __name__ == "__main__":
    main()
