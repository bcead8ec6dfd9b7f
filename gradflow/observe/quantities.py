"""Quantities that have a name: numbers at an observed point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, suggest
from gradflow.loss import LossFunction
from gradflow.observe.point import ObservedPoint

#: Residual to which λ₁ is computed: its error is of second order in it.
_SHARPNESS_TOL = 1e-4


def gradient_norm(point: ObservedPoint) -> float:
    """Return the 2-norm of the gradient."""
    return float(torch.linalg.vector_norm(point.gradient, dtype=torch.float64))


def sharpness(point: ObservedPoint) -> float:
    """Return the largest eigenvalue of the Hessian."""
    return float(point.top(1, tol=_SHARPNESS_TOL).values[0])


QUANTITIES: Mapping[str, Callable[[ObservedPoint], float]] = {
    "loss": lambda point: point.loss,
    "accuracy": lambda point: point.accuracy,
    "gradient_norm": gradient_norm,
    "sharpness": sharpness,
}


def check_quantity(quantity: str | Callable[[Any], Any], loss: LossFunction) -> None:
    """Refuse the name of a quantity that there isn't.

    Raises
    ------
    UnknownNameError, InvalidInputError
    """
    if callable(quantity):
        return
    if quantity not in QUANTITIES:
        raise UnknownNameError(
            f"No quantity {quantity!r}; {suggest(quantity, QUANTITIES)} Or give a function of the observed point."
        )
    if quantity == "accuracy" and not loss.classifies:
        raise InvalidInputError("An event of the accuracy needs a loss whose targets are classes.")


def evaluate(quantity: str | Callable[[Any], Any], point: ObservedPoint) -> float:
    """Return the value of a quantity at a point.

    Raises
    ------
    InvalidTypeError
        If a function doesn't return a number.
    """
    function = QUANTITIES[quantity] if isinstance(quantity, str) else quantity
    value = function(point)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTypeError(
            f"Expected the quantity of an event as a number, got {type(value).__name__} {str(value)[:60]}."
        ) from error
