"""Where a loss comes from: a sum of terms, each a differentiable scalar of the parameter leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from gradflow.errors import CriterionError
from gradflow.loss.numerics import exact_derivatives
from gradflow.loss.second_derivatives import SecondDerivatives

Term = Callable[[Sequence[Tensor]], Tensor]


class LossSource(Protocol):
    """A loss as a sum of terms.

    Implemented by :class:`CallableLoss` (one term) and
    :class:`gradflow.loss.empirical.EmpiricalRisk` (one term per chunk of the data).

    Attributes
    ----------
    n_parameters : int or None
        P; None where any θ will do.
    names : tuple of str
        Of the leaves.
    second : SecondDerivatives
        Whether products with the Hessian can be trusted.
    recomputes : bool
        Differentiation evaluates parts of the terms again (activation checkpointing), so that it must happen
        while the leaves are in place.
    """

    n_parameters: int | None
    names: tuple[str, ...]
    second: SecondDerivatives
    recomputes: bool

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Cut θ, shape (P,), into the tensors that the terms are functions of."""

    def terms(self, theta: Tensor) -> Iterator[Term]:
        """Return the terms, on θ's device and in its dtype; their sum is the loss."""

    def in_place(self, leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Return the context in which terms of these leaves are evaluated, and differentiated."""

    def keeps_graphs(self, theta: Tensor) -> bool:
        """Whether the gradient graphs of all terms fit in memory together."""

    def batches_products(self, theta: Tensor) -> bool:
        """Whether several Hessian–vector products are cheaper at once than one after another."""

    def settings(self, theta: Tensor) -> Any:
        """Return the settings of torch under which terms are evaluated and differentiated."""

    def describe(self) -> dict[str, Any]:
        """Return what a record should say of the loss; JSON values."""

    def fingerprint(self) -> str:
        """Return a hash of what the loss is of, θ apart."""


#: Parameters up to which the cost of a function is taken to be that of its calls, not of its arithmetic.
SMALL_FUNCTION = 1000


class CallableLoss:
    """A loss given as a differentiable function of flat θ.

    Parameters
    ----------
    function : callable
        ``function(theta) -> Tensor``, a scalar, for θ of shape (P,), written in torch.
    """

    n_parameters: int | None = None
    names: tuple[str, ...] = ("theta",)
    recomputes = False

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self.second = SecondDerivatives()

    def leaves(self, theta: Tensor) -> list[Tensor]:
        """Θ itself is the one leaf."""
        return [theta]

    def terms(self, theta: Tensor) -> Iterator[Term]:
        """Return the function as the only term."""
        yield self._term

    def in_place(self, leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
        """There is no place but the function's argument."""
        return nullcontext()

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

    def keeps_graphs(self, theta: Tensor) -> bool:
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
        return {"function": name}


def accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    """Add `part` to a running sum; the sum of one part is that part, bit for bit."""
    return part if total is None else total + part


def as_flat(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors into one of shape (P,)."""
    return torch.cat([part.reshape(-1) for part in parts])
