"""How large a step: controllers that propose a size and judge the step."""

from gradflow.integrators.step_size.base import Proposal, StepSize
from gradflow.integrators.step_size.bulk import BulkEigenvalueCap
from gradflow.integrators.step_size.error_control import ErrorControl
from gradflow.integrators.step_size.fixed import FixedStep, Unlimited
from gradflow.integrators.step_size.sharpness import SharpnessCap

__all__ = [
    "BulkEigenvalueCap",
    "ErrorControl",
    "FixedStep",
    "Proposal",
    "SharpnessCap",
    "StepSize",
    "Unlimited",
]
