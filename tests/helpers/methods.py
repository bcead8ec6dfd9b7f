"""The list of all methods: a new one gets every shared test by its line here."""

from dataclasses import dataclass, field
from typing import Any

import gradflow

FINE = (1 / 16, 1 / 32, 1 / 64, 1 / 128)
COARSE = (1 / 16, 1 / 24, 1 / 32, 1 / 48)


@dataclass(frozen=True)
class Method:
    """How the shared tests run a method.

    ``fixed`` gives the options under which every step has size h where the sharpness is moderate; ``orders`` are
    the bounds of the order measured with them, in steps of ``hs``. ``tolerances`` gives the options for a tolerance.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fixed: Any = None
    orders: tuple[float, float] | None = None
    tolerances: Any = None
    hs: tuple[float, ...] = FINE
    constant: float = 100.0  # errors on chebyshev-3-20 are at most this much above the tolerance
    sharpness: bool = True  # a step's report has one
    exact_gradient: bool = True  # the gradient in a report is LossFunction.gradient's, bit for bit
    float32: bool = True  # the same run in float32 stays near; not if entries are divided by their own size

    def __str__(self):
        return self.name


def tolerance(rtol):
    return {"rtol": rtol, "atol": rtol * 1e-2}


def fixed_grid(name, low, high):
    return Method(name, {"step_size": 0.05}, lambda h: {"step_size": h}, (low, high), sharpness=False)


OURS = [
    Method("gd", {"lr": 0.05}, lambda h: {"lr": h}, (0.9, 1.1), sharpness=False),
    *(
        Method(
            name,
            {"lr": 0.05, "momentum": 0.5},
            lambda h: {"lr": 0.5 * h, "momentum": 0.5},
            (0.9, 1.1),
            sharpness=False,
        )
        for name in ("polyak", "nesterov")
    ),
    Method("adam", {"lr": 0.01}, sharpness=False, float32=False),
    Method("rmsprop", {"lr": 0.01, "momentum": 0.5}, sharpness=False, float32=False),
    Method("lbfgs", {"lr": 0.5, "max_iter": 3}, sharpness=False, float32=False),
    Method("elra", {"lr": 1e-3}, sharpness=False, float32=False),
    Method("esgd", {"lr": 0.5}, sharpness=False),
    Method("adaptive-gd", {"lr": 0.05}, lambda h: {"lr": h}, (0.9, 1.1), exact_gradient=False),
    Method("rk4", {}, lambda h: {"alpha": 2.7, "max_step": h}, (3.8, 4.2)),
    Method(
        "expeuler",
        {"stiff_dim": 1},
        lambda h: {"stiff_dim": 1, "max_step": h},
        (0.9, 1.1),
        exact_gradient=False,
    ),
    Method("rkc", tolerance(1e-5), lambda h: {"rtol": 1.0, "max_step": h}, (1.9, 2.1), tolerance),
    *(
        Method(
            name,
            {"dense": False, **tolerance(1e-5)},
            lambda h: {"dense": False, "rtol": 1.0, "max_step": h, "krylov_tol": 1e-14},
            (order - 0.2, order + 0.2),
            lambda rtol: {"dense": False, **tolerance(rtol)},
            exact_gradient=False,
        )
        for name, order in (("exprb32", 3), ("exprb43", 4), ("exprb54", 5))
    ),
    # A step of its explicit method isn't sized with λ₁.
    Method("auto", tolerance(1e-5), tolerances=tolerance, exact_gradient=False, sharpness=False),
    *(
        Method(name, {}, lambda h: {"step_size": h}, (order - 0.1, order + 0.1))
        for name, order in (("midpoint", 2), ("heun2", 2), ("heun3", 3))
    ),
    *(
        Method(name, tolerance(1e-5), lambda h: {"step_size": h}, orders, tolerance, hs=hs, constant=constant)
        for name, orders, hs, constant in (
            ("adaptive_heun", (1.9, 2.1), FINE, 10.0),
            ("fehlberg2", (1.9, 2.1), FINE, 500.0),  # its error estimate has a coefficient of 1/512
            ("bosh3", (2.9, 3.1), FINE, 10.0),
            ("dopri5", (4.8, 5.2), COARSE, 10.0),
            ("tsit5", (4.8, 5.2), COARSE, 10.0),
            ("dopri8", (7.8, 8.4), (1 / 3, 1 / 4, 1 / 5), 10.0),
            ("dop853", (7.7, 8.4), (1 / 3, 1 / 4, 1 / 5), 10.0),
        )
    ),
]

REFERENCES = [
    fixed_grid("torchdiffeq:euler", 0.9, 1.1),
    fixed_grid("torchdiffeq:midpoint", 1.9, 2.1),
    fixed_grid("torchdiffeq:heun2", 1.9, 2.1),
    fixed_grid("torchdiffeq:heun3", 2.9, 3.1),
    fixed_grid("torchdiffeq:rk4", 3.8, 4.2),
    *(
        Method(f"torchdiffeq:{name}", {"step_size": 0.02}, sharpness=False)
        for name in ("explicit_adams", "implicit_adams", "fixed_adams")
    ),
    *(
        Method(f"torchdiffeq:{name}", tolerance(1e-5), tolerances=tolerance, constant=constant)
        for name, constant in (
            ("dopri5", 100.0),
            ("dopri8", 100.0),
            ("bosh3", 100.0),
            ("adaptive_heun", 100.0),
            ("fehlberg2", 300.0),
        )
    ),
    *(Method(f"scipy:{name}", tolerance(1e-5), tolerances=tolerance) for name in ("RK45", "DOP853")),
    *(
        Method(name, tolerance(1e-5), tolerances=tolerance, sharpness=False)
        for name in ("scipy:BDF", "scipy:Radau", "scipy:LSODA", "torchdiffeq:scipy_solver")
    ),
]

METHODS = OURS + REFERENCES
FLOWS = [m for m in METHODS if not gradflow.integrators.METHODS[m.name].discrete]
