"""The list of all methods: a new one gets every shared test by its line here."""

from dataclasses import dataclass, field
from typing import Any

import gradflow


@dataclass(frozen=True)
class Method:
    """How the shared tests run a method.

    ``fixed`` gives the options under which every step has size h where the sharpness is moderate.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fixed: Any = None
    orders: tuple[float, float] = (0, 0)  # between these lies the measured order

    def __str__(self):
        return self.name


METHODS = [
    Method("gd", {"lr": 0.05}, lambda h: {"lr": h}, (0.9, 1.1)),
    Method("rk4", {}, lambda h: {"alpha": 2.7, "max_step": h}, (3.8, 4.2)),
    Method("expeuler", {"stiff_dim": 1}, lambda h: {"stiff_dim": 1, "max_step": h}, (0.9, 1.1)),
]

FLOWS = [m for m in METHODS if not gradflow.integrators.METHODS[m.name].discrete]
