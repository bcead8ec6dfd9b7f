"""Optimisers for plain torch training loops."""

from gradflow.optim.elra import ElraOptimizer, Mode
from gradflow.optim.elra_scaler import ElraGradScaler
from gradflow.optim.esgd import ESGD

__all__ = ["ESGD", "ElraOptimizer", "ElraGradScaler", "Mode"]
