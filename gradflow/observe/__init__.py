"""What is measured at a record, in torch: one observer a file."""

from gradflow.observe.base import Observer
from gradflow.observe.density import Density
from gradflow.observe.eigenvalues import EffectiveEigenvalues, Eigenvalues
from gradflow.observe.error_estimate import ErrorEstimate
from gradflow.observe.flow import FlowObserver
from gradflow.observe.function import FunctionObserver
from gradflow.observe.group import Observers
from gradflow.observe.metrics import Metrics
from gradflow.observe.midpoint import AtMidpoint, MidpointPoint, Midpoints, MidpointScalars, OscillationAlong
from gradflow.observe.parameters import Parameters
from gradflow.observe.point import ObservedPoint
from gradflow.observe.projections import Projections, RandomProjection
from gradflow.observe.quantities import QUANTITIES, check_quantity
from gradflow.observe.reading import Observed, name_observers, read_observers
from gradflow.observe.scalars import Scalars
from gradflow.observe.test_set import TestSet

__all__ = [
    "QUANTITIES",
    "AtMidpoint",
    "Density",
    "EffectiveEigenvalues",
    "Eigenvalues",
    "ErrorEstimate",
    "FlowObserver",
    "FunctionObserver",
    "MidpointPoint",
    "Metrics",
    "MidpointScalars",
    "Midpoints",
    "Observed",
    "ObservedPoint",
    "Observer",
    "Observers",
    "OscillationAlong",
    "Parameters",
    "Projections",
    "RandomProjection",
    "Scalars",
    "TestSet",
    "check_quantity",
    "name_observers",
    "read_observers",
]
