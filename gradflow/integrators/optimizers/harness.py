"""An optimiser that is taken from point to point: what it remembers is saved and given back around every step."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer


class OptimizerHarness:
    """Run an optimiser, perhaps with a scheduler, on parameters that are views of a flat θ.

    Parameters
    ----------
    names : iterable of str
        Names of the parameters.
    optimizer : Optimizer
        With one group of parameters.
    scheduler : object or None
    """

    def __init__(self, names: Iterable[str], optimizer: Optimizer, scheduler: Any) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self._names = tuple(names)
        # An optimiser with a state_dict of its own keeps more than torch's does.
        self._is_plain = type(optimizer).state_dict is Optimizer.state_dict

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters of the optimiser."""
        parameters: list[nn.Parameter] = self.optimizer.param_groups[0]["params"]
        return parameters

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return float(self.optimizer.param_groups[0].get("lr", math.nan))

    def save(self) -> dict[str, Any]:
        """Return what optimiser and scheduler remember: tensors, numbers and strings, by parameter name."""
        saved: dict[str, Any] = {}
        if self._is_plain:
            pairs = zip(self._names, self.parameters, strict=True)
            state = self.optimizer.state
            saved["state"] = {name: state[p] for name, p in pairs if p in state}
            group = self.optimizer.param_groups[0]
            saved["group"] = {key: value for key, value in group.items() if key != "params"}
        else:
            saved["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
        if self.scheduler is not None:
            saved["scheduler"] = copy.deepcopy(self.scheduler.state_dict())
        return saved

    def load(self, saved: Mapping[str, Any]) -> None:
        """Give optimiser and scheduler back what was saved; `saved` itself isn't changed."""
        if self._is_plain:
            named = dict(zip(self._names, self.parameters, strict=True))
            state: dict[Tensor, Any] = {
                named[name]: copy.deepcopy(each) for name, each in saved["state"].items()
            }
            self.optimizer.state = defaultdict(dict, state)
            self.optimizer.param_groups[0].update(saved["group"])
        else:
            self.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(saved["scheduler"]))

    def place(self, parts: Iterable[Tensor]) -> None:
        """Make tensors the values of the parameters, without a copy."""
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part


@dataclass(frozen=True)
class OptimizerState:
    """The memory of an optimiser at one point of the trajectory.

    Attributes
    ----------
    harness : OptimizerHarness
        Serves every step. Its own content between steps isn't read, so states of several points can share it.
    n_steps : int
        Steps taken.
    saved : mapping
        The result of :meth:`OptimizerHarness.save`.
    epoch_loss : tuple of float and int
        Sum of the mini-batches' losses in the present epoch, and their number.
    """

    harness: OptimizerHarness
    n_steps: int
    saved: Mapping[str, Any]
    epoch_loss: tuple[float, int] = (0.0, 0)
