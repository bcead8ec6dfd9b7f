"""The learning rate as a smooth function of the optimiser's step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.optim.scheduler import MakesScheduler, make_scheduler

#: A learning rate as a user gives it: a number, or a function of the step.
LearningRateLike = float | Callable[[float], float]

#: Part of 1 + t over which a schedule is differentiated.
_APART = 1e-4


@dataclass(frozen=True)
class LearningRate:
    """η as a function of the optimiser's step t ≥ 0, which need not be whole.

    Parameters
    ----------
    given : float or callable
    """

    given: LearningRateLike

    @property
    def is_constant(self) -> bool:
        """Whether it is a number."""
        return not callable(self.given)

    def at(self, t: float) -> float:
        """Return η(t)."""
        if not callable(self.given):
            return float(self.given)
        try:
            value = float(self.given(t))
        except (TypeError, ValueError) as error:
            raise InvalidTypeError(f"Expected lr(step) to return a number, got an error: {error}") from error
        if not 0 < value < float("inf"):
            raise InvalidInputError(f"Expected lr(step) > 0 and finite, got {value} at step {t:g}.")
        return value

    def slope(self, t: float) -> float:
        """Return dη/dt by differences of second order."""
        if self.is_constant:
            return 0.0
        d = _APART * (1 + t)
        if t < d:
            return (-3 * self.at(t) + 4 * self.at(t + d) - self.at(t + 2 * d)) / (2 * d)
        return (self.at(t + d) - self.at(t - d)) / (2 * d)


class _Scheduled:
    """The learning rate that a scheduler gives, linear from step to step.

    Parameters
    ----------
    lr : float
        The optimiser's own.
    scheduler : callable or str
    """

    def __init__(self, lr: float, scheduler: MakesScheduler | str) -> None:
        self.__qualname__ = str(getattr(scheduler, "__qualname__", scheduler))
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        self._scheduler = make_scheduler(scheduler, self._optimizer)
        if isinstance(self._scheduler, ReduceLROnPlateau):
            raise InvalidInputError(
                "Expected a scheduler whose learning rate depends on the step alone, got ReduceLROnPlateau."
            )
        self._rates = [self._present()]

    def _present(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def __call__(self, t: float) -> float:
        whole = math.floor(t)
        while len(self._rates) < whole + 2:
            self._optimizer.step()
            self._scheduler.step()
            self._rates.append(self._present())
        part = t - whole
        return (1 - part) * self._rates[whole] + part * self._rates[whole + 1]


def check_learning_rate(lr: object, scheduler: MakesScheduler | str | None = None) -> LearningRate:
    """Refuse what isn't a positive number or a function of the step, or a scheduler of a number.

    Raises
    ------
    InvalidInputError, InvalidTypeError
    """
    if scheduler is not None:
        rate = LearningRate(_Scheduled(check_number("lr", lr, above=0), scheduler))
    else:
        if not callable(lr):
            check_number("lr", lr, above=0)
        rate = LearningRate(lr)  # type: ignore[arg-type]
    rate.at(0.0)
    return rate
