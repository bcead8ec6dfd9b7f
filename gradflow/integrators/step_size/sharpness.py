"""Steps within the stability limit of explicit methods, over the measured rates of the flow."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError
from gradflow.flows import Point
from gradflow.integrators.step_size.base import Proposal, StepSize, check_finite, safe_divide
from gradflow.plain import restorable
from gradflow.spectrum import Eigenpairs

if TYPE_CHECKING:
    from gradflow.integrators.base import Integrator

#: Part of the stability interval that a capped step may use.
SAFETY = 0.9


@restorable
@dataclass(frozen=True)
class _Measured:
    """The largest rate, when it was measured, and how long that holds."""

    pairs: Eigenpairs
    t: float
    valid_for: float


@dataclass(frozen=True)
class SharpnessCap(StepSize):
    """h = min(alpha/λ₁, max_step), λ₁ measured again as the run goes.

    λ₁ is the largest rate of the flow, for gradient flow the sharpness. Where it is ≤ 0, max|λ| takes its place: it
    bounds how fast the flow can turn there.

    Parameters
    ----------
    alpha : float, optional
        Step size times λ₁. Default: 0.9 of the method's real stability interval.
    max_step : float, default inf
        Largest step in time.
    every : float, optional
        No step begins that would end later than this after the last measurement. Default: ten steps.
    tol : float, default 1e-2
        Residual to which λ₁ is measured.
    """

    alpha: float | None = None
    max_step: float = math.inf
    every: float | None = None
    tol: float = 1e-2

    def __post_init__(self) -> None:
        if self.alpha is not None:
            check_number("alpha", self.alpha, above=0)
        check_number("max_step", self.max_step, above=0, finite=False)
        if self.every is not None:
            check_number("every", self.every, above=0)
        check_number("tol", self.tol, above=0)

    def resolve(self, integrator: Integrator) -> Self:
        """Take alpha from the method's stability interval, or check it against that."""
        limit = integrator.stability_interval
        if limit is None and self.alpha is None:
            raise InvalidInputError(
                f"SharpnessCap needs alpha for {integrator.name}, which has no stability interval in terms of h·λ₁. "
                "Give it, or use ErrorControl or FixedStep."
            )
        if limit is None:
            return self
        if self.alpha is None:
            return dataclasses.replace(self, alpha=SAFETY * limit)
        if self.alpha > limit:
            raise InvalidInputError(
                f"Expected alpha ≤ {limit:.4g}, the stability limit of the method in terms of h·λ₁, "
                f"got {self.alpha}."
            )
        return self

    def propose(
        self, point: Point, t: float, step: int, state: _Measured | None, *, fresh: bool = False
    ) -> Proposal:
        """Propose alpha/λ₁, capped."""
        if state is not None and not fresh:
            h = self._size(state.pairs)
            if t + h <= state.t + state.valid_for * (1 + 1e-9):
                return Proposal(h, h, state.pairs, state)
        pairs = check_finite(point.rates(1, tol=self.tol))
        h = self._size(pairs)
        valid_for = 10 * h if self.every is None else self.every
        return Proposal(h, h, pairs, _Measured(values_of(pairs), t, valid_for))

    def _size(self, pairs: Eigenpairs) -> float:
        assert self.alpha is not None
        sharpness = float(pairs.values[0])
        rate = sharpness if sharpness > 0 else pairs.scale
        return min(safe_divide(self.alpha, rate), self.max_step)


def values_of(pairs: Eigenpairs) -> Eigenpairs:
    """Return eigenpairs without their vectors, which nobody needs at the next step."""
    return dataclasses.replace(pairs, vectors=pairs.vectors[:, :0].clone(), n_hvp=0)
