"""What is measured at a record, in torch."""

from gradflow.observe.observers import (
    Density,
    Observer,
    Observers,
    Parameters,
    Projections,
    Scalars,
    Spectrum,
    Test,
)
from gradflow.observe.projections import RandomProjection

__all__ = [
    "Density",
    "Observer",
    "Observers",
    "Parameters",
    "Projections",
    "RandomProjection",
    "Scalars",
    "Spectrum",
    "Test",
]
