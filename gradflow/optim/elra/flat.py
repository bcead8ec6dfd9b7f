"""Parameters of any shapes, dtypes and devices, read and written as one vector θ."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gradflow.errors import InvalidInputError, InvalidTypeError


class FlatParameters:
    """Copy parameters into one vector, and back; their storage stays as it is.

    θ is on the first parameter's device, and in the widest of the dtypes, float32 at least. Parameters in a narrower
    dtype show a rounded θ, which is remembered in full; an element that was edited since is read from the parameter.

    Parameters
    ----------
    parameters : sequence of Tensor
        In the order of the vector.

    Attributes
    ----------
    n : int
        Elements in all.
    theta : Tensor or None, shape (n,)
        The θ that was last written, if a parameter can't hold it.
    writes : int
        How often θ was written.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        if not parameters:
            raise InvalidInputError("Expected a parameter that requires a gradient, got none.")
        wrong = {str(p.dtype) for p in parameters if not p.is_floating_point()}
        if wrong:
            raise InvalidTypeError(
                f"Expected real floating-point parameters, got {', '.join(sorted(wrong))}."
            )
        self.parameters = list(parameters)
        self.sizes = [p.numel() for p in parameters]
        self.n = sum(self.sizes)
        self.device = parameters[0].device
        self.dtype = functools.reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
        self.theta: Tensor | None = None
        self.writes = 0
        self._is_narrow = any(p.dtype != self.dtype for p in parameters)

    def read(self) -> Tensor:
        """Return θ in a new tensor."""
        shown = self._flatten([p.detach() for p in self.parameters])
        if self.theta is None:
            return shown
        return torch.where(shown == self._rounded(self.theta), self.theta, shown)

    def write(self, θ: Tensor) -> None:
        """Copy θ into the parameters. The tensor is kept and must not be changed afterwards."""
        for parameter, part in zip(self.parameters, self.split(θ), strict=True):
            parameter.copy_(part)
        self.theta = θ if self._is_narrow else None
        self.writes += 1

    def gradient(self) -> Tensor:
        """Return the gradient in a new tensor; 0 for parameters without one."""
        gradients = [p.grad for p in self.parameters]
        if all(g is None for g in gradients):
            raise InvalidInputError(
                "Expected a gradient in at least one parameter, got none. Call loss.backward() before the step."
            )
        if any(g is not None and g.layout is not torch.strided for g in gradients):
            raise InvalidTypeError(
                "Expected dense gradients, got a sparse one. Use sparse=False in the layer."
            )
        return self._flatten(
            [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, self.parameters, strict=True)]
        )

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into views of the parameters' shapes."""
        parts = vector.split(self.sizes)
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def check(self, name: str, vector: Tensor) -> Tensor:
        """Return a vector of the caller's in θ's dtype and on its device, as a copy; refuse another shape."""
        if not isinstance(vector, Tensor):
            raise InvalidTypeError(f"Expected {name} to be a Tensor, got {type(vector).__name__}.")
        if vector.shape != (self.n,):
            raise InvalidInputError(f"Expected {name} of shape ({self.n},), got {tuple(vector.shape)}.")
        return vector.detach().to(self.device, self.dtype, copy=True)

    def _flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.to(self.device, self.dtype).reshape(-1) for t in tensors])

    def _rounded(self, θ: Tensor) -> Tensor:
        """Return θ as the parameters show it."""
        parts = zip(self.parameters, self.split(θ), strict=True)
        return self._flatten([part.to(p.dtype) for p, part in parts])
