"""Optimisers for plain torch training loops."""

from gradflow.optim.elra import ElraGradScaler, ElraOptimizer, Mode
from gradflow.optim.esgd import ESGD

__all__ = ["ESGD", "ElraOptimizer", "ElraGradScaler", "Mode"]
