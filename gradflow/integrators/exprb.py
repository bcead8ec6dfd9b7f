"""Exponential Rosenbrock methods, with the Hessian at every step's start for their stiff part."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError
from gradflow.flows import Point
from gradflow.flows.base import Needs
from gradflow.integrators.base import StepResult
from gradflow.integrators.controlled import ErrorControlled
from gradflow.integrators.phi.spaces import DenseSpace, KrylovSpace, PhiSpace, Term
from gradflow.integrators.phi.unseen import search
from gradflow.integrators.step_size.base import norm, safe_divide
from gradflow.integrators.step_size.error_control import tolerance
from gradflow.loss import LossFunction
from gradflow.plain import restorable
from gradflow.spectrum import SymmetricOperator, negated

#: Largest P for which the dense Hessian is the default.
DENSE_BELOW = 400
#: Most vectors in a Krylov space by default; a check of its error costs their number cubed.
_MAX_BASIS = 200
#: Fraction of the Krylov space that the first φ-function may use.
_FIRST = 0.75
#: Tolerance of an inner stage, relative to the step's length: its error is damped by the size of the remainder.
_STAGE = 1e-4
#: What a step that the space can't resolve is shortened by.
_SHORTER = 0.8
#: Products after which the first step's size is guessed.
_FIRST_LOOK = 3
#: Ritz pairs that are handed on.
_HANDED_ON = 6
#: Steps after which eigenvectors that F has no part in are looked for again.
_SEARCH_EVERY = 40
#: Exponent of a growth within a step that a space may miss: what it hasn't seen, it extrapolates to there.
_GROWTH = 1.0


@restorable
@dataclass(frozen=True)
class _Unseen:
    """What is known of the directions that F has little or no part in.

    Attributes
    ----------
    exists : bool
        One that it has no part in was found: φ-functions are computed to rounding from there on.
    lowest : float
        The smallest eigenvalue of H that was seen last.
    age : int
        Steps since the last search.
    """

    exists: bool
    lowest: float
    age: int


#: bₖ by k, of a sum of h φₖ(−hH) bₖ, and of another one.
_Sums = tuple[dict[int, np.ndarray], dict[int, np.ndarray]]


def norm_of(z: np.ndarray) -> float:
    """2-norm of coordinates."""
    return float(np.linalg.norm(z))


class _Local:
    """The flow around a point: φ-functions of −hH there, and the remainder D; vectors by coordinates.

    Attributes
    ----------
    F : ndarray
        The velocity at the point.
    unseen : _Unseen or None
        What F hardly sees; None in a dense space, where every direction is as exact as the next.
    to_rounding : bool
        φ-functions are computed to rounding, whatever the tolerance.
    """

    def __init__(self, point: Point, space: PhiSpace, unseen: _Unseen | None = None) -> None:
        self.space = space
        self.unseen = unseen
        self.to_rounding = unseen is not None and unseen.exists
        self._point = point
        self.F = space.coordinates(point.velocity)

    def allowed(self, h: float, tol: float) -> float:
        """Return the error that a φ-function's action may have in a step of size h."""
        if not self.to_rounding:
            return tol
        z, F = self._point.z, self._point.velocity
        return min(tol, torch.finfo(z.dtype).eps * (norm(z) + h * norm(F)))

    def resolve(self, F: Term, tol: float) -> float:
        """Grow the space for h φ₁(−hH) F; return the error.

        Where H has negative curvature that matters to the step and that the space doesn't see, it grows on until
        the error is one of rounding: a direction that grows along the flow is followed from its first digit on.
        """
        error = self.space.resolve([F], self.allowed(F.h, tol), room=_FIRST)
        if self.unseen is None or self.to_rounding:
            return error
        λ = self.space.eigenvalues()
        seen = min(0.0, float(λ[0])) if len(λ) else 0.0
        if F.h * (seen - self.unseen.lowest) <= _GROWTH:
            return error
        self.to_rounding = True
        return self.space.resolve([F], self.allowed(F.h, tol), room=_FIRST)

    def φ(self, k: int, h: float, b: np.ndarray, tol: float) -> np.ndarray:
        """Return h φₖ(−hH) b to a tolerance."""
        term = Term(k, h, b)
        self.space.resolve([term], tol)
        return self.space.evaluate(term)

    def D(self, u: np.ndarray) -> np.ndarray:
        """Return f(U) − F + H (U − zₙ) for U = zₙ + u; the last costs nothing."""
        u = self.space.resolved(u)
        point, space = self._point, self.space
        f, F = point.field, point.velocity
        return space.coordinates(f(point.z + space.vector(u)) - F + space.vector(space.times_H(u)))

    def stage_tol(self, tol: float, u: np.ndarray) -> float:
        """Return the error that a stage may have beyond the step's, for a step of about the length of u."""
        return tol if self.to_rounding else max(tol, _STAGE * norm_of(u))


@dataclass(frozen=True)
class ExponentialRosenbrock(ErrorControlled):
    """What the exponential Rosenbrock methods have in common.

    With F = f(zₙ) the velocity of the flow and H = −∂f/∂z at zₙ, for gradient flow the Hessian, the linear part of
    the flow around zₙ is followed exactly by φ-functions of −hH. The remainder D(U) = f(U) − F + H (U − zₙ) is small
    of second order and not stiff. So only accuracy limits the step, whatever λ₁ is.

    The action of a φ-function is computed to a part of the tolerance. Where that isn't enough, it is computed to
    rounding: where an eigenvector of H has no part in F, because of a symmetry that the flow is to keep, and where
    something that F hardly sees grows along negative curvature, and so decides when the flow leaves a saddle
    (:mod:`gradflow.integrators.phi.unseen`). Options beside those of :class:`ErrorControlled`:

    Parameters
    ----------
    krylov_tol : float, default 0.1
        Error of a φ-function's action over the tolerance of the step.
    max_basis : int, optional
        Vectors in the Krylov space, of P numbers each; a step that needs more is shortened. Default: what
        fits in a quarter of the loss's memory budget, at most 200.
    dense : bool, optional
        Use the eigendecomposition of the dense Hessian, at P products a step, in the place of Krylov
        spaces. Default: for P ≤ 400.
    """

    krylov_tol: float = 0.1
    max_basis: int | None = None
    dense: bool | None = None

    needs: ClassVar[Needs | None] = "symmetric jacobian"
    keep_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("krylov_tol", self.krylov_tol, above=0)
        if self.max_basis is not None:
            check_count("max_basis", self.max_basis, least=4)

    def resolve(self, loss: LossFunction) -> Self:
        """Choose between Krylov spaces and the dense Hessian, and the size of the former."""
        if not loss.has_exact_products:
            raise InvalidInputError(
                f"Method {self.name!r} needs exact products with the Hessian, and those of this loss are differences "
                'of gradients (hvp="difference"). method="auto", "rkc", "tsit5" and "dop853" take them.'
            )
        P = loss.n_parameters
        if P is None:
            return self
        max_basis = self.max_basis
        if max_basis is None and loss.memory_budget is not None:
            max_basis = max(16, min(_MAX_BASIS, loss.memory_budget // (4 * 8 * P)))
        return dataclasses.replace(self, dense=self._is_dense(P), max_basis=max_basis)

    def _is_dense(self, P: int) -> bool:
        return P <= DENSE_BELOW if self.dense is None else self.dense

    def _local(self, point: Point, state: _Unseen | None) -> _Local:
        """Return the space in which φ-functions are computed; attempts at one point share it."""
        return point.work(self, lambda: self._prepare(point, state))

    def _prepare(self, point: Point, state: _Unseen | None) -> _Local:
        assert point.jacobian is not None
        H: SymmetricOperator = negated(point.jacobian)
        if self._is_dense(len(point.z)):
            return _Local(point, DenseSpace(H))
        if state is None or (state.age >= _SEARCH_EVERY and not state.exists):
            found = search(H, point.velocity)
            lowest = found.lowest if state is None else min(found.lowest, state.lowest)
            state = _Unseen(found.unseen, lowest, age=0)
        return _Local(point, KrylovSpace(H, self.max_basis or _MAX_BASIS), state)

    @staticmethod
    def _carried(local: _Local) -> _Unseen | None:
        """Carry on what F hardly sees, which a space that is large enough has seen all the same."""
        if local.unseen is None:
            return None
        λ = local.space.eigenvalues()
        lowest = float(λ[0]) if len(λ) else local.unseen.lowest
        return dataclasses.replace(local.unseen, lowest=lowest, age=local.unseen.age + 1)

    def first_size(self, point: Point, state: _Unseen | None) -> float:
        """Return the inverse of the largest |eigenvalue| that F sees within a few products."""
        λ = self._local(point, state).space.eigenvalues(_FIRST_LOOK)
        scale = float(np.abs(λ).max()) if len(λ) else 0.0
        return safe_divide(1.0, scale)

    def step(self, point: Point, h: float, state: _Unseen | None) -> StepResult:
        """Take a step of at most h."""
        local = self._local(point, state)
        space, z, allowed = local.space, point.z, self.krylov_tol * tolerance(self.tolerances, point)
        F = Term(1, h, local.F)
        while local.resolve(F, allowed) > allowed:
            F = dataclasses.replace(F, h=_SHORTER * F.h)
        h = F.h
        sums = self.terms(local, h, local.allowed(h, allowed))
        terms, estimate = ([Term(k, h, b) for k, b in each.items()] for each in sums)
        leak = space.resolve(terms, local.allowed(h, allowed))
        error = norm_of(np.sum([space.evaluate(term) for term in estimate], axis=0))

        def after(s: float) -> Tensor:
            parts = [s ** (t.k - 1) * space.evaluate(Term(t.k, s * h, t.b)) for t in terms]
            return z + space.vector(np.sum(parts, axis=0))

        pairs = space.top(_HANDED_ON)
        return StepResult(
            after(1.0),
            after,
            error=error + (leak if leak > allowed else 0.0),
            state=self._carried(local),
            h=h,
            pairs=pairs if len(pairs) else None,  # none where F was too small to need any
        )

    @abstractmethod
    def terms(self, local: _Local, h: float, tol: float) -> _Sums:
        """Return bₖ by k for zₙ₊₁ = zₙ + Σₖ h φₖ(−hH) bₖ, and those of the error estimate in the same way.

        z(tₙ + sh) = zₙ + Σₖ sᵏ⁻¹ (sh) φₖ(−shH) bₖ is of the method's order.
        """


@dataclass(frozen=True)
class Exprb32(ExponentialRosenbrock):
    """Exponential Rosenbrock method of order 3 with an estimate of order 2.

    Hochbruck, Ostermann & Schweitzer, SIAM J. Numer. Anal. 47 (2009) 786–803, with one stage:

        U = zₙ + h φ₁(−hH) F,     zₙ₊₁ = U + 2 h φ₃(−hH) D(U),

    two gradients a step. Options are those of :class:`ExponentialRosenbrock`.
    """

    name: ClassVar[str] = "exprb32"
    order: ClassVar[int] = 3
    error_order: ClassVar[int] = 3

    def terms(self, local: _Local, h: float, tol: float) -> _Sums:
        """Return F and 2 D(U), which is the estimate."""
        φ, D, F = local.φ, local.D, local.F
        u = φ(1, h, F, tol)
        last = 2 * D(u)
        return {1: F, 3: last}, {3: last}


@dataclass(frozen=True)
class Exprb43(ExponentialRosenbrock):
    """Exponential Rosenbrock method of order 4 with an estimate of order 3.

    Hochbruck, Ostermann & Schweitzer, SIAM J. Numer. Anal. 47 (2009) 786–803, with two stages:

        U₂ = zₙ + ½h φ₁(−½hH) F,     U₃ = zₙ + h φ₁(−hH) (F + D(U₂)),
        zₙ₊₁ = zₙ + h φ₁ F + h (16 φ₃ − 48 φ₄) D(U₂) + h (−2 φ₃ + 12 φ₄) D(U₃),

    three gradients a step. Options are those of :class:`ExponentialRosenbrock`.
    """

    name: ClassVar[str] = "exprb43"
    order: ClassVar[int] = 4
    error_order: ClassVar[int] = 4

    def terms(self, local: _Local, h: float, tol: float) -> _Sums:
        """Return F, 16 D(U₂) − 2 D(U₃), and −48 D(U₂) + 12 D(U₃), which is the estimate."""
        φ, D, F = local.φ, local.D, local.F
        u2 = φ(1, h / 2, F, tol)
        D2 = D(u2)
        u3 = φ(1, h, F, tol) + φ(1, h, D2, local.stage_tol(tol, u2))
        D3 = D(u3)
        last = -48 * D2 + 12 * D3
        return {1: F, 3: 16 * D2 - 2 * D3, 4: last}, {4: last}


@dataclass(frozen=True)
class Exprb54(ExponentialRosenbrock):
    """Exponential Rosenbrock method of order 5 with an estimate of order 4.

    exprb54s4 of Luan & Ostermann, J. Comput. Appl. Math. 255 (2014) 417–431, with three stages, c = ¼, ½, 9/10:

        U₂ = zₙ + ¼h φ₁(−¼hH) F,     U₃ = zₙ + ½h φ₁(−½hH) F + 4h φ₃(−½hH) D(U₂),
        U₄ = zₙ + ch φ₁(−chH) F + 8c³h φ₃(−chH) D(U₃),     c = 9/10,
        zₙ₊₁ = zₙ + h φ₁ F + h (18 φ₃ − 60 φ₄) D(U₃) + h (−250/81 φ₃ + 500/27 φ₄) D(U₄),

    four gradients a step. The estimate is what zₙ₊₁ is away from the solution of order 4 by D(U₂) and D(U₃),

        zₙ + h φ₁ F + h (64 φ₃ − 384 φ₄) D(U₂) + h (−8 φ₃ + 96 φ₄) D(U₃).

    Within a step, z is of an error of O(h⁵), as at the end of a run. Options are those of
    :class:`ExponentialRosenbrock`.
    """

    name: ClassVar[str] = "exprb54"
    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5

    def terms(self, local: _Local, h: float, tol: float) -> _Sums:
        """Return F and what D(U₃) and D(U₄) add; and how far that is from what D(U₂) and D(U₃) add."""
        φ, D, F, c = local.φ, local.D, local.F, 9 / 10
        u2 = φ(1, h / 4, F, tol)
        D2, stage = D(u2), local.stage_tol(tol, u2)
        D3 = D(φ(1, h / 2, F, tol) + 8 * φ(3, h / 2, D2, stage))
        D4 = D(φ(1, c * h, F, tol) + 8 * c**2 * φ(3, c * h, D3, stage))
        b3, b4 = 18 * D3 - 250 / 81 * D4, -60 * D3 + 500 / 27 * D4
        return {1: F, 3: b3, 4: b4}, {3: b3 - 64 * D2 + 8 * D3, 4: b4 + 384 * D2 - 96 * D3}
