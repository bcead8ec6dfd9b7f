"""Integrate the gradient flow of neural networks, measure its spectrum, and record it."""

import importlib
from typing import TYPE_CHECKING

from gradflow import flows, landscape, moved, optim, problems
from gradflow.analysis import combine, compare, summary
from gradflow.api import Solver, integrate, solver
from gradflow.driver import Event, StepReport, steps
from gradflow.errors import GradflowError, GradflowWarning, IntegrationError, IntegrationWarning
from gradflow.flows import Flow
from gradflow.integrators import (
    RK4,
    RKC,
    AdaptiveGD,
    Auto,
    Euler,
    ExponentialEuler,
    Exprb32,
    Exprb43,
    Exprb54,
    Integrator,
    Nesterov,
    Polyak,
)
from gradflow.loss import HalfSquaredError, LossFunction, compose, penalty, token_cross_entropy
from gradflow.observe import Observer
from gradflow.record import open_run
from gradflow.spectrum import Eigenpairs, SpectrumService
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow import plot

__version__ = "0.1.0"

moved.put_up()

__all__ = [
    # run and read
    "integrate",
    "solver",
    "compare",
    "combine",
    "summary",
    "open_run",
    "steps",
    # parts
    "LossFunction",
    "penalty",
    "compose",
    "HalfSquaredError",
    "token_cross_entropy",
    "SpectrumService",
    "Eigenpairs",
    "Flow",
    "Event",
    "Observer",
    "Variable",
    "Integrator",
    "Euler",
    "Polyak",
    "Nesterov",
    "AdaptiveGD",
    "RK4",
    "RKC",
    "Exprb32",
    "Exprb43",
    "Exprb54",
    "Auto",
    "ExponentialEuler",
    "Solver",
    "StepReport",
    # what is raised
    "GradflowError",
    "GradflowWarning",
    "IntegrationError",
    "IntegrationWarning",
    # modules
    "flows",
    "problems",
    "optim",
    "landscape",
    "plot",
]


def __getattr__(name: str) -> object:
    """Import ``gradflow.plot``, which needs matplotlib, when it is first used."""
    if name == "plot":
        return importlib.import_module("gradflow.plot")
    raise AttributeError(f"module 'gradflow' has no attribute {name!r}")
