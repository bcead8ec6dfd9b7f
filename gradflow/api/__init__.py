"""What a user calls: integrate() runs a method and returns its record, solver() steps one by hand."""

from gradflow.api.integration import integrate
from gradflow.api.stepping import Solver, solver

__all__ = ["Solver", "integrate", "solver"]
