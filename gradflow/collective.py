"""The two points at which processes that share the data will have to meet.

Every sum over data goes through :func:`reduce` and every decision that must be the same everywhere
through :func:`agree`. In one process, which is all there is today, both return what they are given.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")


def reduce(partial_sum: T) -> T:
    """Sum over all processes of a sum over this process's data."""
    return partial_sum


def agree(decision: T) -> T:
    """Return the decision that all processes take."""
    return decision
