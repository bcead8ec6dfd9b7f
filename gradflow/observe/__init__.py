"""What is measured at a record, in torch."""

from gradflow.observe.observers import (
    Density,
    EffectiveSpectrum,
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
    "EffectiveSpectrum",
    "Observer",
    "Observers",
    "Parameters",
    "Projections",
    "RandomProjection",
    "Scalars",
    "Spectrum",
    "Test",
]
