"""The central flow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from gradflow.checks import check_choice, check_count, check_number
from gradflow.errors import IntegrationWarning, InvalidInputError, InvalidTypeError
from gradflow.flows.base import Flow
from gradflow.flows.central.edge import Constraint, Edge, catching_up, instantaneous, to_numpy
from gradflow.flows.central.learning_rate import LearningRateLike, check_learning_rate
from gradflow.flows.central.rules import GradientDescent, RMSProp, Rule, ScalarRMSProp
from gradflow.flows.central.sdcp import svec
from gradflow.flows.central.third import Third, third_derivatives
from gradflow.flows.edge_measures import EDGE_VARIABLES, quartic_ratio
from gradflow.flows.point import all_finite
from gradflow.optim.scheduler import MakesScheduler
from gradflow.spectrum import Preconditioned
from gradflow.status import NumericalFailure, Status
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point

RuleName = Literal["gd", "scalar-rmsprop", "rmsprop"]
_RULES: Mapping[str, type[Rule]] = {
    "gd": GradientDescent,
    "scalar-rmsprop": ScalarRMSProp,
    "rmsprop": RMSProp,
}
#: Eigenpairs that are watched beside those at the edge.
BUFFER = 1
#: Residual of eigenpairs: errors of eigenvalues are of second order in it.
_EIG_TOL = 3e-4
#: Condition number beyond which the covariance isn't unique.
_NOT_UNIQUE = 1e10


@dataclass(frozen=True)
class CentralFlow(Flow):
    """The central flow of an optimiser: the path about which it oscillates at the edge of stability.

    Cohen et al. 2024, arXiv:2410.24206. The iterates are modelled as w + δ with E δ = 0 and E δδᵀ = Σ, where Σ is what
    keeps the eigenvalues of P⁻¹H from rising above 2:

        dw/dt = −P(s)⁻¹ (∇L(w) + ½ ∇⟨H(w), Σ⟩),
        ds/dt = f(s, ∇L) + ½ ∇²_g f [H Σ H],
        0 ⪯ Σ ⟂ 2P(s) − H(w) ⪰ 0.

    For gradient descent P = 1/η: below the edge the central flow is gradient flow, and along it gradient flow that is
    projected on the set λ₁ ≤ 2/η. Time is flow time for gradient descent, as in ``method="gd"``, and steps of the
    optimiser for the others.

    Third-order theory: it is silent where ∇λ₁ vanishes, and off by about ``quartic_ratio``. It predicts averages over
    the oscillation, not its cycles.

    Parameters
    ----------
    lr : float or callable
        Learning rate η; or a function of the optimiser's step, which need not be whole.
    rule : {"gd", "scalar-rmsprop", "rmsprop"}
        The optimiser.
    beta2, eps : float
        β₂ and ε of RMSProp, which divides by √ν + ε.
    bias_correction : bool
        Divide ν by 1 − β₂ᵗ.
    nu_start : float
        ν before the first gradient.
    scheduler : callable or str, optional
        As optimisers take it; η is linear from step to step.
    warmup_steps : int
        Steps of the optimiser before t = 0, for a start above the edge.
    max_active : int
        Most directions at the edge.
    edge_tol : float
        How far above 2 an eigenvalue of P⁻¹H may be.
    third : {"reverse", "difference"}
        How third derivatives are computed: exactly, or by differences of products with the Hessian.
    scheme : {"projected", "euler"}
        Integrate with error control (:class:`gradflow.integrators.CentralProjected`), or by Euler steps that catch up
        with the edge, as the authors do (:class:`gradflow.integrators.CentralEuler`).
    substeps : int
        Euler steps to one of the optimiser.
    threshold : float
        Eigenvalue of P⁻¹H above which a direction is in the Euler scheme's complementarity problem.
    """

    lr: LearningRateLike
    rule: RuleName = "gd"
    beta2: float = 0.99
    eps: float = 1e-8
    bias_correction: bool = False
    nu_start: float = 0.0
    scheduler: MakesScheduler | str | None = None
    warmup_steps: int = 0
    max_active: int = 20
    edge_tol: float = 1e-5
    third: Third = "reverse"
    scheme: Literal["projected", "euler"] = "projected"
    substeps: int = 4
    threshold: float = 1.95

    name: ClassVar[str] = "central"
    third_derivatives: ClassVar[bool] = True
    schemes: ClassVar[Mapping[str, str]] = {"projected": "central-projected", "euler": "central-euler"}
    variables: ClassVar[Mapping[str, Variable]] = {
        **EDGE_VARIABLES,
        "edge_residual": Variable(long_name="largest eigenvalue of the preconditioned Hessian, minus 2"),
        "sigma_eigenvalue": Variable(
            ("mode",), "eigenvalues of the covariance of the oscillation, descending"
        ),
        "n_active": Variable(long_name="number of directions that oscillate"),
    }

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, _RULES)
        check_choice("scheme", self.scheme, self.schemes)
        check_choice("third", self.third, ("reverse", "difference"))
        check_number("beta2", self.beta2, above=0, below=1)
        check_number("eps", self.eps, least=0)
        check_number("nu_start", self.nu_start, least=0)
        if not isinstance(self.bias_correction, bool):
            raise InvalidTypeError(f"Expected bias_correction as a bool, got {self.bias_correction!r}.")
        check_count("warmup_steps", self.warmup_steps)
        check_count("max_active", self.max_active, least=1)
        check_count("substeps", self.substeps, least=1)
        check_number("edge_tol", self.edge_tol, above=0, most=0.01)
        check_number("threshold", self.threshold, above=0, most=2)
        lr = check_learning_rate(self.lr, self.scheduler)
        if self.rule == "gd":
            made: Rule = GradientDescent(lr, not lr.is_constant)
        else:
            clock = self.bias_correction or not lr.is_constant
            made = _RULES[self.rule](lr, clock, self.beta2, self.eps, self.bias_correction, self.nu_start)  # type: ignore[call-arg]
        object.__setattr__(self, "_rule", made)

    @property
    def optimizer(self) -> Rule:
        """The optimiser's formulas."""
        rule: Rule = self._rule  # type: ignore[attr-defined]
        return rule

    @property
    def time_definition(self) -> str:
        """Flow time for gradient descent, else steps of the optimiser."""
        return "flow" if self.optimizer.flow_time else "optimiser steps"

    def settings(self) -> dict[str, Any]:
        """Return the options by name; functions by theirs."""
        return {name: _named(value) for name, value in super().settings().items()}

    # ------------------------------------------------------------------ the state z = (w, s)

    def initial(self, theta: Tensor) -> Tensor:
        """Return (θ, s) before the first gradient."""
        return torch.cat([theta, self.optimizer.blank(theta)])

    def theta(self, z: Tensor) -> Tensor:
        """Return w."""
        return z[: self.optimizer.n_parameters(len(z))]

    def state(self, z: Tensor) -> Tensor:
        """Return s."""
        return z[self.optimizer.n_parameters(len(z)) :]

    def size(self, z: Tensor) -> float:
        """Return ‖w‖₂."""
        return super().size(self.theta(z))

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        """Return (w, s) after the warm-up, with the gradient there taken into s.

        Raises
        ------
        InvalidInputError
            If an eigenvalue of P⁻¹H is above 2 there, or the warm-up diverges.
        """
        rule, s = self.optimizer, self.optimizer.blank(theta)
        for _ in range(self.warmup_steps):
            g = field.evaluate(theta).gradient
            s = rule.renewed(s, g)
            theta = theta - g / rule.preconditioner(s)
            if not all_finite(theta):
                raise InvalidInputError(
                    f"Expected the optimiser's {self.warmup_steps} steps of the warm-up to stay finite, which they "
                    "don't. Take a smaller lr, fewer warmup_steps, or a start with smaller weights."
                )
        point = field.at(torch.cat([theta, s]))
        z = torch.cat([theta, rule.renewed(s, point.linearization.gradient)])
        if not all_finite(point.linearization.gradient):  # which every flow is refused for
            return z
        values, _ = self.spectrum(field.at(z), 1)
        if values[0] > 2 + self.edge_tol:
            raise InvalidInputError(
                f"The central flow starts at or below the edge of stability: expected the largest eigenvalue of P⁻¹H "
                f"(ηλ₁ for gradient descent) ≤ 2, got {values[0]:.6g}. Take a smaller lr, let the optimiser take its "
                "first steps itself with warmup_steps=…, or warm the learning rate up with a schedule."
            )
        return z

    # ------------------------------------------------------------------ at a point

    def velocity(self, point: Point) -> Tensor:
        """Return dz/dt."""
        return self.edge(point).velocity

    def edge(self, point: Point) -> Edge:
        """Return the critical directions at a point, and the covariance of the oscillation; computed once."""
        edge: Edge = point.work("central flow", lambda: self._edge(point))
        return edge

    def _edge(self, point: Point) -> Edge:
        euler = self.scheme == "euler"
        least = self.threshold if euler else 2 - 2 * self.edge_tol
        values, vectors = self.tracked(point, least)
        k = int(np.sum(values > least))
        if k > self.max_active:
            raise NumericalFailure(
                Status.TOO_MANY_ACTIVE,
                f"{k} eigenvalues are at the edge, and max_active is {self.max_active}",
            )
        critical = self.constraint(point, vectors[:, :k], np.diag(values[:k])) if k else None
        free = self.free(point) if critical is None else critical.free
        if euler:
            dt = self.optimizer.duration(self.state(point.z)) / self.substeps
            found = catching_up(values, vectors, critical, free, dt)
        else:
            found = instantaneous(values, vectors, critical, free)
        if found.solution is not None:
            self._check(found)
        return found

    def _check(self, edge: Edge) -> None:
        assert edge.solution is not None
        if edge.solution.status == "unsolvable":
            raise NumericalFailure(
                Status.NO_MULTIPLIER,
                "no covariance of an oscillation in the critical directions keeps their eigenvalues from rising",
            )
        if edge.solution.condition > _NOT_UNIQUE:
            warnings.warn(
                "The central flow's covariance isn't unique here: the gradients of the critical eigenvalues are "
                "linearly dependent. The path is right; sigma_trace and the predicted loss may be one choice of many.",
                IntegrationWarning,
                stacklevel=2,
            )

    def spectrum(self, point: Point, k: int) -> tuple[np.ndarray, Tensor]:
        """Return the k largest eigenvalues of P⁻¹H, and their P-orthonormal eigenvectors, shape (P, k)."""
        P = self.optimizer.preconditioner(self.state(point.z))
        k = min(k, len(point.theta))
        if self.optimizer.scalar:
            pairs, p = point.top(k, tol=_EIG_TOL), float(P)
            values, vectors = pairs.values / p, pairs.vectors / math.sqrt(p)
        else:
            pairs = point.field.top_of(Preconditioned(point.linearization, P), k, tol=_EIG_TOL)
            values, vectors = pairs.values, pairs.vectors / P.sqrt()[:, None]
        if not bool(torch.isfinite(values).all() and torch.isfinite(vectors).all()):
            raise NumericalFailure(
                Status.NO_SHARPNESS, f"the eigensolver returned λ = {pairs.values.tolist()}"
            )
        return to_numpy(values), vectors

    def tracked(self, point: Point, least: float, n: int = 0) -> tuple[np.ndarray, Tensor]:
        """Return the eigenpairs of P⁻¹H above a value, at least n, and those of the buffer below."""
        P, k = len(point.theta), max(1, n) + BUFFER
        while True:
            values, vectors = self.spectrum(point, k)
            above = int(np.sum(values > least))
            if above > self.max_active or len(values) == P or above + BUFFER <= len(values):
                return values, vectors
            k = above + BUFFER

    def free(self, point: Point) -> Tensor:
        """Return dz/dt of the stable flow, without an oscillation."""
        rule, s = self.optimizer, self.state(point.z)
        g = point.linearization.gradient
        return torch.cat([-g / rule.preconditioner(s), rule.law(s, g)]) / rule.duration(s)

    def constraint(self, point: Point, U: Tensor, quotient: np.ndarray) -> Constraint:
        """Return the constraint on directions U with UᵀPU = I, UᵀHU = `quotient` and HU = PU·quotient."""
        rule, s = self.optimizer, self.state(point.z)
        P = rule.preconditioner(s)
        T = third_derivatives(point, U, self.third)
        P_of = P if P.dim() == 0 else P[:, None]
        images = P_of * (U @ torch.from_numpy(quotient).to(U))
        drifts = torch.cat([-0.5 * T / P_of, rule.second_moments(s, images)]) / rule.duration(s)
        gradients = torch.cat([-T, rule.slack_gradient(s, U)])
        slack = svec(2 * np.eye(U.shape[1]) - quotient)
        return Constraint(U, images, slack, gradients, drifts, self.free(point))

    # ------------------------------------------------------------------ what is recorded

    def measure(self, point: Point) -> dict[str, Any]:
        """Return what the flow predicts of the iterates."""
        edge = self.edge(point)
        modes = np.zeros(min(self.max_active, len(point.theta)))
        loss, quartic = point.loss, 0.0
        square = float(torch.linalg.vector_norm(point.gradient, dtype=torch.float64)) ** 2
        if edge.active is not None:
            critical, x = edge.active
            U, HU = to_numpy(critical.basis), to_numpy(critical.images)
            modes[: len(x)] = np.linalg.eigvalsh(np.sqrt(x)[:, None] * (U.T @ U) * np.sqrt(x))[::-1]
            loss += float(x.sum())
            square += float((x * (HU**2).sum(0)).sum())
            u = critical.basis[:, 0]
            length = float(torch.linalg.vector_norm(u))
            # In terms of u with uᵀPu = 1 the edge is at 2 and x has the place of ησ².
            quartic = quartic_ratio(point, u / length, float(x[0]) * length**2, length**2)
        return {
            "predicted_train_loss": loss,
            "predicted_gradient_norm": math.sqrt(square),
            "sigma_trace": float(modes.sum()),
            "sigma_eigenvalue": modes,
            "n_active": edge.n_active,
            "edge_residual": float(edge.values[0]) - 2,
            "quartic_ratio": quartic,
        }


def _named(value: Any) -> Any:
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value
