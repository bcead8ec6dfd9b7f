"""The period-2 flow against the optimisers that it describes, beyond the edge of stability.

200 digits, a tanh net with two hidden layers of 24 units, half the squared error, float64. Printed: the mean relative
error of the predicted training loss, both smoothed by a Gaussian of 50 steps, from the first step on that raises the
loss; the same for the flow without oscillation (rho_floor=1e-200); and gradient equivalents a step of the optimiser, at
three gradients a product.

    python benchmarks/period2.py
"""

from __future__ import annotations

import numpy as np
import torch

import gradflow
from gradflow.problems.datasets import digits

STEPS = 1500
CASES = (  # rule, learning rate, steps of the optimiser before the flow starts
    ("gd", 0.5, 200),
    ("rmsprop", 3e-4, 400),
    ("rmsprop", 1e-3, 100),
    ("adam", 1e-3, 500),
    ("adam", 3e-3, 300),
)


def problem() -> gradflow.LossFunction:
    """Return the loss, whose net has the weights of seed 0, smaller than torch's default."""
    data = digits()
    x = data.train_inputs[:200].double().reshape(200, -1)
    y = torch.nn.functional.one_hot(data.train_targets[:200], 10).double()
    torch.manual_seed(0)
    layers = [
        torch.nn.Linear(64, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 24),
        torch.nn.Tanh(),
        torch.nn.Linear(24, 10),
    ]
    net = torch.nn.Sequential(*layers).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.mul_(0.6 if "weight" in name else 0.0)
    dataset = torch.utils.data.TensorDataset((x - x.mean()) / x.std(), y)
    return gradflow.LossFunction(dataset, lambda out, target: 0.5 * ((out - target) ** 2).sum(1).mean(), net)


def smoothed(x: np.ndarray, width: float = 50.0) -> np.ndarray:
    """Return a Gaussian average, normalised at the ends."""
    window = np.exp(-0.5 * (np.arange(-4 * width, 4 * width + 1) / width) ** 2)
    return np.convolve(x, window, "same")[: len(x)] / np.convolve(np.ones(len(x)), window, "same")[: len(x)]


def main() -> None:
    """Print the table."""
    loss = problem()
    print("| rule | lr | warm-up | crossing | error | without oscillation | gradients a step |")
    print("|---|---|---|---|---|---|---|")
    for rule, lr, warm in CASES:
        options = {"betas": (0.9, 0.99)} if rule == "adam" else {}
        run = gradflow.integrate(
            loss, method=rule, lr=lr, max_steps=STEPS, save_every=gradflow.steps(1), **options
        )
        seen = run.train_loss.values[warm:]
        crossing = 21 + int(np.argmax(np.diff(seen[20:]) > 0))
        errors, cost = [], 0.0
        for floor in (None, 1e-200):
            unit = lr if rule == "gd" else 1.0
            flow = gradflow.integrate(
                loss,
                flow="period-2",
                rule=rule,
                beta2=0.99,
                rho_floor=floor,
                warmup_steps=warm,
                method="auto",
                t_max=(STEPS - warm) * unit,
                save_every=5 * unit,
                flow_options={"lr": lr},
            )
            times = flow.time.values / unit
            predicted = np.interp(np.arange(len(seen)), times, flow.predicted_train_loss.values)
            gap = np.abs(smoothed(predicted) - smoothed(seen)) / smoothed(seen)
            errors.append(gap[crossing:-5].mean())
            if floor is None:
                cost = float(flow.n_gradients[-1] + 3 * flow.n_hvps[-1]) / (STEPS - warm)
        print(
            f"| {rule} | {lr:g} | {warm} | {warm + crossing} | {errors[0]:.2%} | {errors[1]:.2%} | {cost:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
