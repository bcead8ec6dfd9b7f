"""The loss oracle: value, gradient and Hessian–vector products of a loss over a whole data set."""

from gradflow.loss.check import CheckReport, Finding
from gradflow.loss.criteria import HalfSquaredError
from gradflow.loss.function import Loss, LossFunction, as_loss
from gradflow.loss.linearization import Linearization

__all__ = ["CheckReport", "Finding", "HalfSquaredError", "Linearization", "Loss", "LossFunction", "as_loss"]
