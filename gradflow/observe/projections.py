"""Seeded random projections of θ, the same on every device and in every dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gradflow.observe.base import Observer
from gradflow.observe.point import ObservedPoint
from gradflow.variable import Variable

#: Columns of R that come from one counter-based stream.
BLOCK = 4096


class RandomProjection:
    """θ ↦ R θ with R Gaussian, shape (n, P), entries of variance 1/n.

    Distances are kept on average: E‖Rx‖² = ‖x‖². R is defined by its seed and shape alone: columns
    [4096 b, 4096 (b + 1)) are standard normal float32 numbers of NumPy's Philox generator with key
    (seed, b), over √n. It is kept when it fits in memory and made again by blocks when not; sums are in
    float64.

    Parameters
    ----------
    n_projections, n_parameters : int
    seed : int
    memory_budget : int
        Bytes up to which R is kept.

    Attributes
    ----------
    kind : str
        Name of this construction, for the record.
    """

    kind = "gaussian-philox-4096"

    def __init__(
        self, n_projections: int, n_parameters: int, seed: int, *, memory_budget: int = 2**30
    ) -> None:
        self.n_projections = n_projections
        self.n_parameters = n_parameters
        self.seed = seed
        self._keeps = 4 * n_projections * n_parameters <= memory_budget
        self._kept: dict[int, Tensor] = {}

    def block(self, b: int) -> Tensor:
        """Return √n · R[:, 4096 b : 4096 (b + 1)], float32, on the CPU."""
        columns = min(BLOCK, self.n_parameters - b * BLOCK)
        generator = np.random.Generator(np.random.Philox(key=[self.seed, b]))
        rows = generator.standard_normal((columns, self.n_projections), dtype=np.float32)
        return torch.from_numpy(rows.T)

    def __call__(self, theta: Tensor) -> Tensor:
        """Project θ, shape (P,), to R θ, shape (n,), float64, on the CPU."""
        total = torch.zeros(self.n_projections, dtype=torch.float64, device=theta.device)
        for b, part in enumerate(torch.split(theta.detach(), BLOCK)):
            block = self._kept.get(b)
            if block is None:
                block = self.block(b).to(theta.device)
                if self._keeps:
                    self._kept[b] = block
            total += block.to(torch.float64) @ part.to(torch.float64)
        return (total / self.n_projections**0.5).cpu()


@dataclass(eq=False)
class Projections(Observer):
    """Random projections of θ."""

    projection: RandomProjection

    name = "projections"
    variables: ClassVar[Mapping[str, Variable]] = {
        "projection": Variable(("proj",), "random projection of the parameters")
    }

    def measure(self, point: ObservedPoint) -> dict[str, Any]:
        """Measure at the point."""
        return {"projection": self.projection(point.theta)}
