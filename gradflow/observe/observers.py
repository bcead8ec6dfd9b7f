"""What is measured at a record. Measuring reads the run, and never writes it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gradflow.driver import Moment
from gradflow.integrators.flow import Flow, Point
from gradflow.loss import LossFunction
from gradflow.observe.projections import RandomProjection
from gradflow.spectrum import SpectrumService


class Observer(Protocol):
    """Measures one group of quantities.

    Attributes
    ----------
    group : str
        Name by which the schedule says when it is due.
    """

    group: ClassVar[str]

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Give values by variable name: numbers or arrays.

        Parameters
        ----------
        moment : Moment
        point : Point
            θ of the moment: the run's own point, or a point of the observers' flow.
        """


class Scalars:
    """Loss, gradient norm, accuracy, and loss and accuracy on the test set."""

    group: ClassVar[str] = "scalars"

    def __init__(self, loss: LossFunction, test: LossFunction | None) -> None:
        self._loss = loss
        self._test = test

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        values = {
            "train_loss": point.loss,
            "gradient_norm": float(torch.linalg.vector_norm(point.gradient, dtype=torch.float64)),
        }
        if self._loss.classifies:
            values["train_accuracy"] = self._loss.evaluate(point.theta)[1]
        if self._test is not None:
            values["test_loss"], values["test_accuracy"] = self._test.evaluate(point.theta)
        return values


class Spectrum:
    """The top eigenvalues of the Hessian.

    Solves start from this observer's last basis, at first from the run's; pairs that the run has computed
    at the same θ are taken over.
    """

    group: ClassVar[str] = "eigenvalues"

    def __init__(self, flow: Flow, n_eigs: int, tol: float) -> None:
        self._own = flow
        self._n_eigs = n_eigs
        self._tol = tol

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        k, run = self._n_eigs, point.flow.spectrum
        pairs = run.known(k, point.theta, tol=self._tol)
        if pairs is None:
            linearization = point.known_linearization or self._own.at(point.theta).linearization
            pairs = self._own.spectrum.top(k, linearization, tol=self._tol, start=run.basis)
        return {"eigenvalue": pairs.values.numpy(), "eigenvalue_residual": pairs.residuals.numpy()}


class Density:
    """The spectral density of the Hessian on a fixed grid, by stochastic Lanczos quadrature.

    From the same random vectors at every record, so that it changes with θ alone. Each Ritz value is spread
    over a Gaussian as wide as the widest gap of the grid.
    """

    group: ClassVar[str] = "density"

    def __init__(self, flow: Flow, x: Tensor) -> None:
        self._own = flow
        self._x = x
        self._sigma = float(x.diff().max())

    def measure(self, moment: Moment, point: Point) -> dict[str, Any]:
        """Measure at the point."""
        linearization = point.known_linearization or self._own.at(point.theta).linearization
        fresh = SpectrumService()  # whose random vectors are those of its seed
        density = fresh.density(linearization)
        self._own.spectrum.n_hvps += density.n_hvp
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
    flow : Flow
        The observers' own: its cost is what measuring takes, and is not the method's.
    observers : iterable of Observer
    """

    def __init__(self, flow: Flow, observers: Iterable[Observer]) -> None:
        self.flow = flow
        self._observers = tuple(observers)

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
        point = moment.point if moment.point is not None else self.flow.at(moment.theta)
        for observer in self._observers:
            # Loss and accuracy are known or cheap: every record has them.
            if observer.group in wanted or isinstance(observer, Scalars):
                values |= observer.measure(moment, point)
        return {name: value for name, value in values.items() if not _is_nan(value)}


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
