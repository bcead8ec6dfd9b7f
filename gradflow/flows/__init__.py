"""The flows: one ordinary differential equation to a file; and what is known at a point of one."""

from gradflow.flows.base import Flow
from gradflow.flows.central import CentralFlow
from gradflow.flows.cost import Cost
from gradflow.flows.edge import EdgeFlow
from gradflow.flows.field import Field
from gradflow.flows.function import FunctionFlow
from gradflow.flows.gradient import GradientFlow
from gradflow.flows.modified import ModifiedFlow
from gradflow.flows.period2 import PeriodTwoFlow
from gradflow.flows.point import Point
from gradflow.flows.principal import PrincipalFlow
from gradflow.flows.registry import FLOWS, make_flow
from gradflow.flows.rod import RodFlow

__all__ = [
    "FLOWS",
    "CentralFlow",
    "Cost",
    "EdgeFlow",
    "Field",
    "Flow",
    "FunctionFlow",
    "GradientFlow",
    "ModifiedFlow",
    "PeriodTwoFlow",
    "Point",
    "PrincipalFlow",
    "RodFlow",
    "make_flow",
]
