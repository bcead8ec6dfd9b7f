"""What a gradient and a Hessian–vector product cost, against bare torch and other libraries.

Contestants alternate, nine times round; times are medians, ratios medians of the ratios of neighbours. Peak
memory is that of a process of its own, less what it holds before the first call. Arithmetic counts multiplications of
matrices alone: a hidden layer takes three for a gradient and six for a product, the first layer two for either.

    python benchmarks/oracle.py --data DIR [--out DIR]
"""

import argparse
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import cifar, cnn_tanh, fc_tanh, median, publish, seconds, timed
from torch import nn

import gradflow

ROUNDS = 9


def bare_gradient(loss: gradflow.LossFunction) -> Callable[[], Any]:
    """Forward and backward as a training loop does them, the data in one tensor."""
    X, y = loss.data.dataset.tensors
    parameters = list(loss.net.parameters())

    def run() -> Any:
        return torch.autograd.grad(loss.criterion(loss.net(X), y), parameters)

    return run


def by_torch_func(loss: gradflow.LossFunction, theta: torch.Tensor, v: torch.Tensor) -> Callable[[], Any]:
    """Forward over reverse, anew for every product: torch.func.jvp of torch.func.grad."""
    X, y = loss.data.dataset.tensors

    def value(flat: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(loss.layout.names, loss.layout.split(flat), strict=True))
        return loss.criterion(torch.func.functional_call(loss.net, parts, (X,)), y)

    return lambda: torch.func.jvp(torch.func.grad(value), (theta,), (v,))[1]


def by_rebuilding(loss: gradflow.LossFunction, theta: torch.Tensor, v: torch.Tensor) -> Callable[[], Any]:
    """Reverse over reverse with the graph built anew for every product."""
    return lambda: loss.hvp(theta, v)


def by_curvlinops(loss: gradflow.LossFunction, v: torch.Tensor) -> Callable[[], Any]:
    """Return the operator of curvlinops."""
    from curvlinops import HessianLinearOperator

    criterion = loss.criterion if isinstance(loss.criterion, nn.CrossEntropyLoss) else nn.MSELoss()
    H = HessianLinearOperator(
        loss.net,
        criterion,
        list(loss.net.parameters()),
        [loss.data.dataset.tensors],
        check_deterministic=False,
    )
    return lambda: H @ v


def compare(loss: gradflow.LossFunction) -> list[dict[str, object]]:
    """Time gradients and products on one problem."""
    theta = loss.parameters()
    v = torch.randn(theta.numel(), generator=torch.Generator().manual_seed(0)).to(theta)
    block = torch.randn(theta.numel(), 6, generator=torch.Generator().manual_seed(0)).to(theta)
    linearization = loss.linearize(theta)
    contestants: dict[str, tuple[Callable[[], Any], int]] = {
        "bare torch: forward and backward": (bare_gradient(loss), 1),
        "gradflow: gradient": (lambda: loss.gradient(theta), 1),
        "gradflow: value, gradient and graph": (lambda: loss.linearize(theta), 1),
        "gradflow: product, graph kept": (lambda: linearization.hvp(v), 1),
        "gradflow: six products, each": (lambda: linearization.hvp(block), 6),
        "graph built anew for the product": (by_rebuilding(loss, theta, v), 1),
        "torch.func, forward over reverse": (by_torch_func(loss, theta, v), 1),
        "curvlinops": (by_curvlinops(loss, v), 1),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):
        for name, (function, n) in contestants.items():
            times[name].append(timed(function) / n)
    base = times["bare torch: forward and backward"]
    return [
        {
            "": name,
            "milliseconds": f"{1e3 * median(ts[1:]):.2f}",
            "over bare gradient": f"{median([t / b for t, b in zip(ts[1:], base[1:], strict=True)]):.2f}",
        }
        for name, ts in times.items()
    ]


def growth(directory: str | None) -> list[dict[str, object]]:
    """Time gradient and product as N and P grow, and as part of the machine's matrix multiplication rate."""
    A, B = torch.randn(2000, 2000), torch.randn(2000, 2000)
    rate = 2 * 2000**3 / seconds(lambda: A @ B)
    sizes = ((500, 200), (1000, 200), (2000, 200), (5000, 200), (1000, 50), (1000, 800))
    return [_one_size(n, width, rate, directory) for n, width in sizes]


def _one_size(n: int, width: int, rate: float, directory: str | None) -> dict[str, object]:
    loss = cifar(lambda: fc_tanh(width), n, "mse", directory)
    theta = loss.parameters()
    linearization, v = loss.linearize(theta), theta.clone()
    gradient, product = seconds(lambda: loss.gradient(theta)), seconds(lambda: linearization.hvp(v))
    first, later = 3072 * width, width * width + 10 * width
    flops, more_flops = (2 * n * (2 * first + times * later) for times in (3, 6))
    return {
        "images": n,
        "width": width,
        "P": f"{theta.numel():,}",
        "gradient, ms": f"{1e3 * gradient:.1f}",
        "product, ms": f"{1e3 * product:.1f}",
        "product/gradient": f"{product / gradient:.2f}",
        "in arithmetic": f"{more_flops / flops:.2f}",
        "gradient's part of the GEMM rate": f"{flops / gradient / rate:.0%}",
    }


def _peak(what: str, directory: str | None, queue: Any) -> None:
    loss = cifar(lambda: fc_tanh(200), 5000, "mse", directory)
    theta = loss.parameters()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten (Linux)
    before = _status("VmRSS")
    if what == "bare torch: forward and backward":
        bare_gradient(loss)()
    elif what == "gradflow: gradient":
        loss.gradient(theta)
    elif what == "gradflow: ten products, graph kept":
        linearization = loss.linearize(theta)
        for _ in range(10):
            linearization.hvp(theta)
    elif what == "torch.func, forward over reverse":
        by_torch_func(loss, theta, theta)()
    else:
        by_curvlinops(loss, theta)()
    queue.put((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    """Read a size of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def memory(directory: str | None) -> list[dict[str, object]]:
    """Peak memory of each way, in a process of its own."""
    rows, context = [], multiprocessing.get_context("spawn")
    for what in (
        "bare torch: forward and backward",
        "gradflow: gradient",
        "gradflow: ten products, graph kept",
        "torch.func, forward over reverse",
        "curvlinops",
    ):
        queue = context.Queue()
        process = context.Process(target=_peak, args=(what, directory, queue))
        process.start()
        rows.append({"": what, "peak, MiB": f"{queue.get():.0f}"})
        process.join()
    return rows


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="directory of CIFAR-10 (default: $GRADFLOW_DATA)")
    parser.add_argument("--out", default="docs/benchmarks")
    args = parser.parse_args()
    digits, _, _ = gradflow.problems.load("digits", "fc-tanh", "ce")
    sections = {
        "fc-tanh (656,810 parameters), 5,000 CIFAR-10 images, squared error": compare(
            cifar(lambda: fc_tanh(200), 5000, "mse", args.data)
        ),
        "cnn-tanh, 500 CIFAR-10 images, cross-entropy": compare(cifar(cnn_tanh, 500, "ce", args.data)),
        "fc-tanh on the digits, cross-entropy": compare(digits),
        "Growth": growth(args.data),
        "Memory: fc-tanh, 5,000 images": memory(args.data),
    }
    publish(
        "oracle", args.out, "The loss oracle", sections, (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    )


if __name__ == "__main__":
    main()
