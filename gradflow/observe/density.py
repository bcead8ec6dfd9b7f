"""The density of the Hessian's eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gradflow.flows import Field
from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.spectrum import SpectrumService
from gradflow.variable import Variable


@dataclass(eq=False)
class Density(Observer):
    """The spectral density of the Hessian on a fixed grid, by stochastic Lanczos quadrature.

    From the same random vectors at every record, so that it changes with θ alone. Each Ritz value is spread
    over a Gaussian as wide as the widest gap of the grid.

    Parameters
    ----------
    field : Field
        On all of the training data, or on the first of them.
    x : Tensor, shape (n,), float64
        The grid, increasing.
    """

    field: Field
    x: Tensor

    name = "density"
    grid = Variable(("x",), "Hessian eigenvalue at which the spectral density is given")
    variables: ClassVar[Mapping[str, Variable]] = {
        "spectral_density": Variable(("x",), "density of the Hessian eigenvalues"),
        "spectral_density_error": Variable(("x",), "standard error of the density over its random vectors"),
    }

    def __post_init__(self) -> None:
        self.coordinates = {"x": (self.grid, self.x.numpy())}  # type: ignore[misc]
        self._sigma = float(self.x.diff().max())

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        fresh = SpectrumService()  # whose random vectors are those of its seed
        density = fresh.density(point.of(self.field).linearization)
        values, errors = density.smoothed(self.x, self._sigma)
        return {"spectral_density": values, "spectral_density_error": errors}
