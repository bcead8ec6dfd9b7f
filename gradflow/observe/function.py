"""An observer given as a function of the point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable


class FunctionObserver(Observer):
    """One variable, which a function of the point gives at each record.

    Parameters
    ----------
    name : str
        Of the variable.
    function : callable
        ``function(point)`` returns a number, or an array of the same shape each time, whose dimensions are called
        NAME_dim_0, NAME_dim_1 and so on.
    """

    def __init__(self, name: str, function: Callable[[ObservedPoint], Any]) -> None:
        self.name = name  # type: ignore[misc]
        self._function = function
        self._ndim: int | None = None
        self._declare(0)

    def _declare(self, ndim: int) -> None:
        dims = tuple(f"{self.name}_dim_{i}" for i in range(ndim))
        self.variables = {self.name: Variable(dims, long_name=self.name.replace("_", " "))}  # type: ignore[misc]

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Call the function; the first value says how many dimensions there are."""
        value = self._function(point)
        if self._ndim is None:
            self._ndim = value.dim() if isinstance(value, Tensor) else np.ndim(value)
            self._declare(self._ndim)
        return {self.name: value}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of dimensions."""
        return {"ndim": self._ndim}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._ndim = state["ndim"]
        self._declare(self._ndim or 0)

    def settings(self) -> dict[str, Any]:
        """Name the function."""
        f = self._function
        return {"function": getattr(f, "__qualname__", type(f).__qualname__)}
