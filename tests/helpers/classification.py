"""A small network on random classes, and the optimisers that train it."""

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import TensorDataset

import gradflow
from gradflow.integrators import METHODS
from gradflow.integrators.optimizers.adapter import TorchOptimizer

#: Every class of torch.optim that runs on dense tensors on the CPU, by name.
TORCH = sorted(
    name for name, cls in METHODS.items()
    if issubclass(cls, TorchOptimizer) and cls.optimizer.__module__.startswith("torch.optim")
    if name not in {"polyak", "nesterov"}
)  # fmt: skip

SCHEDULES = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.05, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
}  # fmt: skip


def data(n=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def network(dtype=torch.float32, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 5, bias=bias), nn.Tanh(), nn.Linear(5, 3, bias=bias)).to(dtype)


def problem(dtype=torch.float32, bias=True, n=40, **options):
    X, y = data(n)
    return gradflow.LossFunction(
        TensorDataset(X.to(dtype), y), nn.CrossEntropyLoss(), network(dtype, bias), **options
    )
