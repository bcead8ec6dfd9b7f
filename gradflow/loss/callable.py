"""A loss given as a function of flat θ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradflow.errors import CriterionError, InvalidTypeError
from gradflow.loss.accuracy import Tally
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.second_derivatives import SecondDerivatives
from gradflow.loss.terms import Term, TermLoss

#: Parameters up to which the cost of a function is taken to be that of its calls, not of its arithmetic.
SMALL_FUNCTION = 1000


class CallableLoss(TermLoss):
    """A loss given as a differentiable function of flat θ; made by :meth:`LossFunction.from_callable`.

    Parameters
    ----------
    function : callable
        ``function(theta) -> Tensor``, a scalar, for θ of shape (P,), written in torch.
    """

    names = ("theta",)

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function):
            raise InvalidTypeError(f"Expected a callable theta -> scalar, got {type(function).__name__}.")
        self._function = function
        self._labels: dict[str, Any] = {}
        self.second = SecondDerivatives()

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Θ itself is the one leaf."""
        return [theta]

    def terms(self, theta: Tensor, tally: Tally | None = None) -> Iterator[Term]:
        """Return the function as the only term."""
        yield self._term

    def _term(self, leaves: Sequence[Tensor]) -> Tensor:
        value = self._function(leaves[0])
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = (
                f"shape {tuple(value.shape)} in {value.dtype}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise CriterionError(f"The loss function must return a scalar torch.Tensor, got {got}.")
        return value.reshape(())

    def keeps_graphs(self, dtype: torch.dtype, *, order: int = 2) -> bool:
        """One graph is always kept."""
        return True

    def batches_products(self, theta: Tensor) -> bool:
        """For few parameters."""
        return theta.numel() <= SMALL_FUNCTION

    def settings(self, theta: Tensor) -> Any:
        """Evaluate with kernels that have second derivatives."""
        return exact_derivatives(theta.device)

    def fingerprint(self) -> str:
        """There are no data that could be told."""
        return "a callable"

    def describe(self) -> dict[str, Any]:
        """Name the function."""
        name = getattr(self._function, "__qualname__", type(self._function).__qualname__)
        return self._labels | {"function": name}

    def on_few_samples(self, n: int) -> CallableLoss:
        """There are no samples: return a copy whose derivatives nobody has looked at yet."""
        other = copy.copy(self)
        other.second = SecondDerivatives()
        return other


def penalty(function: Callable[[Tensor], Tensor]) -> CallableLoss:
    """Make a term to add to a loss of any differentiable scalar function of flat θ.

    Parameters
    ----------
    function : callable
        ``function(theta) -> Tensor``, a scalar, for θ of shape (P,), written in torch.

    Returns
    -------
    LossFunction

    Examples
    --------
    >>> loss = penalty(lambda x: (x[0] * x[1]) ** 2) + 0.01 * penalty(lambda x: x.square().sum())
    >>> loss.hvp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    tensor([0.0000, 2.0200])
    """
    return CallableLoss(function)
