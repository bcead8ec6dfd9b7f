"""torchdiffeq's solvers, one accepted step at a time."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torchdiffeq._impl.fixed_adams import AdamsBashforthMoulton
from torchdiffeq._impl.interp import _interp_evaluate
from torchdiffeq._impl.misc import _rms_norm
from torchdiffeq._impl.odeint import SOLVERS
from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver, _RungeKuttaState
from torchdiffeq._impl.solvers import FixedGridODESolver

from gradflow.checks import check_number
from gradflow.errors import InvalidTypeError, UnknownNameError, UnknownOptionError, suggest
from gradflow.flows import Field, Point
from gradflow.integrators.base import Integrator, StepResult
from gradflow.integrators.foreign.capped import Capped
from gradflow.integrators.hermite import hermite
from gradflow.integrators.step_size import FixedStep
from gradflow.integrators.step_size.error_control import warn_if_unreachable
from gradflow.integrators.tableau import real_stability
from gradflow.status import NumericalFailure, Status

_MAX_ATTEMPTS = 100


class _Field:
    """The velocity as torchdiffeq calls it; knows it at the step's start, and remembers its last evaluation."""

    def __init__(self, field: Field) -> None:
        self._field = field
        self.start: tuple[Tensor, Tensor] | None = None
        self._last: Point | None = None

    def __call__(self, t: Any, y: Tensor, *, perturb: Any = None) -> Tensor:
        if self.start is not None and y is self.start[0]:
            return self.start[1]
        self._last = self._field.at(y)
        return self._last.velocity

    def known_at(self, z: Tensor) -> Point | None:
        """Return the point at z if that was the last evaluation."""
        return self._last if self._last is not None and torch.equal(self._last.z, z) else None

    def callback_step(self, *args: Any) -> None:
        """Nothing to do."""

    callback_accept_step = callback_reject_step = callback_step


@dataclass(frozen=True)
class TorchdiffeqAdaptive(Capped):
    """An adaptive explicit Runge–Kutta method of torchdiffeq, told the sharpness.

    Its error control sees an instability only once it has grown. So by default a step is at most 0.9 of the
    method's real stability interval over λ₁, and a step that raises the loss is rejected. θ within a step is
    torchdiffeq's quartic interpolant, so that records don't shorten steps. Options beside those of
    :class:`Capped`:

    Parameters
    ----------
    options : mapping, optional
        Options of the library's solver, such as first_step, safety, ifactor or dfactor.
    """

    options: Mapping[str, Any] = field(default_factory=dict)

    solver: ClassVar[type[RKAdaptiveStepsizeODESolver]]
    family: ClassVar[str | None] = "adaptive torchdiffeq"
    interpolates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self.name, self.solver, self.options)

    @property
    def stability_interval(self) -> float:
        """Of the solver's tableau."""
        return stability_of(cast("Any", self.solver))

    def init(self, point: Point) -> float:
        """Return the first step size, by torchdiffeq's rule (Hairer, Nørsett & Wanner 1993, II.4)."""
        warn_if_unreachable(self.rtol, self.atol, point.z, "is about the least that can be met")
        solver = self._made(point)
        with torch.no_grad():
            solver._before_integrate(torch.zeros(2, dtype=torch.float64, device=point.z.device))
        return float(solver.rk_state.dt)

    def step(self, point: Point, h: float, state: float) -> StepResult:
        """Take one step of at most h that the error control accepts; `state` is the size it would take."""
        z = point.z
        solver = self._made(point)
        zero = torch.zeros((), dtype=torch.float64, device=z.device)
        size = torch.tensor(min(h, state), dtype=torch.float64, device=z.device)
        now = _RungeKuttaState(z, point.velocity, zero, zero, size, [z] * 5)
        n_rejected = 0
        while True:
            try:
                with torch.no_grad():
                    new = solver._adaptive_step(now)
            except AssertionError as failure:  # all that the library raises, bad input having been refused
                raise NumericalFailure(Status.STEP_UNDERFLOW, f"{self.name}: {failure}") from failure
            if new.t1 > now.t1:
                break
            if not now.dt > new.dt:
                raise NumericalFailure(
                    Status.STEP_UNDERFLOW,
                    f"{self.name}: the step stays at {float(new.dt):.3g} and is rejected",
                )
            now, n_rejected = new, n_rejected + 1
            if n_rejected == _MAX_ATTEMPTS:
                raise NumericalFailure(
                    Status.STEP_UNDERFLOW,
                    f"{self.name}: {n_rejected} attempts were rejected, the last {float(now.dt):.3g}",
                )

        def interpolant(s: float) -> Tensor:
            return _interp_evaluate(new.interp_coeff, zero, new.t1, s * new.t1)

        end = solver.func.known_at(new.y1)
        return StepResult(
            new.y1, interpolant, state=float(new.dt), h=float(new.t1), end=end, n_rejected=n_rejected
        )

    def _made(self, point: Point) -> Any:
        """Make torchdiffeq's solver at a point; it keeps nothing from step to step."""
        known = _Field(point.field)
        known.start = point.z, point.velocity
        options = {"norm": _rms_norm, **self.options}
        solver: Any = self.solver(func=known, y0=point.z, rtol=self.rtol, atol=self.atol, **options)
        # No times that its steps must hit.
        solver.step_t = solver.jump_t = torch.empty(0, dtype=torch.float64)
        return solver


@dataclass(frozen=True)
class TorchdiffeqFixed(Integrator):
    """A fixed-grid method of torchdiffeq.

    Every step has the size given; nothing controls error or stability but the watch over the loss. θ within a
    step is the cubic Hermite interpolant, so that records don't shorten steps. The multistep (Adams) methods
    run in float64 and start, and start again after a step of another size, with Runge–Kutta steps.

    Parameters
    ----------
    step_size : float
        Step in time.
    loss_rtol : float, default 0.0
        Relative rise of the loss over one step that is tolerated, beyond rounding.
    options : mapping, optional
        Options of the library's solver, such as max_order or max_iters.
    """

    step_size: float
    loss_rtol: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    solver: ClassVar[type[FixedGridODESolver]]
    family: ClassVar[str | None] = "fixed-grid torchdiffeq"
    interpolates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_number("step_size", self.step_size, above=0)
        check_number("loss_rtol", self.loss_rtol, least=0)
        check_options(self.name, self.solver, self.options)

    @property
    def step_rule(self) -> FixedStep:
        """Every step is step_size."""
        return FixedStep(self.step_size)

    def init(self, point: Point) -> tuple[Tensor, ...]:
        """Return the history of a multistep method: empty."""
        return ()

    def step(self, point: Point, h: float, state: tuple[Tensor, ...]) -> StepResult:
        """Take one step of size h; `state` is θ in the dtype of the method and its history of slopes."""
        multistep = issubclass(self.solver, AdamsBashforthMoulton)
        dtype = torch.float64 if multistep else point.z.dtype
        regular = abs(h - self.step_size) <= 1e-9 * self.step_size
        y = state[0] if state else point.z.to(dtype)
        history = state[1:] if regular else ()

        known = _Field(point.field)
        known.start = y, point.velocity if dtype == point.z.dtype else known(0.0, y)
        solver: Any = self.solver(func=known, y0=y, rtol=1e-3, atol=1e-4, **self.options)
        if multistep:
            solver.prev_f = deque(history, maxlen=solver.max_order - 1)
            solver.prev_t = -self.step_size if history else None
        t, dt = (torch.tensor(value, dtype=torch.float64, device=y.device) for value in (0.0, h))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a functional iteration did not converge
            dy, f0 = solver._step_func(known, t, dt.to(dtype), dt, y)
            y1 = y + dy
        slopes = tuple(getattr(solver, "prev_f", ())) if regular else ()
        z, end = point.z, point.field.at(y1.to(point.z.dtype))
        interpolant = hermite(z, end.z - z, h, f0.to(z.dtype), end.velocity)
        return StepResult(end.z, interpolant, state=(y1, *slopes) if multistep else (), end=end)


def check_options(name: str, solver: type, options: Mapping[str, Any]) -> None:
    """Refuse options that the library would ignore with a warning."""
    if not isinstance(options, Mapping):
        raise InvalidTypeError(f"Expected options as a mapping, got {type(options).__name__}.")
    if ours := {"step_t", "jump_t", "grid_constructor", "step_size", "interp"} & set(options):
        raise UnknownOptionError(
            f"{', '.join(sorted(ours))}: not with {name}; the driver decides where steps end."
        )
    y = torch.zeros(1, dtype=torch.float64, device="cpu")
    given = (
        {"norm": _rms_norm, **options} if issubclass(solver, RKAdaptiveStepsizeODESolver) else dict(options)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            solver(func=lambda t, y: y, y0=y, rtol=1e-3, atol=1e-6, **given)
        except (UserWarning, TypeError, ValueError, AssertionError) as error:
            raise UnknownOptionError(f"torchdiffeq's {name} doesn't take these options: {error}") from error


@cache
def stability_of(solver: Any) -> float:
    """Return the length of the real stability interval of a solver."""
    tableau = solver.tableau
    b = tableau.c_sol.double().numpy()
    A = np.zeros((len(b), len(b)))
    for row, coefficients in enumerate(tableau.beta, start=1):
        A[row, : len(coefficients)] = coefficients.double().numpy()
    return real_stability(A, b)


def torchdiffeq_method(name: str) -> type[Integrator]:
    """Make the class of a solver of the installed torchdiffeq that steps in torch.

    Raises
    ------
    UnknownNameError
        If this torchdiffeq has none of that name.
    """
    solver = SOLVERS.get(name)
    if solver is None:
        raise UnknownNameError(f"The installed torchdiffeq has no {name!r}; {suggest(name, SOLVERS)}")
    base = TorchdiffeqAdaptive if issubclass(solver, RKAdaptiveStepsizeODESolver) else TorchdiffeqFixed
    body = {
        "name": f"torchdiffeq:{name}",
        "solver": solver,
        "order": solver.order,
        "__doc__": base.__doc__,
        "__module__": __name__,
    }
    return dataclass(frozen=True)(type(f"Torchdiffeq_{name}", (base,), body))
