"""Solvers of other libraries, one accepted step at a time: references."""
