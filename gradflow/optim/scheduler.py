"""Schedulers of the learning rate: made from a function or from text, and stepped."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer, lr_scheduler

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest

MakesScheduler = Callable[[Optimizer], Any]


def make_scheduler(scheduler: MakesScheduler | str, optimizer: Optimizer) -> Any:
    """Make the scheduler of an optimiser.

    Parameters
    ----------
    scheduler : callable or str
        ``scheduler(optimizer)`` returns a scheduler of ``torch.optim.lr_scheduler``; text is read by
        :func:`read_scheduler`.
    optimizer : Optimizer

    Raises
    ------
    InvalidInputError, InvalidTypeError
        If it is neither, or doesn't return a scheduler.
    """
    make = read_scheduler(scheduler) if isinstance(scheduler, str) else scheduler
    if not callable(make):
        raise InvalidTypeError(
            "Expected scheduler as a function of the optimiser, such as lambda o: StepLR(o, 100), or a string such "
            f'as "StepLR(step_size=100)", got {type(make).__name__}.'
        )
    made = make(optimizer)
    if not hasattr(made, "step") or not hasattr(made, "state_dict"):
        raise InvalidTypeError(
            f"Expected scheduler(optimizer) to return a scheduler, got {type(made).__name__}."
        )
    return made


def step_scheduler(scheduler: Any, loss: float) -> None:
    """Step a scheduler; ReduceLROnPlateau is given the loss."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    else:
        scheduler.step()


def read_scheduler(text: str) -> MakesScheduler:
    """Read a scheduler given as text, ``NAME`` or ``NAME(option=value, …)``.

    Examples
    --------
    >>> import torch
    >>> make = read_scheduler("StepLR(step_size=2, gamma=0.5)")
    >>> type(make(torch.optim.SGD([torch.zeros(1)], lr=0.1))).__name__
    'StepLR'
    """
    names = {
        name
        for name, cls in vars(lr_scheduler).items()
        if isinstance(cls, type) and (issubclass(cls, lr_scheduler.LRScheduler)) and name != "LRScheduler"
    } | {"ReduceLROnPlateau"}
    try:
        call = ast.parse(text.strip(), mode="eval").body
        name = call.func.id if isinstance(call, ast.Call) else call.id  # type: ignore[attr-defined]
        keywords = call.keywords if isinstance(call, ast.Call) else []
        if isinstance(call, ast.Call) and call.args:
            raise ValueError("options by name")
        options = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f'Expected scheduler as NAME(option=value, …), such as "StepLR(step_size=100, gamma=0.5)", got {text!r}.'
        ) from error
    if name not in names:
        raise UnknownNameError(f"No scheduler {name!r} in torch.optim.lr_scheduler; {suggest(name, names)}")
    cls = getattr(lr_scheduler, name)

    def make(optimizer: Optimizer) -> Any:
        try:
            return cls(optimizer, **options)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"torch.optim.lr_scheduler.{name}: {error}") from error

    return make
