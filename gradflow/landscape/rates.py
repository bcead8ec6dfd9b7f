"""An optimiser stepped at a learning rate that changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownOptionError
from gradflow.integrators import METHODS, Field, Integrator, Point, make_integrator
from gradflow.integrators.optimizers.adapter import TorchOptimizer
from gradflow.loss import LossFunction

#: A method's name, an integrator, or a class of optimisers.
Method: TypeAlias = str | Integrator | type[Optimizer]


def make_optimizer(
    method: Method, options: Mapping[str, Any] | None, lr: float, loss: LossFunction
) -> Integrator:
    """Make a method that has a learning rate.

    Raises
    ------
    InvalidInputError
        If it has none, or a scheduler of its own.
    UnknownOptionError
        If `options` has a learning rate or a scheduler.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InvalidTypeError(f"Expected method_options as a mapping, got {type(options).__name__}.")
    options = dict(options or {})
    for name in ("lr", "scheduler"):
        if name in options:
            raise UnknownOptionError(
                f"The learning rate is what changes here. Leave {name} out of method_options."
            )
    cls = type(method) if isinstance(method, Integrator) else METHODS.get(str(method))
    if cls is not None and "lr" not in {field.name for field in dataclasses.fields(cls)}:
        raise InvalidInputError(f"Expected a method with a learning rate, got {cls.name!r}, which has none.")
    if not isinstance(method, Integrator):
        return make_integrator(method, {"lr": lr, **options}).resolve(loss)
    if getattr(method, "scheduler", None) is not None:
        raise InvalidInputError("The learning rate is what changes here. Give a method without a scheduler.")
    return _at(make_integrator(method, options), lr=lr).resolve(loss)


def steps_at(
    rates: np.ndarray, integrator: Integrator, losses: Sequence[LossFunction], theta: Tensor
) -> Iterator[Point]:
    """Return θ before the first step and after each, which goes on with what the method remembers.

    Parameters
    ----------
    rates : ndarray, shape (n,)
        Learning rate of each step.
    integrator : Integrator
        As in :func:`make_optimizer`.
    losses : sequence of LossFunction
        Taken in turn, one a step: the loss, or mini-batches of it.
    theta : Tensor, shape (P,)
        Never written.

    Yields
    ------
    Point
        n + 1 of them, each of the loss that the next step takes.
    """
    each = rates.tolist()
    scheduled = isinstance(integrator, TorchOptimizer)
    if scheduled:
        last = len(each) - 1
        integrator = _at(
            integrator,
            lr=1.0,
            scheduler=lambda optimizer: LambdaLR(optimizer, lambda k: each[min(k, last)]),
            scheduler_every="step",
        )
    flows = [Field(loss, keep_graph=integrator.keep_graph) for loss in losses]
    point = flows[0].at(theta)
    yield point
    state = integrator.init(point)
    for k, lr in enumerate(each):
        if not scheduled:
            integrator = _at(integrator, lr=lr)
        rule = integrator.step_rule
        result = integrator.step(point, rule.propose(point, 0.0, k, None).h, state)
        state = result.state
        point = flows[(k + 1) % len(flows)].at(result.z)
        yield point


def _at(integrator: Integrator, **options: Any) -> Integrator:
    return dataclasses.replace(integrator, **options)
