"""The optimisers that central flows are known of: gradient descent with a preconditioner P(s) and a state s.

Everything here is in optimiser steps. U has columns with UᵀPU = I; pairs (i, j), i ≤ j, are in the order of
:func:`gradflow.flows.central.sdcp.svec`, off the diagonal times √2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.flows.central.learning_rate import LearningRate


def pair_columns(A: Tensor, B: Tensor) -> Tensor:
    """Return aᵢ ⊙ bⱼ symmetrised, a column for each pair, shape (n, m), for A and B of shape (n, k)."""
    i, j = torch.triu_indices(A.shape[1], A.shape[1], device=A.device)
    weights = torch.where(i == j, 0.5, math.sqrt(0.5)).to(A)
    return weights * (A[:, i] * B[:, j] + A[:, j] * B[:, i])


@dataclass(frozen=True)
class Rule(ABC):
    """An optimiser w ← w − P(s)⁻¹ g, whose state s is renewed first.

    Parameters
    ----------
    lr : LearningRate
    clock : bool
        The step is a part of s, its last entry.
    """

    lr: LearningRate
    clock: bool

    #: Whether P is one number, as a tensor of shape ().
    scalar = True
    #: Whether time is flow time, η a step; else it is optimiser steps.
    flow_time = False

    def eta(self, s: Tensor) -> float:
        """Return η at the step of a state."""
        return self.lr.at(self.step(s))

    def step(self, s: Tensor) -> float:
        """Return the step of a state; 0 without a clock, when nothing depends on it."""
        return float(s[-1]) if self.clock else 0.0

    def duration(self, s: Tensor) -> float:
        """Return the time that a step takes."""
        return self.eta(s) if self.flow_time else 1.0

    def step_after(self, s: Tensor, h: float) -> float:
        """Return the optimiser's step a time h after that of a state: ∫ η dt = h, by Simpson's rule."""
        t, η = self.step(s), self.lr.at
        if not self.flow_time:
            return t + h
        steps = h / η(t + 0.5 * h / η(t))
        return t + h / ((η(t) + 4 * η(t + steps / 2) + η(t + steps)) / 6)

    @abstractmethod
    def n_parameters(self, n: int) -> int:
        """Return P of a state z = (w, s) of length n."""

    @abstractmethod
    def blank(self, theta: Tensor) -> Tensor:
        """Return s before the first gradient, when the step is −1."""

    @abstractmethod
    def renewed(self, s: Tensor, g: Tensor) -> Tensor:
        """Return s with one more gradient taken in, as the optimiser does it."""

    def preconditioner(self, s: Tensor) -> Tensor:
        """Return the diagonal of P, shape (n,) or ()."""
        return self._root(s) / self.eta(s)

    @abstractmethod
    def _root(self, s: Tensor) -> Tensor:
        """Return ηP."""

    @abstractmethod
    def law(self, s: Tensor, g: Tensor) -> Tensor:
        """Return ds/dt along the stable flow, f(s, g)."""

    @abstractmethod
    def second_moments(self, s: Tensor, HU: Tensor) -> Tensor:
        """Return ½∇²_g f[H u_i u_jᵀ H] for each pair, shape (length of s, m)."""

    @abstractmethod
    def slack_gradient(self, s: Tensor, U: Tensor) -> Tensor:
        """Return ∂/∂s of 2 u_iᵀ P u_j for each pair, shape (length of s, m)."""

    def _clock_gradient(self, s: Tensor, U: Tensor) -> Tensor:
        """Return ∂/∂t of 2 u_iᵀ P u_j for each pair, shape (1, m)."""
        rate = self._root_slope(s) / self.eta(s) - self.preconditioner(s) * (
            self.lr.slope(self.step(s)) / self.eta(s)
        )
        return 2 * (rate * pair_columns(U, U).T).sum(1)[None]

    def _root_slope(self, s: Tensor) -> Tensor:
        """Return ∂(ηP)/∂t."""
        return torch.zeros((), dtype=s.dtype, device=s.device)


@dataclass(frozen=True)
class GradientDescent(Rule):
    """P = 1/η, without a state unless η changes."""

    flow_time = True

    def n_parameters(self, n: int) -> int:
        """Return n, less 1 with a schedule."""
        return n - self.clock

    def blank(self, theta: Tensor) -> Tensor:
        """Return step −1, or nothing."""
        return theta.new_full((int(self.clock),), -1.0)

    def renewed(self, s: Tensor, g: Tensor) -> Tensor:
        """Return the next step."""
        return s + 1

    def _root(self, s: Tensor) -> Tensor:
        return torch.ones((), dtype=s.dtype, device=s.device)

    def law(self, s: Tensor, g: Tensor) -> Tensor:
        """Return 1 for the step."""
        return torch.ones_like(s)

    def second_moments(self, s: Tensor, HU: Tensor) -> Tensor:
        """Return 0."""
        k = HU.shape[1]
        return HU.new_zeros(len(s), k * (k + 1) // 2)

    def slack_gradient(self, s: Tensor, U: Tensor) -> Tensor:
        """Return −2 η̇/η² uᵢᵀuⱼ for the step."""
        return self._clock_gradient(s, U) if self.clock else self.second_moments(s, U)


@dataclass(frozen=True)
class RMSProp(Rule):
    """P = (√ν̂ + ε)/η with the average ν of squared gradients; ν̂ = ν/(1 − β₂ᵗ) with bias correction.

    Parameters
    ----------
    beta2, eps : float
    bias_correction : bool
    nu_start : float
        ν before the first gradient.
    """

    beta2: float
    eps: float
    bias_correction: bool
    nu_start: float

    scalar = False

    @property
    def kappa(self) -> float:
        """κ = (1 − β₂)/β₂: an update uses ν with the new gradient in it, so that ν_t − ν_{t−1} = κ(g_t² − ν_t)."""
        return (1 - self.beta2) / self.beta2

    def n_parameters(self, n: int) -> int:
        """Return half of it, without the step."""
        return (n - self.clock) // 2

    def _squares(self, g: Tensor) -> Tensor:
        """Return what ν averages."""
        return g * g

    def blank(self, theta: Tensor) -> Tensor:
        """Return ν before the first gradient."""
        ν = torch.full_like(self._squares(theta), self.nu_start)
        return torch.cat([ν, ν.new_full((1,), -1.0)]) if self.clock else ν

    def renewed(self, s: Tensor, g: Tensor) -> Tensor:
        """Return β₂ν + (1 − β₂) g², and the next step."""
        ν = self.beta2 * (s[:-1] if self.clock else s) + (1 - self.beta2) * self._squares(g)
        return torch.cat([ν, s[-1:] + 1]) if self.clock else ν

    def _nu(self, s: Tensor) -> Tensor:
        return (s[:-1] if self.clock else s).clamp_min(0)

    def _correction(self, s: Tensor) -> float:
        """Return 1 − β₂ᵗ⁺¹, after t steps, or 1."""
        return 1 - self.beta2 ** (self.step(s) + 1) if self.bias_correction else 1.0

    def _root(self, s: Tensor) -> Tensor:
        return (self._nu(s) / self._correction(s)).sqrt() + self.eps

    def _root_slope(self, s: Tensor) -> Tensor:
        """Return ∂√ν̂/∂t."""
        if not self.bias_correction:
            return torch.zeros((), dtype=s.dtype, device=s.device)
        c = self._correction(s)
        return (self._nu(s) / c).sqrt() * (0.5 * (1 - c) * math.log(self.beta2) / c)

    def law(self, s: Tensor, g: Tensor) -> Tensor:
        """Return κ(g² − ν), and 1 for the step."""
        rate = self.kappa * (self._squares(g) - (s[:-1] if self.clock else s))
        return torch.cat([rate, rate.new_ones(1)]) if self.clock else rate

    def second_moments(self, s: Tensor, HU: Tensor) -> Tensor:
        """Return κ Hu_i ⊙ Hu_j."""
        return self._with_clock(self.kappa * self._sums(pair_columns(HU, HU)))

    def slack_gradient(self, s: Tensor, U: Tensor) -> Tensor:
        """Return u_i ⊙ u_j/(η √(ν (1 − β₂ᵗ)))."""
        root = (self._nu(s) * self._correction(s)).sqrt() * self.eta(s)
        inverse = torch.where(root > 0, root, torch.inf).reciprocal()
        of_nu = inverse[:, None] * self._sums(pair_columns(U, U))
        return torch.cat([of_nu, self._clock_gradient(s, U)]) if self.clock else of_nu

    def _sums(self, columns: Tensor) -> Tensor:
        """Return what an entry of ν sees of each."""
        return columns

    def _with_clock(self, columns: Tensor) -> Tensor:
        return torch.cat([columns, columns.new_zeros(1, columns.shape[1])]) if self.clock else columns


@dataclass(frozen=True)
class ScalarRMSProp(RMSProp):
    """The same with one ν, the average of ‖g‖²."""

    scalar = True

    def n_parameters(self, n: int) -> int:
        """Return all but ν and the step."""
        return n - 1 - self.clock

    def _squares(self, g: Tensor) -> Tensor:
        return (g @ g)[None]

    def preconditioner(self, s: Tensor) -> Tensor:
        """Return P, shape ()."""
        return super().preconditioner(s)[0]

    def _sums(self, columns: Tensor) -> Tensor:
        return columns.sum(0, keepdim=True)
