"""The methods: one to a file; and how to get one by name."""

from functools import partial

from gradflow.flows import Cost, Field, Point
from gradflow.integrators.adaptive_gd import AdaptiveGD
from gradflow.integrators.auto import Auto
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.dopri8 import PrinceDormand8
from gradflow.integrators.euler import Euler
from gradflow.integrators.expeuler import ExponentialEuler
from gradflow.integrators.exprb import Exprb32, Exprb43, Exprb54
from gradflow.integrators.low_order import Heun2, Heun3, Midpoint
from gradflow.integrators.optimizers.momentum import Nesterov, Polyak
from gradflow.integrators.pairs import (
    AdaptiveHeun,
    BogackiShampine,
    DormandPrince5,
    Fehlberg2,
    Tsitouras5,
)
from gradflow.integrators.registry import METHODS, check_needs, make_integrator
from gradflow.integrators.rk4 import RK4
from gradflow.integrators.rkc import RKC
from gradflow.integrators.runge_kutta import EmbeddedPair, FixedTableau
from gradflow.integrators.step_size import ErrorControl, FixedStep, SharpnessCap, StepSize
from gradflow.integrators.tableau import Tableau
from gradflow.moved import refuse_former_name

__all__ = [
    "AdaptiveGD",
    "AdaptiveHeun",
    "Auto",
    "BogackiShampine",
    "Cost",
    "DormandPrince5",
    "EmbeddedPair",
    "ErrorControl",
    "Euler",
    "ExponentialEuler",
    "Exprb32",
    "Exprb43",
    "Exprb54",
    "Fehlberg2",
    "Field",
    "FixedStep",
    "FixedTableau",
    "Heun2",
    "Heun3",
    "Integrator",
    "METHODS",
    "Midpoint",
    "Nesterov",
    "Point",
    "Polyak",
    "PrinceDormand8",
    "RK4",
    "RKC",
    "SharpnessCap",
    "StepResult",
    "StepSize",
    "Tableau",
    "Tsitouras5",
    "check_needs",
    "make_integrator",
]

__getattr__ = partial(refuse_former_name, __name__)
