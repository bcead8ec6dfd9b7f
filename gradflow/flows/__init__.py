"""The flows, and what is known at a point of one."""

from gradflow.flows.field import Cost, Flow, Point

__all__ = ["Cost", "Flow", "Point"]
