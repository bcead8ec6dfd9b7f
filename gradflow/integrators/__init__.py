"""The methods: one to a file; and how to get one by name."""

from gradflow.flows import Cost, Field, Point
from gradflow.integrators.adaptive_gd import AdaptiveGD
from gradflow.integrators.auto import Auto
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.euler import Euler
from gradflow.integrators.expeuler import ExponentialEuler
from gradflow.integrators.exprb import Exprb32, Exprb43
from gradflow.integrators.optimizers.momentum import Nesterov, Polyak
from gradflow.integrators.registry import METHODS, check_needs, make_integrator
from gradflow.integrators.rk4 import RK4
from gradflow.integrators.rkc import RKC

__all__ = [
    "METHODS",
    "AdaptiveGD",
    "Auto",
    "Cost",
    "Euler",
    "ExponentialEuler",
    "Exprb32",
    "Exprb43",
    "Field",
    "Integrator",
    "Nesterov",
    "Point",
    "Polyak",
    "RK4",
    "RKC",
    "StepResult",
    "check_needs",
    "make_integrator",
]
