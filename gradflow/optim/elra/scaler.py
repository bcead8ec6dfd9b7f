"""Loss scaling for ELRA in half precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.optim.elra.optimizer import ElraOptimizer

#: The scale doesn't grow beyond it.
_LARGEST_SCALE = 2.0**16
#: The scale doesn't shrink below it.
_SMALLEST_SCALE = 0.5


class NoGradient:
    """Stands for a loss that isn't differentiated, because its step is taken back anyway."""

    def backward(self) -> None:
        """Do nothing."""


class ElraGradScaler:
    """Multiplies the loss so that small gradients don't underflow, and divides the gradient before the step.

    The counterpart of ``torch.amp.GradScaler`` for :class:`ElraOptimizer`, which needs the loss:
    ``scale(loss).backward()``, ``step(optimizer)``, ``update()``.

    A step whose scaled gradient overflows is skipped, and the scale reduced. Where a scale near 1 doesn't help, the
    gradient itself is at fault, and the optimiser takes its last step back. So it does where the loss
    isn't below `loss_limit`; no gradient is computed then.

    Parameters
    ----------
    init_scale : float, default 2**16
    growth_factor : float, default 2.0
        Greater than 1. The scale grows to 2**16 at most, or to `init_scale`.
    backoff_factor : float, default 0.5
        In (0, 1).
    growth_interval : int, default 2000
        Calls of :meth:`update` without an overflow before the scale grows.
    loss_limit : float, default 65000.0
    enabled : bool, default True
        False: the loss passes as it is.

    Raises
    ------
    InvalidInputError, InvalidTypeError
        For an option out of range, or not a number.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        loss_limit: float = 65000.0,
        enabled: bool = True,
    ) -> None:
        check_number("init_scale", init_scale, above=0)
        check_number("growth_factor", growth_factor, above=1)
        check_number("backoff_factor", backoff_factor, above=0, below=1)
        check_count("growth_interval", growth_interval, least=1)
        check_number("loss_limit", loss_limit, finite=False)
        self.growth_factor, self.backoff_factor = float(growth_factor), float(backoff_factor)
        self.growth_interval, self.loss_limit = int(growth_interval), float(loss_limit)
        self.enabled = bool(enabled)
        self._scale = float(init_scale)
        self._largest = max(self._scale, _LARGEST_SCALE)
        self._left = self.growth_interval
        self._loss: float | None = None

    def scale(self, loss: Tensor) -> Tensor | NoGradient:
        """Remember a loss and give it scaled, in a new tensor, ready for ``backward()``."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InvalidTypeError(
                f"Expected the loss as a Tensor of one element, got {type(loss).__name__}."
            )
        self._loss = float(loss.detach())
        if not self.enabled:
            return loss
        return loss * self._scale if self._loss < self.loss_limit else NoGradient()

    def step(self, optimizer: ElraOptimizer) -> None:
        """Let the optimiser take a step with the unscaled gradient and loss, take one back, or skip it."""
        if not isinstance(optimizer, ElraOptimizer):
            raise InvalidTypeError(f"Expected an ElraOptimizer, got {type(optimizer).__name__}.")
        if self._loss is None:
            raise InvalidInputError(
                "Expected a scaled loss, got none. Call scale(loss).backward() before the step."
            )
        loss, self._loss = self._loss, None
        if not self.enabled:
            optimizer.step(loss)
        elif not loss < self.loss_limit:
            optimizer.step_retrace(loss)
        else:
            self._step(optimizer, loss)

    def _step(self, optimizer: ElraOptimizer, loss: float) -> None:
        gradient = optimizer.get_gradient()
        if math.isfinite(float(torch.linalg.vector_norm(gradient, math.inf))):
            optimizer.step_noscale(loss, gradient / self._scale)
            return
        self._left = self.growth_interval
        smaller = self._scale * self.backoff_factor
        if smaller < _SMALLEST_SCALE:
            optimizer.step_retrace(loss)
        else:
            self._scale = smaller

    def update(self) -> None:
        """Count a step; let the scale grow when it is time."""
        self._left -= 1
        if self._left == 0:
            self._scale = min(self._scale * self.growth_factor, self._largest)
            self._left = self.growth_interval

    def get_scale(self) -> float:
        """Return the factor that losses are multiplied by."""
        return self._scale if self.enabled else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the calls of :meth:`update` left before it grows."""
        return {"scale": self._scale, "left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        check_number("scale", state["scale"], above=0)
        check_count("left", state["left"], least=1)
        self._scale, self._left = float(state["scale"]), int(state["left"])
