"""What a user calls: integrate() runs a method and returns its record, solver() steps one by hand."""

from gradflow.api.by_hand import Solver, solver
from gradflow.api.run import integrate

__all__ = ["Solver", "integrate", "solver"]
