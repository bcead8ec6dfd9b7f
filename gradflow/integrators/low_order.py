"""Explicit Runge–Kutta methods of low order without an error estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gradflow.integrators.runge_kutta import FixedTableau
from gradflow.integrators.tableau import Tableau


@dataclass(frozen=True)
class Midpoint(FixedTableau):
    """The explicit midpoint rule of order 2: two gradients a step.

    Runge (1895); Hairer, Nørsett & Wanner (1993), II.1. Options are those of :class:`FixedTableau`.
    """

    name: ClassVar[str] = "midpoint"
    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(A=((), (1 / 2,)), b=(0, 1))


@dataclass(frozen=True)
class Heun2(FixedTableau):
    """Heun's method of order 2, the explicit trapezoidal rule: two gradients a step.

    Hairer, Nørsett & Wanner (1993), II.1. Options are those of :class:`FixedTableau`.
    """

    name: ClassVar[str] = "heun2"
    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(A=((), (1,)), b=(1 / 2, 1 / 2))


@dataclass(frozen=True)
class Heun3(FixedTableau):
    """Heun's method of order 3: three gradients a step.

    Heun (1900); Hairer, Nørsett & Wanner (1993), II.1. Options are those of :class:`FixedTableau`.
    """

    name: ClassVar[str] = "heun3"
    order: ClassVar[int] = 3
    tableau: ClassVar[Tableau] = Tableau(A=((), (1 / 3,), (0, 2 / 3)), b=(1 / 4, 0, 3 / 4))
