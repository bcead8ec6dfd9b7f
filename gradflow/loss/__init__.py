"""The loss oracle: value, gradient and Hessian–vector products of a loss over a whole data set."""

from gradflow.loss.callable import penalty
from gradflow.loss.check import CheckReport, Finding
from gradflow.loss.composition import compose
from gradflow.loss.criteria import HalfSquaredError, token_cross_entropy
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
    "compose",
    "penalty",
    "token_cross_entropy",
]
