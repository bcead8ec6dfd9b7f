"""The central flow: the path about which an optimiser oscillates at the edge of stability."""

from gradflow.flows.central.flow import CentralFlow

__all__ = ["CentralFlow"]
