"""SGD, and gradient descent with momentum by the names of its inventors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

from gradflow.checks import check_number
from gradflow.integrators.optimizers.adapter import TorchOptimizer


@dataclass(frozen=True)
class SGDMethod(TorchOptimizer):
    """θ ← θ − ηv, v ← βv + (1 − τ) ∇L(θ): a step counts as η (1 − τ)/(1 − β) of flow time."""

    threshold_formula: ClassVar[str | None] = "(2+2β)/η"

    @property
    def _options(self) -> tuple[float, float, float, bool]:
        """Return η, β, τ, and whether the momentum is Nesterov's."""
        own = self.own
        return own["lr"], own.get("momentum", 0.0), own.get("dampening", 0.0), own.get("nesterov", False)

    @property
    def time_per_lr(self) -> float:
        """(1 − τ)/(1 − β)."""
        _, β, τ, _ = self._options
        return (1 - τ) / (1 - β) if β else 1.0

    @property
    def time_definition(self) -> str:
        """The flow's, unless something else than the gradient moves θ."""
        moved = self.own.get("weight_decay", 0.0) or self.clip_norm or self.clip_value
        return super().time_definition if moved else "flow"

    @property
    def stability_threshold(self) -> float | None:
        """(2 + 2β)/(η(1 − τ)), and with Nesterov's momentum over 1 + 2β."""
        η, β, τ, nesterov = self._options
        if self.scheduler is not None:
            return None
        return (2 + 2 * β) / (η * (1 - (τ if β else 0.0)) * (1 + 2 * β if nesterov else 1.0))


@dataclass(frozen=True)
class Polyak(SGDMethod):
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
    optimizer: ClassVar[type[Optimizer]] = torch.optim.SGD
    nesterov: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("momentum", self.momentum, least=0, below=1)
        super().__post_init__()

    @property
    def own(self) -> dict[str, Any]:
        """The options of SGD, which refuses Nesterov's momentum of 0."""
        return {"lr": self.lr, "momentum": self.momentum, "nesterov": self.nesterov and self.momentum > 0}


@dataclass(frozen=True)
class Nesterov(Polyak):
    """Gradient descent with Nesterov's momentum: v ← βv + ∇L(θ), θ ← θ − η(∇L(θ) + βv).

    ``torch.optim.SGD`` with ``nesterov=True``; time as for ``polyak``. Stable while λ₁ < (2 + 2β)/(η(1 + 2β))
    (Cohen et al. 2021).
    """

    name: ClassVar[str] = "nesterov"
    nesterov: ClassVar[bool] = True
    threshold_formula: ClassVar[str | None] = "(2+2β)/(η(1+2β))"
