"""Optimisers of torch.optim, run on views of flat θ."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError
from gradflow.integrators.base import Integrator, StepResult, check_number
from gradflow.integrators.flow import Point
from gradflow.integrators.step_rules import FixedStep


@dataclass(frozen=True)
class Memory:
    """An optimiser with what it remembers at one point of the trajectory.

    Attributes
    ----------
    optimizer : torch.optim.Optimizer
        Serves every step; what it holds between them isn't read.
    names : tuple of str
        Of its parameters.
    state : mapping
        What it remembers, by parameter.
    """

    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]
    state: Mapping[Tensor, dict[str, Any]]


@dataclass(frozen=True)
class TorchOptimizer(Integrator):
    """A class of ``torch.optim``, run as an integrator.

    The optimiser sees parameters of the network's own shapes, which are views of one flat θ, with gradients of
    the whole data set. With one chunk of data the result is that of the plain torch loop, bit for bit.
    """

    order: ClassVar[int] = 1
    discrete: ClassVar[bool] = True

    @abstractmethod
    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of a list of parameters."""

    def init(self, point: Point) -> Memory:
        """Give an optimiser that has taken no step."""
        source = point.flow.loss.source
        parameters = [nn.Parameter(leaf) for leaf in source.leaves(point.theta.clone())]
        return Memory(self.make(parameters), tuple(source.names), {})

    def step(self, point: Point, h: float, state: Memory) -> StepResult:
        """Let the optimiser take a step from θ with the gradient there, on copies of both."""
        theta, gradient = point.theta.clone(), point.gradient.clone()
        optimizer, leaves = state.optimizer, point.flow.loss.source.leaves
        parameters = optimizer.param_groups[0]["params"]
        for parameter, part, slope in zip(parameters, leaves(theta), leaves(gradient), strict=True):
            parameter.data, parameter.grad = part, slope
        optimizer.state = defaultdict(dict, {p: copy.deepcopy(each) for p, each in state.state.items()})
        optimizer.step()
        return StepResult(theta, state=Memory(optimizer, state.names, dict(optimizer.state)))

    def portable(self, state: Memory) -> dict[str, dict[str, Any]]:
        """Give what the optimiser remembers, by parameter name."""
        parameters = state.optimizer.param_groups[0]["params"]
        return {
            name: state.state[p] for name, p in zip(state.names, parameters, strict=True) if p in state.state
        }


@dataclass(frozen=True)
class Polyak(TorchOptimizer):
    """Gradient descent with Polyak's momentum: v ← βv + ∇L(θ), θ ← θ − ηv.

    ``torch.optim.SGD`` with momentum. Where the gradient changes slowly, v is 1/(1 − β) times as long as it, so a
    step counts as η/(1 − β) of flow time. Stable while λ₁ < (2 + 2β)/η (Cohen et al. 2021).

    Parameters
    ----------
    lr : float
        Learning rate η.
    momentum : float, default 0.9
        β in [0, 1).
    """

    lr: float
    momentum: float = 0.9

    name: ClassVar[str] = "polyak"
    threshold_formula: ClassVar[str | None] = "(2+2β)/η"
    _nesterov: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, least=0)
        if not self.momentum < 1:
            raise InvalidInputError(f"Expected momentum < 1, got {self.momentum}.")

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Make ``torch.optim.SGD``."""
        nesterov = self._nesterov and self.momentum > 0  # torch has no nesterov without momentum: it is none
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=nesterov)

    @property
    def step_rule(self) -> FixedStep:
        """Every step is η/(1 − β)."""
        return FixedStep(self.lr / (1 - self.momentum))

    @property
    def stability_threshold(self) -> float:
        """(2 + 2β)/η."""
        return (2 + 2 * self.momentum) / self.lr


@dataclass(frozen=True)
class Nesterov(Polyak):
    """Gradient descent with Nesterov's momentum: v ← βv + ∇L(θ), θ ← θ − η(∇L(θ) + βv).

    ``torch.optim.SGD`` with ``nesterov=True``; time as for ``polyak``. Stable while λ₁ < (2 + 2β)/(η(1 + 2β))
    (Cohen et al. 2021).
    """

    name: ClassVar[str] = "nesterov"
    threshold_formula: ClassVar[str | None] = "(2+2β)/(η(1+2β))"
    _nesterov: ClassVar[bool] = True

    @property
    def stability_threshold(self) -> float:
        """(2 + 2β)/(η(1 + 2β))."""
        return (2 + 2 * self.momentum) / (self.lr * (1 + 2 * self.momentum))
