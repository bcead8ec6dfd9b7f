"""The loss oracle: value, gradient and Hessian–vector products of a loss over a whole data set."""

from gradflow.loss.criteria import HalfSquaredError
from gradflow.loss.function import LossFunction
from gradflow.loss.linearization import Linearization

__all__ = ["HalfSquaredError", "Linearization", "LossFunction"]
