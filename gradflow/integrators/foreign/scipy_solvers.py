"""SciPy's solvers, one accepted step at a time: references for small problems, in float64."""

from __future__ import annotations

import copy
import math
import warnings
from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from scipy.integrate import BDF, DOP853, LSODA, RK45, OdeSolver, Radau
from torch import Tensor

from gradflow.checks import check_number
from gradflow.errors import InvalidInputError
from gradflow.flows import Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.foreign.capped import Capped
from gradflow.integrators.step_size import Unlimited
from gradflow.integrators.tableau import real_stability
from gradflow.loss import LossFunction
from gradflow.status import NumericalFailure, Status

#: Largest P for which the implicit methods form and factorise dense Hessians.
LARGEST_DENSE = 3000


@dataclass(frozen=True)
class _State:
    """A SciPy solver, and the last point at which it evaluated the velocity."""

    solver: Any
    evaluations: deque[Point]


class _SciPy(Integrator):
    """What SciPy's solvers have in common: z lives in them as a float64 array."""

    solver: ClassVar[type[OdeSolver]]
    interpolates: ClassVar[bool] = True
    limits_itself: ClassVar[bool] = True
    error_norm: ClassVar[str | None] = "rms"
    rtol: Any
    atol: Any

    def init(self, point: Point) -> _State:
        """Make SciPy's solver at t = 0."""
        device, flow = point.z.device, point.field

        def at(y: np.ndarray) -> Point:
            return flow.at(torch.from_numpy(y.copy()).to(device))

        def field(t: float, y: np.ndarray) -> np.ndarray:
            evaluations.append(at(y))
            return evaluations[-1].velocity.cpu().numpy()

        def jacobian(t: float, y: np.ndarray) -> np.ndarray:
            J = at(y).jacobian
            assert J is not None
            return (J @ torch.eye(len(y), dtype=torch.float64, device=device)).cpu().numpy()

        evaluations: deque[Point] = deque(maxlen=1)
        options: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
        if self.solver in {BDF, Radau}:
            options["jac"] = jacobian
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SciPy raises rtol to 100 eps, and says so
            y = point.z.detach().cpu().numpy().astype(np.float64)
            return _State(self.solver(field, 0.0, y, math.inf, **options), evaluations)

    def step(self, point: Point, h: float, state: _State) -> StepResult:
        """Take one step of at most h that the error control accepts."""
        z = point.z
        solver = self._prepared(state.solver, h)
        before = solver.t
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            message = solver.step()
        if solver.status == "failed":
            raise NumericalFailure(Status.STEP_UNDERFLOW, f"{self.name}: {message}")
        solver.status = "running"
        dense: list[Any] = []

        def interpolant(s: float) -> Tensor:
            if not dense:  # for DOP853 it costs three gradients: only when wanted, and not the method's cost
                cost = point.field.cost.copy()
                dense.append(solver.dense_output())
                point.field.cost = cost
            return torch.from_numpy(np.array(dense[0](before + s * (solver.t - before)))).to(z)

        evaluations, end = state.evaluations, None
        if (
            z.dtype == torch.float64
            and evaluations
            and np.array_equal(evaluations[-1].z.cpu().numpy(), solver.y)
        ):
            end = evaluations[-1]
        z1 = torch.from_numpy(solver.y.copy()).to(z) if end is None else end.z
        return StepResult(
            z1, interpolant, state=_State(solver, evaluations), h=float(solver.t - before), end=end
        )

    @abstractmethod
    def _prepared(self, solver: Any, h: float) -> Any:
        """Return the solver that takes the next step, at most h long."""

    def state_dict(self, state: _State) -> dict[str, Any]:
        """Return time, z and step size."""
        solver = state.solver
        return {
            "t": solver.t,
            "y": torch.from_numpy(solver.y.copy()),
            "h": float(getattr(solver, "h_abs", 0.0)),
        }

    def load_state(self, saved: dict[str, Any], point: Point) -> _State:
        """Start again from z as the solver had it; a multistep method without its history."""
        state = self.init(point.field.at(saved["y"].to(point.z.device)))
        state.solver.t = saved["t"]
        if self.solver is LSODA:
            state.solver._lsoda_solver.t = saved["t"]
        if saved["h"] > 0 and hasattr(state.solver, "h_abs"):
            state.solver.h_abs = saved["h"]
        return state


@dataclass(frozen=True)
class SciPyExplicit(_SciPy, Capped):
    """An explicit Runge–Kutta method of SciPy, told the sharpness, in float64.

    As the adaptive methods of torchdiffeq: by default a step is at most 0.9 of the stability interval over λ₁,
    and a step that raises the loss is rejected. Options are those of :class:`Capped`.
    """

    family: ClassVar[str | None] = "explicit scipy"

    @property
    def stability_interval(self) -> float:
        """Of the solver's tableau."""
        return _real_stability(cast("Any", self.solver))

    def _prepared(self, solver: Any, h: float) -> Any:
        fresh = copy.copy(
            solver
        )  # steps replace its arrays, but for the stages, which every step writes first
        fresh.max_step = h
        fresh.t_bound = solver.t + h
        return fresh


@dataclass(frozen=True)
class SciPyImplicit(_SciPy):
    """An implicit method of SciPy in float64, with the exact dense Hessian as its Jacobian: a reference.

    Radau and BDF form and factorise P×P matrices, each of which costs P Hessian–vector products. LSODA switches
    between Adams and BDF, with a Jacobian by finite differences.

    Parameters
    ----------
    rtol : float, default 1e-4
        Relative tolerance, in the library's meaning: the root mean square over parameters of
        error/(atol + rtol·|θ|) is at most 1.
    atol : float, default 1e-6
        Absolute tolerance, likewise.
    """

    rtol: float = 1e-4
    atol: float = 1e-6

    family: ClassVar[str | None] = "implicit scipy"

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0)
        check_number("atol", self.atol, least=0)

    @property
    def rejects_loss_increase(self) -> bool:
        """Its solver can't go back, and is stable."""
        return False

    @property
    def step_rule(self) -> Unlimited:
        """The error control alone."""
        return Unlimited()

    def resolve(self, loss: LossFunction) -> Self:
        """Refuse problems that are too large for dense Hessians."""
        P = loss.n_parameters
        if P is not None and P > LARGEST_DENSE:
            raise InvalidInputError(
                f"{self.name} works with dense {P:,} × {P:,} matrices; it is a reference for P ≤ {LARGEST_DENSE:,}. "
                "Use rk4, or scipy:DOP853 with a tight rtol."
            )
        return self

    def _prepared(self, solver: Any, h: float) -> Any:
        bound = solver.t + h
        if self.solver is LSODA:
            solver._lsoda_solver._integrator.rwork[0] = bound if math.isfinite(bound) else 1e300
            solver.t_bound = bound if math.isfinite(bound) else 1e300
        else:
            solver.t_bound = bound
        return solver


@cache
def _real_stability(solver: Any) -> float:
    A = np.zeros((solver.n_stages, solver.n_stages))
    A[:, : solver.A.shape[1]] = solver.A  # RK45 leaves out the last column, which is zero
    return real_stability(A, np.asarray(solver.B))


def scipy_methods() -> dict[str, type[Integrator]]:
    """Make a class for each of SciPy's solvers, by ``scipy:NAME``; torchdiffeq's wrapper of them is LSODA."""
    found: dict[str, type[Integrator]] = {}
    families: tuple[tuple[Any, int, type[Integrator]], ...] = (
        (RK45, 5, SciPyExplicit),
        (DOP853, 8, SciPyExplicit),
        (BDF, 5, SciPyImplicit),
        (Radau, 5, SciPyImplicit),
        (LSODA, 5, SciPyImplicit),
    )
    named = [(f"scipy:{solver.__name__}", solver, order, base) for solver, order, base in families]
    named.append(("torchdiffeq:scipy_solver", LSODA, 5, SciPyImplicit))  # what it wraps by default
    for name, solver, order, base in named:
        body = {
            "name": name,
            "solver": solver,
            "order": order,
            "needs": "jacobian" if solver in {BDF, Radau} else "velocity",
            "__doc__": base.__doc__,
            "__module__": __name__,
        }
        found[name] = dataclass(frozen=True)(type(f"SciPy_{name.split(':')[1]}", (base,), body))
    return found
