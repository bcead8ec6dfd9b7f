"""What is measured at a record. Measuring reads the run, and never writes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gradflow.driver import Moment
from gradflow.flows import Field, Point
from gradflow.loss import LossFunction
from gradflow.observe.projections import RandomProjection
from gradflow.spectrum import Preconditioned, SpectrumService


class Observer(Protocol):
    """Measures one group of quantities.

    Attributes
    ----------
    group : str
        Name by which the schedule says when it is due.
    """

    group: ClassVar[str]

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Return values by variable name: numbers or arrays.

        Parameters
        ----------
        moment : Moment
        point : Point
            θ of the moment: the run's own point, or a point of the observers' flow.
        """


class Scalars:
    """Loss, gradient norm and accuracy."""

    group: ClassVar[str] = "scalars"

    def __init__(self, loss: LossFunction) -> None:
        self._loss = loss

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        values = {
            "train_loss": point.loss,
            "gradient_norm": float(torch.linalg.vector_norm(point.gradient, dtype=torch.float64)),
        }
        if self._loss.classifies:
            values["train_accuracy"] = point.accuracy
        return values


class Test:
    """Loss and accuracy on the test set."""

    group: ClassVar[str] = "test"

    def __init__(self, loss: LossFunction) -> None:
        self._loss = loss

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        loss, accuracy = self._loss.evaluate(point.theta)
        return {"test_loss": loss, "test_accuracy": accuracy}


class Spectrum:
    """The top eigenvalues of the Hessian.

    Solves start from this observer's last basis, at first from the run's; pairs that the run has computed
    at the same θ, of the same loss, are taken over.

    Parameters
    ----------
    flow : Field
        The observers' own, on all of the training data or on the first of them.
    n_eigs : int
    tol : float
    """

    group: ClassVar[str] = "eigenvalues"

    def __init__(self, flow: Field, n_eigs: int, tol: float) -> None:
        self._own = flow
        self._n_eigs = n_eigs
        self._tol = tol

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        k, run = self._n_eigs, point.field.spectrum
        pairs = run.known(k, point.theta, tol=self._tol) if self._own.is_of(point.field.loss) else None
        if pairs is None:
            linearization = self._own.linearize_again(point)
            pairs = self._own.spectrum.top(k, linearization, tol=self._tol, start=run.basis)
        return {"eigenvalue": pairs.values.numpy(), "eigenvalue_residual": pairs.residuals.numpy()}


class EffectiveSpectrum:
    """The top eigenvalues of the preconditioned Hessian P^(−1/2) H P^(−1/2), P as the optimiser uses it.

    Where an adaptive method is stable is decided by these (Cohen et al. 2022, arXiv:2207.14484). Not measured
    before the first step, when the optimiser has no P.

    Parameters
    ----------
    flow, n_eigs, tol
        As in :class:`Spectrum`.
    """

    group: ClassVar[str] = "eigenvalues"

    def __init__(self, flow: Field, n_eigs: int, tol: float) -> None:
        self._own = flow
        self._n_eigs = n_eigs
        self._tol = tol
        self.service = SpectrumService()

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        diagonal = moment.preconditioner()
        if diagonal is None:
            return {}
        operator = Preconditioned(self._own.linearize_again(point), diagonal)
        pairs = self.service.top(self._n_eigs, operator, tol=self._tol)
        return {
            "effective_eigenvalue": pairs.values.numpy(),
            "effective_eigenvalue_residual": pairs.residuals.numpy(),
        }


class Density:
    """The spectral density of the Hessian on a fixed grid, by stochastic Lanczos quadrature.

    From the same random vectors at every record, so that it changes with θ alone. Each Ritz value is spread
    over a Gaussian as wide as the widest gap of the grid.
    """

    group: ClassVar[str] = "density"

    def __init__(self, flow: Field, x: Tensor) -> None:
        self._own = flow
        self._x = x
        self._sigma = float(x.diff().max())

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        linearization = self._own.linearize_again(point)
        fresh = SpectrumService()  # whose random vectors are those of its seed
        density = fresh.density(linearization)
        values, errors = density.smoothed(self._x, self._sigma)
        return {"spectral_density": values.numpy(), "spectral_density_error": errors.numpy()}


class Projections:
    """Random projections of θ."""

    group: ClassVar[str] = "projections"

    def __init__(self, projection: RandomProjection) -> None:
        self._projection = projection

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        return {"projection": self._projection(point.theta).numpy()}


class Parameters:
    """θ itself."""

    group: ClassVar[str] = "params"

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Copy θ."""
        return {"theta": point.theta.detach().cpu().numpy().copy()}


class Observers:
    """All that is measured in a run, with a flow of their own for what the run doesn't know.

    Parameters
    ----------
    flow, spectrum_flow : Field
        The observers' own: their cost is what measuring takes, and is not the method's. The second is that of
        spectra; the same, unless those are of a part of the data.
    observers : iterable of Observer
    """

    def __init__(self, flow: Field, spectrum_flow: Field, observers: Iterable[Observer]) -> None:
        self._flow = flow
        self._flows = [flow] if spectrum_flow is flow else [flow, spectrum_flow]
        self._observers = tuple(observers)

    @property
    def n_gradients(self) -> int:
        """Gradients that measuring has taken."""
        return sum(flow.cost.n_gradients for flow in self._flows)

    @property
    def n_hvps(self) -> int:
        """Hessian–vector products that measuring has taken."""
        return sum(flow.cost.n_hvps for flow in self._flows)

    def state_dict(self) -> dict[str, Any]:
        """Return what later measurements depend on: bases that eigensolves start from, random numbers, counts."""
        services = [o.service.state_dict() for o in self._observers if isinstance(o, EffectiveSpectrum)]
        return {"flows": [flow.state_dict() for flow in self._flows], "services": services}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        for flow, saved in zip(self._flows, state["flows"], strict=True):
            flow.load_state_dict(saved)
        effective = [o for o in self._observers if isinstance(o, EffectiveSpectrum)]
        for observer, saved in zip(effective, state["services"], strict=True):
            observer.service.load_state_dict(saved)

    def measure(self, moment: Moment, due: Iterable[str]) -> dict[str, Any]:
        """Measure the groups that are due; time, step and cost always."""
        values: dict[str, Any] = {
            "time": moment.t,
            "step": moment.step,
            "step_size": moment.step_size,
            "sharpness_used": moment.sharpness_used,
            "n_gradients": moment.cost.n_gradients,
            "n_hvps": moment.cost.n_hvps,
            "wall_time": moment.wall_time,
        }
        wanted = frozenset(due)
        point = moment.point if moment.point is not None else self._flow.at(moment.z)
        for observer in self._observers:
            # Loss and accuracy are known or cheap: every record has them.
            if observer.group in wanted or isinstance(observer, Scalars):
                values |= observer.measure(moment, point)
        return {name: value for name, value in values.items() if not _is_nan(value)}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
