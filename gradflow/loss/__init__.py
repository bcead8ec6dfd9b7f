"""The loss oracle: value, gradient and Hessian–vector products of a loss over a whole data set."""

from gradflow.loss.callable import penalty
from gradflow.loss.check import CheckReport, Finding
from gradflow.loss.criteria import HalfSquaredError
from gradflow.loss.function import Evaluation, Loss, LossFunction, as_loss
from gradflow.loss.linearization import Linearization, ThirdDerivative
from gradflow.loss.network import NetworkLoss

__all__ = [
    "CheckReport",
    "Evaluation",
    "Finding",
    "HalfSquaredError",
    "Linearization",
    "Loss",
    "LossFunction",
    "NetworkLoss",
    "ThirdDerivative",
    "as_loss",
    "penalty",
]
