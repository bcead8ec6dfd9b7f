"""Steps whose size is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gradflow.checks import check_number
from gradflow.flows import Point
from gradflow.integrators.step_size.base import Proposal, StepSize


@dataclass(frozen=True)
class FixedStep(StepSize):
    """Every step has size h.

    Parameters
    ----------
    h : float
    exact : bool, default True
        An optimiser's times are k·h exactly; if false, each step says its own size (its learning rate is scheduled).
    """

    h: float
    exact: bool = True

    def __post_init__(self) -> None:
        check_number("the step size", self.h, least=0)

    def propose(self, point: Point, t: float, step: int, state: Any, *, fresh: bool = False) -> Proposal:
        """Propose h."""
        return Proposal(self.h, self.h)


@dataclass(frozen=True)
class Unlimited(StepSize):
    """Any size: the method limits its steps itself."""

    def propose(self, point: Point, t: float, step: int, state: Any, *, fresh: bool = False) -> Proposal:
        """Propose infinity."""
        return Proposal(math.inf)
