"""The operators that eigensolvers work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError, InvalidTypeError


@runtime_checkable
class SymmetricOperator(Protocol):
    """A symmetric linear map that multiplies blocks of vectors.

    A :class:`gradflow.loss.Linearization` is one (the Hessian at its θ), and so is a symmetric
    ``torch.Tensor`` of shape (P, P). The Hessian on a subset of the data is the linearization of the loss on
    that subset; :class:`Preconditioned` is one with a diagonal preconditioner.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(P, P)."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the vectors which it multiplies."""

    @property
    def device(self) -> torch.device:
        """That of the vectors which it multiplies."""

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply vectors, shape (P, k)."""


def check_operator(operator: object) -> SymmetricOperator:
    """Refuse what isn't square, real and linear by its looks."""
    if hasattr(operator, "linearize"):
        raise InvalidTypeError("Expected an operator, got a loss. Make the service with it, and pass θ here.")
    if not isinstance(operator, SymmetricOperator):
        raise InvalidTypeError(
            "Expected a LossFunction, a linearization, a symmetric torch.Tensor, or an object with shape, dtype, "
            f"device and @; got {type(operator).__name__}."
        )
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise InvalidInputError(f"Expected a square operator of shape (P, P), got shape {shape}.")
    if operator.dtype not in {torch.float32, torch.float64}:
        raise InvalidTypeError(f"Expected an operator in float32 or float64, got {operator.dtype}.")
    if isinstance(operator, Tensor):
        asymmetry = float((operator - operator.T).abs().nan_to_num().max())
        if asymmetry > 1e3 * torch.finfo(operator.dtype).eps * float(operator.abs().nan_to_num().max()):
            raise InvalidInputError(
                f"Expected a symmetric matrix, got one with max|A − Aᵀ| = {asymmetry:.3g}."
            )
    return operator


class Negated:
    """−H, whose top is the bottom of H."""

    def __init__(self, operator: SymmetricOperator) -> None:
        self.operator = operator
        self.shape = operator.shape
        self.dtype = operator.dtype
        self.device = operator.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return -(self.operator @ vectors)


def negated(operator: SymmetricOperator) -> SymmetricOperator:
    """Return −H; of one that was negated, the operator itself."""
    return operator.operator if isinstance(operator, Negated) else Negated(operator)


class Operator:
    """A linear map given as a function.

    Parameters
    ----------
    multiply : callable
        Multiplies vectors, shape (P,) or (P, k).
    like : Tensor, shape (P,)
        A vector that it can multiply: for its size, dtype and device.
    """

    def __init__(self, multiply: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._multiply = multiply
        self.shape = (len(like), len(like))
        self.dtype = like.dtype
        self.device = like.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self._multiply(vectors)


class Preconditioned:
    """P^(−1/2) H P^(−1/2), P diagonal: its eigenvalues are those of P⁻¹H.

    Parameters
    ----------
    operator : SymmetricOperator
        H.
    diagonal : Tensor, shape (P,)
        The diagonal of P, ≥ 0. Where an entry is 0, the preconditioned gradient is taken to be 0.
    """

    def __init__(self, operator: SymmetricOperator, diagonal: Tensor) -> None:
        self._operator = operator
        self._scale = torch.where(diagonal > 0, diagonal, torch.inf).rsqrt()[:, None].to(operator.dtype)
        self.shape = operator.shape
        self.dtype = operator.dtype
        self.device = operator.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self._scale * (self._operator @ (self._scale * vectors))
