"""Learning rate schedules: warm restarts with their snapshots, and schedulers side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradflow.checks import check_count, check_number
from gradflow.errors import IntegrationWarning, InvalidInputError, InvalidTypeError
from gradflow.landscape.arguments import as_theta, progress_bar
from gradflow.landscape.batches import as_batches
from gradflow.landscape.rates import Method, make_optimizer, steps_at
from gradflow.loss import Loss, LossFunction, as_loss

Scheduler = Callable[[torch.optim.Optimizer], Any]


def cyclic(
    loss: Loss,
    params: Tensor | None = None,
    *,
    lr: float,
    cycle: int,
    n_cycles: int,
    lr_min: float = 0.0,
    method: Method = "gd",
    batches: Sequence[LossFunction] | None = None,
    batch_size: int | None = None,
    n_batches: int | None = None,
    seed: int = 0,
    method_options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Descend with warm restarts, and keep θ at the end of each cycle.

    Cosine annealing (Loshchilov & Hutter 2017): step k of a cycle has the learning rate
    ``lr_min + ½(lr − lr_min)(1 + cos(πk/cycle))``, k = 0 … cycle − 1. The next cycle starts from where the last
    ended, at `lr` again; its snapshots, each near a minimum, make an ensemble (Huang et al. 2017).

    Parameters
    ----------
    loss : LossFunction or callable
    params : Tensor, shape (P,), optional
        θ₀, never changed. Default: the net's present weights; must be given for a callable.
    lr : float
        Learning rate at the start of each cycle.
    cycle : int
        Steps of a cycle.
    n_cycles : int
    lr_min : float, default 0.0
        Lower bound of the learning rate, which would be reached at the first step of the next cycle.
    method : str, Integrator or class of optimisers, default "gd"
        One with a learning rate. A restart keeps what it remembers (momentum).
    batches, batch_size, n_batches, seed
        Mini-batches to descend on, in turn, as in :func:`lr_find`. Default: all data at every step.
    method_options : mapping, optional
        Options of the method but for its learning rate.
    progress : bool, optional
        Show a progress line on standard error. Default: when it is a terminal.

    Returns
    -------
    xarray.Dataset
        Over ``cycle``: the snapshot ``theta`` (cycle, param), its ``train_loss`` and ``gradient_norm`` on all data, and
        ``train_accuracy`` if the targets are classes. Over ``step``: ``lr``, and ``loss`` before that step, of the
        mini-batch if there are any. If the loss stops being finite, there is an IntegrationWarning, and what
        would follow is NaN.

    Examples
    --------
    >>> bowl = lambda x: (x**2).sum()
    >>> found = cyclic(bowl, torch.ones(2), lr=0.2, cycle=5, n_cycles=3)
    >>> found.theta.shape, bool((found.train_loss.diff("cycle") < 0).all())
    ((3, 2), True)
    """
    loss = as_loss(loss)
    theta = as_theta(loss, params)
    check_number("lr", lr, above=0)
    check_number("lr_min", lr_min, least=0)
    if lr_min > lr:
        raise InvalidInputError(f"Expected lr_min ≤ lr, got {lr_min} and {lr}. Exchange them.")
    check_count("cycle", cycle, least=1)
    check_count("n_cycles", n_cycles, least=1)
    parts = as_batches(loss, batches, batch_size, n_batches, seed)
    integrator = make_optimizer(method, method_options, lr, loss)
    one = lr_min + 0.5 * (lr - lr_min) * (1 + np.cos(np.pi * np.arange(cycle) / cycle))
    rates = np.tile(one, n_cycles)

    before = np.full(len(rates), np.nan)
    snapshots: list[Tensor] = []
    with progress_bar(len(rates), "cyclic", progress) as shown:
        for k, point in enumerate(steps_at(rates, integrator, parts or [loss], theta)):
            if k and k % cycle == 0:
                snapshots.append(point.theta)
            if k == len(rates):
                break
            before[k] = point.loss
            if not point.is_finite:
                detail = f"The loss or its gradient stopped being finite at step {k}. Take a smaller lr."
                warnings.warn(detail, IntegrationWarning, stacklevel=2)
                break
            shown.update()
    return _record(loss, theta, snapshots, rates, before, n_cycles).assign_attrs(
        method=integrator.name, cycle_length=cycle
    )


def schedules(schedulers: Mapping[str, Scheduler], n_steps: int, *, lr: float = 1.0) -> xr.Dataset:
    """Return the learning rates of torch's schedulers, to compare or plot.

    Parameters
    ----------
    schedulers : mapping of str to callable
        ``function(optimizer)`` makes a scheduler of ``torch.optim.lr_scheduler``. The optimiser that it gets is
        ``torch.optim.SGD`` with momentum 0.9 and one parameter that doesn't move.
    n_steps : int
    lr : float, default 1.0
        The optimiser's own learning rate.

    Returns
    -------
    xarray.Dataset
        ``lr`` (schedule, step): what each step uses, the scheduler being stepped after the optimiser.

    Examples
    --------
    >>> halving = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    >>> schedules({"halving": halving}, 5).lr.sel(schedule="halving").values.tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    if not isinstance(schedulers, Mapping) or not schedulers:
        raise InvalidTypeError(
            "Expected at least one scheduler by name: {'cosine': lambda optimizer: CosineAnnealingLR(optimizer, 100)}."
        )
    check_count("n_steps", n_steps, least=1)
    check_number("lr", lr, above=0)
    rates = [_rates_of(name, make, n_steps, lr) for name, make in schedulers.items()]
    return xr.Dataset(
        {"lr": (("schedule", "step"), np.array(rates), {"units": "1", "long_name": "learning rate"})},
        {"schedule": list(schedulers), "step": np.arange(n_steps)},
    )


def _rates_of(name: str, make: Scheduler, n_steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = make(optimizer)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise InvalidInputError(
            f"{name!r} is a ReduceLROnPlateau, whose learning rate depends on a loss. Leave it out."
        )
    if not callable(getattr(scheduler, "step", None)):
        raise InvalidTypeError(
            f"Expected {name!r} to make a scheduler of torch.optim.lr_scheduler, got {type(scheduler).__name__}."
        )
    rates = []
    for _ in range(n_steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def _record(
    loss: LossFunction,
    theta: Tensor,
    snapshots: Sequence[Tensor],
    rates: np.ndarray,
    before: np.ndarray,
    n_cycles: int,
) -> xr.Dataset:
    states = np.full((n_cycles, theta.numel()), np.nan, theta.cpu().numpy().dtype)
    losses, slopes, accuracies = (np.full(n_cycles, np.nan) for _ in range(3))
    for i, snapshot in enumerate(snapshots):
        states[i] = snapshot.detach().cpu().numpy()
        value, gradient = loss.gradient(snapshot)
        losses[i], slopes[i] = float(value), float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        accuracies[i] = loss.evaluate(snapshot)[1] if loss.classifies else np.nan
    variables: dict[str, tuple[Any, np.ndarray, str]] = {
        "theta": (("cycle", "param"), states, "flat parameters at the end of the cycle"),
        "train_loss": ("cycle", losses, "training loss at the end of the cycle"),
        "gradient_norm": ("cycle", slopes, "2-norm of the gradient of the training loss"),
        "train_accuracy": ("cycle", accuracies, "fraction of the training set classified right"),
        "lr": ("step", rates, "learning rate of the step"),
        "loss": ("step", before, "loss before the step"),
    }
    if not loss.classifies:
        del variables["train_accuracy"]
    data = {
        name: (dims, values, {"units": "1", "long_name": said})
        for name, (dims, values, said) in variables.items()
    }
    return xr.Dataset(data, {"cycle": np.arange(1, n_cycles + 1), "step": np.arange(len(rates))})
