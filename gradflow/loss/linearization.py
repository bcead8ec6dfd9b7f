"""A loss at one θ: value, gradient, and products with its second and third derivatives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError, InvalidTypeError

#: Is told how many products were computed.
Count = Callable[[int], None] | None


class SymmetricProducts:
    """A symmetric P × P operator ``A``, by its products ``A @ V`` with vectors.

    Parameters
    ----------
    at : Tensor, shape (P,)
        Vectors must have its dtype and device.
    """

    def __init__(self, at: Tensor) -> None:
        self._at = at

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return (self._at.numel(), self._at.numel())

    @property
    def dtype(self) -> torch.dtype:
        """Of θ."""
        return self._at.dtype

    @property
    def device(self) -> torch.device:
        """Of θ."""
        return self._at.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Multiply vectors, shape (P,) or (P, k), in θ's dtype and on its device."""
        _check_vectors(vectors, self._at)
        with torch.inference_mode(False):
            if vectors.is_inference():
                vectors = vectors.clone()
            rows = vectors.T.contiguous() if vectors.dim() == 2 else vectors.contiguous()[None]
            product = self.multiply(rows)
        self._counted(len(rows))
        return product.T if vectors.dim() == 2 else product[0]

    def multiply(self, rows: Tensor) -> Tensor:
        """Multiply vectors in rows, shape (k, P), unchecked and uncounted."""
        raise NotImplementedError

    def _counted(self, n: int) -> None:
        """Take note of n products."""
        raise NotImplementedError


class Linearization(SymmetricProducts):
    """The loss at one θ, ready for many products with its Hessian H.

    As ``lin @ V`` it is a symmetric operator for :class:`gradflow.SpectrumService`. Where the gradient comes from an
    operation that can't be differentiated again, that is an ``InexactDerivativeError``, here or at the first product.

    Attributes
    ----------
    source : LossFunction
        The loss that it belongs to.
    theta : Tensor, shape (P,)
    value : Tensor, shape ()
    gradient : Tensor, shape (P,)
    accuracy : Tensor, shape (), or None
        Fraction of the samples that the network classifies right, if it was asked for and the loss classifies.
    n_hvps, n_thirds : int
        Products with the Hessian and with third derivatives so far; a block of k vectors counts k.

    Examples
    --------
    >>> from gradflow import LossFunction
    >>> loss = LossFunction.from_callable(lambda x: (x**3).sum())
    >>> lin = loss.linearize(torch.tensor([1.0, 2.0]))
    >>> lin.gradient, lin.hvp(torch.ones(2))
    (tensor([ 3., 12.]), tensor([ 6., 12.]))
    """

    value: Tensor
    gradient: Tensor
    accuracy: Tensor | None = None

    def __init__(self, source: object, theta: Tensor, count: Count, count_third: Count) -> None:
        super().__init__(theta)
        self.source = source
        self.theta = theta
        self.n_hvps = 0
        self.n_thirds = 0
        self._count, self._count_third = count, count_third

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply vectors by the Hessian.

        Parameters
        ----------
        vectors : Tensor, shape (P,) or (P, k)
            In θ's dtype and on its device.

        Returns
        -------
        Tensor, of the shape of `vectors`
            H·V.

        Raises
        ------
        InvalidInputError, InvalidTypeError
            If shape, device or dtype don't match θ.
        """
        return self @ vectors

    def third(self, direction: Tensor) -> ThirdDerivative:
        """Return the derivative of the Hessian along a direction, ∇³L[u], as a symmetric operator.

        Parameters
        ----------
        direction : Tensor, shape (P,)
            u, in θ's dtype and on its device.

        Returns
        -------
        ThirdDerivative
            ``lin.third(u) @ v`` is d/dε H(θ + εu) v at ε = 0, exact to rounding.

        Raises
        ------
        InexactDerivativeError
            If an operation of the loss has no third derivative, or a wrong one.

        Examples
        --------
        >>> from gradflow import LossFunction
        >>> lin = LossFunction.from_callable(lambda x: (x**3).sum()).linearize(torch.tensor([1.0, 2.0]))
        >>> lin.third(torch.tensor([1.0, 0.5])) @ torch.ones(2)
        tensor([6., 3.])
        """
        _check_vectors(direction, self.theta)
        if direction.dim() != 1:
            raise InvalidInputError(
                f"Expected one direction of shape ({len(self.theta)},), got {tuple(direction.shape)}."
            )
        with torch.inference_mode(False):
            return self._third(direction.clone())

    def counted(self, count: Count, count_third: Count = None) -> Self:
        """Return the same linearization, sharing its graphs, with products counted elsewhere.

        Parameters
        ----------
        count, count_third : callable, optional
            Called with the number of products, for those with the Hessian and those with third derivatives.
        """
        other = copy.copy(self)
        other.n_hvps = other.n_thirds = 0
        other._count, other._count_third = count, count_third
        return other

    def with_copies(self) -> Self:
        """Return the same linearization, sharing its graphs and its counts, with tensors that may be written to."""
        other = copy.copy(self)
        other.theta, other.value, other.gradient = (
            t.clone() for t in (self.theta, self.value, self.gradient)
        )
        return other

    def count_thirds(self, n: int) -> None:
        """Take note of n products with third derivatives."""
        self.n_thirds += n
        if self._count_third is not None:
            self._count_third(n)

    def _counted(self, n: int) -> None:
        self.n_hvps += n
        if self._count is not None:
            self._count(n)

    def _third(self, direction: Tensor) -> ThirdDerivative:
        raise NotImplementedError


class ThirdDerivative(SymmetricProducts):
    """The derivative ∇³L[u] of the Hessian along a direction u, a symmetric matrix, by its products.

    Made by :meth:`Linearization.third`.

    Parameters
    ----------
    linearization : Linearization
        Where L is, and what counts the products.
    """

    def __init__(self, linearization: Linearization) -> None:
        super().__init__(linearization.theta)
        self._linearization = linearization

    def _counted(self, n: int) -> None:
        self._linearization.count_thirds(n)


def _check_vectors(vectors: Tensor, theta: Tensor) -> None:
    if not isinstance(vectors, Tensor):
        raise InvalidTypeError(f"Expected vectors as a torch.Tensor, got {type(vectors).__name__}.")
    P = theta.numel()
    if vectors.dim() not in {1, 2} or vectors.shape[0] != P:
        raise InvalidInputError(f"Expected vectors of shape ({P},) or ({P}, k), got {tuple(vectors.shape)}.")
    if vectors.dtype != theta.dtype:
        raise InvalidTypeError(
            f"Expected vectors in θ's dtype {theta.dtype}, got {vectors.dtype}. Convert with .to(theta)."
        )
    if vectors.device != theta.device:
        raise InvalidInputError(
            f"Expected vectors on θ's device {theta.device}, got {vectors.device}. Convert with .to(theta)."
        )
