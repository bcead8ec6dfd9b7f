"""A point of a run as observers see it."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from torch import Tensor

from gradflow.checks import check_count
from gradflow.driver import Snapshot
from gradflow.flows import Field, Point
from gradflow.loss import Evaluation, Linearization
from gradflow.spectrum import Eigenpairs, SpectrumService


class ObservedPoint(Point):
    """A recorded state with its time, at which each quantity is computed when it is first asked for, once.

    What the run knows at the same θ is taken over; what it doesn't is computed by the observers' own field, and
    counted as observing. Tensors are copies: whatever an observer does with them, the run stays as it is, and so does
    what other observers see.

    Beside the attributes below: ``theta``, ``loss``, ``gradient``, ``hvp(v)``, ``top(k, tol=…)``, and of the flow
    ``velocity`` and ``jacobian``.

    Attributes
    ----------
    snapshot : Snapshot
        What the driver records: cost, size of the last step.
    t : float
        Time.
    step : int
        Accepted steps so far.
    z : Tensor
        The flow's state, flat; for most flows it is θ.
    """

    def __init__(self, field: Field, snapshot: Snapshot, service: SpectrumService) -> None:
        super().__init__(field, snapshot.z.detach().clone(), keep_graph=False, accuracy=field.loss.classifies)
        self.snapshot = snapshot
        self.t = snapshot.t
        self.step = snapshot.step
        self._service = service
        run = snapshot.point
        self._run = run if run is not None and field.is_of(run.field.loss) else None
        self._others: dict[int, ObservedPoint] = {}

    @property
    def z(self) -> Tensor:
        """The flow's state, flat."""
        return self._z.clone()

    @z.setter
    def z(self, z: Tensor) -> None:
        self._z = z

    @property
    def theta(self) -> Tensor:
        """θ, shape (P,)."""
        return super().theta.clone()

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,)."""
        return super().gradient.clone()

    @property
    def velocity(self) -> Tensor:
        """dz/dt, of z's shape."""
        return super().velocity.clone()

    @property
    def evaluation(self) -> Evaluation:
        """Loss, gradient and accuracy at θ."""
        if self._known is None and self._run is not None:  # which needs it for its next step
            known = self._run.evaluation
            self._known = known._replace(value=known.value.clone(), gradient=known.gradient.clone())
        return super().evaluation

    @cached_property
    def linearization(self) -> Linearization:
        """Value, gradient and Hessian–vector products at θ; costs a gradient unless the run has it."""
        run = self.snapshot.point
        found = self.field.linearize(self.theta) if run is None else self.field.linearize_again(run)
        return found.with_copies()

    def top(self, k: int, *, tol: float = 1e-3) -> Eigenpairs:
        """Compute the top k eigenpairs of the Hessian at θ.

        Parameters
        ----------
        k : int
            1 ≤ k ≤ P.
        tol : float, default 1e-3
            Residual ‖Hv − λv‖/max|λ| to reach.

        Returns
        -------
        Eigenpairs
            Largest first. Those that run or record know to this tolerance are taken over; others are computed, starting
            from the last ones.
        """
        check_count("k", k, least=1)
        pairs = self.field.spectrum.known(k, self.theta, tol=tol)
        if pairs is None:
            pairs = self.top_by(self._service, k, tol)
        copies = {
            name: getattr(pairs, name).clone() for name in ("values", "vectors", "residuals", "converged")
        }
        return dataclasses.replace(pairs, **copies)

    def top_by(self, service: SpectrumService, k: int, tol: float) -> Eigenpairs:
        """Compute the top k eigenpairs by a service, unless the run has them; its first solve starts from the run's."""
        knowing = [service] if self._run is None else [self._run.field.spectrum, service]
        for each in knowing:
            pairs = each.known(k, self.theta, tol=tol)
            if pairs is not None:
                return pairs
        run = self.snapshot.point
        start = None if run is None else run.field.spectrum.basis
        return service.top(k, self.linearization, tol=tol, start=start)

    def preconditioner(self) -> Tensor | None:
        """Return the diagonal P of the optimiser's preconditioner, shape (P,); None if there is none (yet)."""
        return self.snapshot.preconditioner()

    def of(self, field: Field) -> ObservedPoint:
        """Return the same point of another field, such as that of a part of the data."""
        if field is self.field:
            return self
        if id(field) not in self._others:
            self._others[id(field)] = ObservedPoint(field, self.snapshot, self._service)
        return self._others[id(field)]
