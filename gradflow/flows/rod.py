"""Rod flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from gradflow.flows.oscillating import OscillatingFlow, as_rate, is_linear
from gradflow.spectrum import Eigenpairs

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point


@dataclass(frozen=True)
class RodFlow(OscillatingFlow):
    backward_error: bool = True
    without_drift: bool = False

    name: ClassVar[str] = "rod"

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        if self.without_drift:
            return super().begin(field, theta)
        g = field.evaluate(theta).gradient
        norm = float(torch.linalg.vector_norm(g))
        if norm == 0:
            return super().begin(field, theta)
        return self.join(theta, -g / norm, self.rho_start or self.lr / 2 * norm)

    def velocity(self, point: Point) -> Tensor:
        η = self.lr
        v, ρ, mean, Hv = self.pair(point)
        S = float(v @ Hv)
        c1 = -mean - η / 4 * self.curved(point) if self.backward_error else -mean
        v1, r1 = η / 2 * S * Hv, η / 4 * S**2 - 1 / η
        if not self.without_drift:
            drift = float(v @ mean) / ρ
            v1, r1 = v1 + η / 2 * drift / ρ * mean, r1 + η / 4 * drift**2
        elif r1 < 0:
            r1 *= 1 - self.floor(v.dtype) / ρ
        return self.moving(point, c1, v1, r1)

    def curved(self, point: Point) -> Tensor:
        """Return (H₊ + H₋) ḡ."""
        v, ρ, mean, _ = self.pair(point)
        if is_linear(point.theta, ρ):
            return 2 * (point.linearization @ mean)
        c, at = point.theta, point.field.linearize
        return at(c + ρ * v) @ mean + at(c - ρ * v) @ mean

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        η, μ = self.lr, self.spread(point)
        v, ρ, mean, Hv = self.pair(point)
        of_c = μ * (1 + η / 2 * μ) if self.backward_error else μ
        S = float(v @ Hv)
        of_v = η / 2 * abs(S) * μ
        if self.without_drift:
            of_v = max(of_v, 1 / η)
        else:
            of_v += η / 2 * float(mean @ mean) / ρ**2
        return as_rate(max(of_c, of_v), point.z)
