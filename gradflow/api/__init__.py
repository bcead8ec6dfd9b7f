"""What a user calls: integrate() runs a method and returns its record, solver() steps one by hand."""

from gradflow.api.integrate import integrate
from gradflow.api.solver import Solver, solver

__all__ = ["Solver", "integrate", "solver"]
