"""What is measured at a record, in torch."""

from gradflow.observe.observers import Observer, Observers, Parameters, Projections, Scalars, Spectrum
from gradflow.observe.projections import RandomProjection

__all__ = [
    "Observer",
    "Observers",
    "Parameters",
    "Projections",
    "RandomProjection",
    "Scalars",
    "Spectrum",
]
