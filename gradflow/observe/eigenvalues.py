"""The top eigenvalues of the Hessian, preconditioned or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gradflow.flows import Field
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.spectrum import Preconditioned, SpectrumService
from gradflow.variable import Variable


@dataclass(eq=False)
class Eigenvalues(Observer):
    """The top eigenvalues of the Hessian.

    Solves start from the field's last basis, at first from the run's. Pairs that the run has computed at the same θ,
    of the same loss, are taken over.

    Parameters
    ----------
    field : Field
        On all of the training data, or on the first of them.
    n : int
    tol : float
    """

    field: Field
    n: int
    tol: float

    name = "eigenvalues"
    variables: ClassVar[Mapping[str, Variable]] = {
        "eigenvalue": Variable(("eig",), "largest Hessian eigenvalues, descending"),
        "eigenvalue_residual": Variable(
            ("eig",), "residual norm of the eigenpair relative to the largest absolute eigenvalue"
        ),
    }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        pairs = point.of(self.field).top_by(self.field.spectrum, self.n, self.tol)
        return {"eigenvalue": pairs.values, "eigenvalue_residual": pairs.residuals}


@dataclass(eq=False)
class EffectiveEigenvalues(Eigenvalues):
    """The same, and those of the preconditioned Hessian P^(−1/2) H P^(−1/2), P as the optimiser uses it.

    Where an adaptive method is stable is decided by these (Cohen et al. 2022, arXiv:2207.14484). They aren't measured
    before the first step, when the optimiser has no P.
    """

    variables: ClassVar[Mapping[str, Variable]] = {
        **Eigenvalues.variables,
        "effective_eigenvalue": Variable(
            ("eig",), "largest eigenvalues of the preconditioned Hessian, descending"
        ),
        "effective_eigenvalue_residual": Variable(
            ("eig",), "residual norm of that eigenpair relative to the largest absolute eigenvalue"
        ),
    }

    def __post_init__(self) -> None:
        self._service = SpectrumService()

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        values = super().measure(point)
        diagonal = point.preconditioner()
        if diagonal is None:
            return values
        operator = Preconditioned(point.of(self.field).linearization, diagonal)
        pairs = self._service.top(self.n, operator, tol=self.tol)
        return {
            **values,
            "effective_eigenvalue": pairs.values,
            "effective_eigenvalue_residual": pairs.residuals,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the basis that the next solve starts from."""
        return self._service.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._service.load_state_dict(state)
