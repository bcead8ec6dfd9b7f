"""ELRA: an optimiser that finds its own learning rates."""

from gradflow.optim.elra.optimizer import ElraOptimizer, Mode
from gradflow.optim.elra.scaler import ElraGradScaler

__all__ = ["ElraGradScaler", "ElraOptimizer", "Mode"]
