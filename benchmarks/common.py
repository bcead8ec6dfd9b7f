"""What the benchmarks share: problems, timing, and tables with the environment that they were measured in."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gradflow
from gradflow.problems.datasets import load_data

#: Parameters up to which evaluations are captured, and after how many of a kind.
SMALL, CAPTURED = 5000, 70
PACKAGES = (
    "torch torchdiffeq scipy numpy stable-solvers diffrax jax curvlinops-for-pytorch hessian-eigenthings"
)


def fc_tanh(width: int) -> nn.Module:
    """Two hidden layers on CIFAR-10."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 10),
    )


def cnn_tanh() -> nn.Module:
    """Two convolutions of 16 channels with average pooling on CIFAR-10."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, 10)),
    )


def cifar(
    make: Callable[[], nn.Module], n: int, criterion: str, directory: str | None
) -> gradflow.LossFunction:
    """Make the loss of a net on the first n CIFAR-10 training images, torch's default weights from seed 0."""
    data = load_data("cifar10-1k" if n <= 1000 else "cifar10-5k", directory)
    inputs, targets = data.train_inputs[:n].float(), data.train_targets[:n]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = make()
    if criterion == "mse":
        one_hot = nn.functional.one_hot(targets, 10).float()
        return gradflow.LossFunction(TensorDataset(inputs, one_hot), gradflow.HalfSquaredError(), net)
    return gradflow.LossFunction(TensorDataset(inputs, targets), nn.CrossEntropyLoss(), net)


def seconds(function: Callable[[], object], repeat: int = 5) -> float:
    """Median time of a call, after one to warm up."""
    function()
    return median([timed(function) for _ in range(repeat)])


def timed(function: Callable[[], object]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def median(values: Sequence[float]) -> float:
    """Middle of the sorted values."""
    return sorted(values)[len(values) // 2]


def price_of_products(loss: gradflow.LossFunction, theta: Tensor, block: int = 1) -> float:
    """Measure what a Hessian–vector product costs at one θ, in gradients, in blocks of so many vectors."""
    if theta.numel() <= SMALL:  # captured after a number of evaluations, gradient and product
        for _ in range(CAPTURED):
            loss.gradient(theta)
            loss.linearize(theta)
    linearization = loss.linearize(theta)
    vectors = torch.randn(theta.numel(), block, generator=torch.Generator().manual_seed(0)).to(theta)
    pairs = [
        (timed(lambda: loss.gradient(theta)), timed(lambda: linearization.hvp(vectors))) for _ in range(9)
    ]
    return median([product / gradient for gradient, product in pairs[2:]]) / block


def environment() -> dict[str, object]:
    """Say what was measured with."""
    found = {}
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "gradflow": gradflow.__version__,
        "packages": found,
        "date": time.strftime("%Y-%m-%d"),
    }


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """Lay rows out as a table; their keys are the header."""
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in header) + " |" for row in rows]
    return "\n".join(lines)


def publish(
    name: str, directory: str, title: str, sections: dict[str, list[dict[str, object]]], notes: str = ""
) -> None:
    """Write DIRECTORY/NAME.json and NAME.md, and print the latter."""
    out = Path(directory)
    out.mkdir(parents=True, exist_ok=True)
    measured = environment()
    (out / f"{name}.json").write_text(
        json.dumps({"environment": measured, "tables": sections}, indent=1, ensure_ascii=False) + "\n"
    )
    packages = ", ".join(f"{k} {v}" for k, v in measured["packages"].items())
    text = [f"# {title}", f"`python benchmarks/{name}.py`. {notes}".strip()]
    for heading, rows in sections.items():
        text += [f"## {heading}", markdown(rows)]
    text.append(
        f"Measured on {measured['machine']}, {measured['cpus']} CPUs, {measured['threads']} threads, Python "
        f"{measured['python']}, {packages}."
    )
    (out / f"{name}.md").write_text("\n\n".join(text) + "\n")
    print("\n\n".join(text))
