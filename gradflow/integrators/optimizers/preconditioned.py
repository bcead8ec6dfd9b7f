"""Optimisers that precondition the gradient: the diagonal of P, and the threshold of the preconditioned sharpness."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradflow.integrators.optimizers.adapter import TorchOptimizer
from gradflow.integrators.optimizers.harness import OptimizerState
from gradflow.optim import ESGD


@dataclass(frozen=True)
class PreconditionedMethod(TorchOptimizer):
    """An update P⁻¹ times a momentum of the gradient, P diagonal.

    Its edge of stability is where λ₁ of P^(−1/2) H P^(−1/2) reaches the threshold (Cohen et al. 2022,
    arXiv:2207.14484).
    """

    preconditions: ClassVar[bool] = True

    def preconditioner(self, state: OptimizerState) -> Tensor | None:
        """Return the diagonal of P."""
        parts = self._diagonals(state) if state.n_steps else []
        return torch.cat([part.detach().reshape(-1) for part in parts]) if parts else None

    def _diagonals(self, state: OptimizerState) -> list[Tensor]:
        """Return the diagonal by parameter, from the state of each and the group's options; empty if it isn't known."""
        return [self._diagonal(s, state.saved["group"]) for s in state.saved["state"].values()]

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """Return the diagonal for one parameter."""
        raise NotImplementedError

    @property
    def stability_threshold(self) -> float | None:
        """As :meth:`_threshold`, where the learning rate stays."""
        return self._threshold(self.own) if self.scheduler is None else None

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2/η, without momentum."""
        return float(2 / own["lr"])


@dataclass(frozen=True)
class RMSpropMethod(PreconditionedMethod):
    """RMSprop: the average of squared gradients, not corrected for its start."""

    threshold_formula: ClassVar[str | None] = "2(1+β)/η"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """√v + ε, v the average of squares, about the mean if centred."""
        v = s["square_avg"] - s["grad_avg"] ** 2 if group["centered"] else s["square_avg"]
        return v.sqrt() + group["eps"]

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2(1 + β)/η."""
        return float(2 * (1 + own["momentum"]) / own["lr"])


@dataclass(frozen=True)
class AdamMethod(PreconditionedMethod):
    """Adam and AdamW: momentum and squares are averages, both corrected for their start."""

    threshold_formula: ClassVar[str | None] = "(2+2β₁)/((1−β₁)η)"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 − β₁ᵗ)(√(v/(1 − β₂ᵗ)) + ε)."""
        β1, β2 = group["betas"]
        t = float(s["step"])
        v = s["max_exp_avg_sq"] if group["amsgrad"] else s["exp_avg_sq"]
        return (1 - β1**t) * (v.sqrt() / math.sqrt(1 - β2**t) + group["eps"])

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """(2 + 2β₁)/((1 − β₁) η): the momentum is an average."""
        β1 = own["betas"][0]
        return float((2 + 2 * β1) / ((1 - β1) * own["lr"]))


@dataclass(frozen=True)
class AdamaxMethod(AdamMethod):
    """Adamax: the decaying maximum takes the place of the average of squares."""

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 − β₁ᵗ) u, u the decaying maximum of |g| + ε."""
        diagonal: Tensor = (1 - group["betas"][0] ** float(s["step"])) * s["exp_inf"]
        return diagonal


@dataclass(frozen=True)
class AdagradMethod(PreconditionedMethod):
    """Adagrad: the sum of squared gradients, with a learning rate that may decay."""

    threshold_formula: ClassVar[str | None] = "2/η"

    @staticmethod
    def _diagonal(s: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
        """(1 + (t − 1) δ)(√(Σg²) + ε), δ the decay of the learning rate."""
        decay = 1 + (float(s["step"]) - 1) * group["lr_decay"]
        return decay * (s["sum"].sqrt() + group["eps"])


@dataclass(frozen=True)
class ESGDMethod(PreconditionedMethod):
    """ESGD: squared products of the Hessian with random vectors."""

    threshold_formula: ClassVar[str | None] = "2(1+β₁)/((1+β₁−2vβ₁)η)"

    @property
    def own(self) -> dict[str, Any]:
        """The probes come from a generator of their own."""
        return super().own | {"seed": self.sample_seed}

    def _diagonals(self, state: OptimizerState) -> list[Tensor]:
        """Return S."""
        state.harness.load(state.saved)
        optimizer = state.harness.optimizer
        assert isinstance(optimizer, ESGD)
        parts = optimizer.preconditioner()
        return [] if any(part is None for part in parts) else [part for part in parts if part is not None]

    @staticmethod
    def _threshold(own: Mapping[str, Any]) -> float:
        """2(1 + β₁)/((1 + β₁ − 2vβ₁) η), v = β₁ unless given."""
        β = own["betas"][0]
        v = β if own["v"] is None else own["v"]
        return float(2 * (1 + β) / ((1 + β - 2 * v * β) * own["lr"]))
