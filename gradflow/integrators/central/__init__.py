"""Methods for the central flow, which keeps to the edge of stability."""

from gradflow.integrators.central.euler import CentralEuler
from gradflow.integrators.central.projected import CentralProjected

__all__ = ["CentralEuler", "CentralProjected"]
