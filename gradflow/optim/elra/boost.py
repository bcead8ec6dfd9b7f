"""Averages of the points that an optimiser accepts, in a copy of its model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError, InvalidTypeError

#: Accepted points in a block.
BLOCK = 240
#: Fewest points that are averaged.
_FEWEST = 4


class Average:
    """Running mean of points and of their losses.

    Attributes
    ----------
    n_points : int
    theta : Tensor or None, shape (P,)
    loss : float
    """

    def __init__(self) -> None:
        self.n_points = 0
        self.theta: Tensor | None = None
        self.loss = math.nan

    def add(self, θ: Tensor, loss: float) -> None:
        """Add a point."""
        self.n_points += 1
        self.theta = θ.clone() if self.theta is None else self.theta.lerp_(θ, 1 / self.n_points)
        self.loss = loss if self.n_points == 1 else self.loss + (loss - self.loss) / self.n_points


class Boost:
    """Cyclic uniform average of accepted points, as in stochastic weight averaging (Izmailov et al. 2018).

    Points are averaged in blocks of 240. A reading gives the last complete block and drops the points after it, or,
    where no block was completed since the last reading, all points since then. Nothing feeds back to the optimiser.

    Parameters
    ----------
    model : torch.nn.Module
        Copied.
    parameters : sequence of Tensor
        The optimiser's, all of them the model's.

    Attributes
    ----------
    model : torch.nn.Module
        The copy: parameters of the last average, buffers as they were when it was made.
    given : bool
        Whether the copy has been given an average.
    now, before : Tensor or None, shape (P,)
        The last two averages given.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"Expected model to be a torch.nn.Module, got {type(model).__name__}.")
        names = {id(p): name for name, p in model.named_parameters()}
        if any(id(p) not in names for p in parameters):
            raise InvalidInputError("Expected the model whose parameters the optimiser has, got another one.")
        self.model = copy.deepcopy(model)
        self._names = [names[id(p)] for p in parameters]
        self.now: Tensor | None = None
        self.before: Tensor | None = None
        self._block = Average()
        self._complete: Average | None = None

    @property
    def given(self) -> bool:
        """Whether the copy has been given an average."""
        return self.now is not None

    def add(self, θ: Tensor, loss: float) -> None:
        """Add an accepted point and its loss."""
        self._block.add(θ, loss)
        if self._block.n_points == BLOCK:
            self._complete, self._block = self._block, Average()

    def read(self, device: torch.device | str | None) -> tuple[int, float, nn.Module | None]:
        """Return the points averaged, their mean loss, and the model; (0, 0.0, None) for fewer than 4 points."""
        average = self._complete or self._block
        if average.theta is None or average.n_points < _FEWEST:
            return 0, 0.0, None
        self._complete, self._block = None, Average()
        self.before, self.now = self.now, average.theta
        if device is not None:
            self.model.to(device)
        self._write(average.theta)
        return average.n_points, average.loss, self.model

    def future(self, t: float) -> Tensor:
        """Return (1 + t)·now − t·before, shape (P,)."""
        if self.now is None or (t != 0 and self.before is None):
            raise InvalidInputError(
                f"Expected {1 if t == 0 else 2} averages to extrapolate from, got {int(self.given)}. "
                "Call get_boost_model first."
            )
        return self.now.clone() if self.before is None else self.now.lerp(self.before, -t)

    def _write(self, θ: Tensor) -> None:
        parameters = [self.model.get_parameter(name) for name in self._names]
        with torch.no_grad():
            for p, part in zip(parameters, θ.split([p.numel() for p in parameters]), strict=True):
                p.copy_(part.view(p.shape))
