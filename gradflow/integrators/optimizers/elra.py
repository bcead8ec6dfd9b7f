"""ELRA as a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.integrators.optimizers.adapter import TorchOptimizer
from gradflow.integrators.step_size import FixedStep


@dataclass(frozen=True)
class ELRAMethod(TorchOptimizer):
    """Finds its own step lengths, and goes back from a step to a loss that isn't finite, which ends other methods."""

    allows_nonfinite: ClassVar[bool] = True

    @property
    def time_definition(self) -> str:
        """The learning rate is that of the first step alone."""
        return "steps"

    @property
    def step_rule(self) -> FixedStep:
        """Every step counts as 1."""
        return FixedStep(1.0)

    @property
    def own(self) -> dict[str, Any]:
        """It counts its statistics in samples."""
        return super().own | ({} if self.batch_size is None else {"batch_size": self.batch_size})
