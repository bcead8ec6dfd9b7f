"""Steps within the stability limit of Euler's method outside the top eigenvectors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gradflow.flows import Point
from gradflow.integrators.step_size.base import Proposal, StepSize, check_finite, safe_divide
from gradflow.plain import restorable
from gradflow.spectrum import Eigenpairs

#: Part of |λ_{k+1}| that what a step neglects of H may have: the residuals of its pairs, and how far they are behind.
_NEGLECTED = 0.1
#: Residual, relative to max|λ|, below which pairs aren't computed on that account.
_FINEST = 1e-3
#: Part of its measured size by which an eigenvalue is extrapolated downwards at most.
_FALLS = 0.5
#: Under what a step finds the pairs that it was sized with.
_KEY = "pairs of the step"


@restorable
@dataclass(frozen=True)
class _Held:
    """Eigenpairs, the step that they were measured at, up to which they serve, and how λ changes in a step."""

    pairs: Eigenpairs
    since: int
    until: int
    slopes: Tensor

    def at(self, step: int) -> Eigenpairs:
        """Return the pairs with eigenvalues that are extrapolated to a step; too small ones would be unstable."""
        λ = self.pairs.values
        values = torch.maximum(λ + (step - self.since) * self.slopes, λ - _FALLS * λ.abs())
        return dataclasses.replace(self.pairs, values=values, n_hvp=0)


@dataclass(frozen=True)
class BulkEigenvalueCap(StepSize):
    """h = min(1/|λ_{k+1}|, max_step): the stability of Euler on all but the top k eigenvectors.

    Lowell & Kastner (2024). The first `warmup_iters` steps have `warmup_factor` · max_step for max_step.

    Where pairs serve for more than one step, they are as exact as a step needs: what it takes for H differs from H by
    less than |λ_{k+1}|/10. For residuals that is a tolerance. How far held pairs are behind is seen at the next
    measurement; the time to that one is then halved, or doubled. λ_{k+1} is extrapolated meanwhile, if it grows.

    Parameters
    ----------
    k : int
        Dimension of the subspace that is integrated exactly.
    max_step : float
    warmup_iters : int
    warmup_factor : float
    tol : float
        Residual, relative to max|λ|, to which the eigenpairs are measured at least.
    serves : int, default 1
        Steps that a measurement serves for at most.
    """

    k: int
    max_step: float
    warmup_iters: int
    warmup_factor: float
    tol: float
    serves: int = 1

    def propose(
        self, point: Point, t: float, step: int, state: _Held | None, *, fresh: bool = False
    ) -> Proposal:
        """Propose 1/|λ_{k+1}|, capped."""
        if state is None or step >= state.until or (fresh and step > state.since):
            state = self._measure(point, step, None if fresh else state)
        pairs = state.at(step)
        point.redo(_KEY, pairs)
        h = min(self._size(pairs, step), self._size(state.pairs, step))
        return Proposal(h, h, pairs, state)

    def _size(self, pairs: Eigenpairs, step: int) -> float:
        h = self.max_step * (self.warmup_factor if step < self.warmup_iters else 1.0)
        return min(safe_divide(1.0, abs(float(pairs.values[self.k]))), h) if len(pairs) > self.k else h

    def _measure(self, point: Point, step: int, last: _Held | None) -> _Held:
        """Measure the pairs, and choose for how many steps they serve by how well the last ones have."""
        n = min(self.k + 1, len(point.z))
        pairs = check_finite(point.rates(n, tol=self._tolerance(last.pairs if last else None, step)))
        if bool((pairs.residuals > self._tolerance(pairs, step)).any()):
            pairs = check_finite(point.rates(n, tol=self._tolerance(pairs, step)))
        if last is None or self.serves == 1 or n <= self.k:
            return _Held(pairs, step, step + 1, torch.zeros_like(pairs.values))
        served = step - last.since
        behind = neglected(pairs, last.at(step).first(self.k)) > _NEGLECTED
        serves = max(1, served // 2) if behind else min(2 * served, self.serves)
        return _Held(pairs, step, step + serves, (pairs.values - last.pairs.values) / served)

    def _tolerance(self, pairs: Eigenpairs | None, step: int) -> float:
        """Return the residual that is small enough, as far as some pairs tell."""
        if pairs is None or self.serves == 1:
            return self.tol
        rate = self._size(pairs, step) * pairs.scale
        return min(self.tol, max(_FINEST, safe_divide(_NEGLECTED, rate)))


def pairs_of_step(point: Point) -> Eigenpairs | None:
    """Return the pairs that the step from a point was sized with; None if something else has sized it."""
    found: Eigenpairs | None = point.work(_KEY, lambda: None)
    return found


def neglected(now: Eigenpairs, held: Eigenpairs) -> float:
    """Return by how much what held pairs leave of H is larger than |λ_{k+1}|, relative to that; at least 0.

    That is ‖H − V Λ Vᵀ‖₂/|λ_{k+1}| − 1 with the held V and Λ, where all eigenvalues of H that aren't known are taken
    to be |λ_{k+1}|, the largest that they can be if the k + 1 are the largest.

    Parameters
    ----------
    now : Eigenpairs
        The top k + 1.
    held : Eigenpairs
        At most k.
    """
    rest = abs(float(now.values[-1]))
    if rest == 0:
        return 0.0
    U = torch.cat([now.vectors, held.vectors], 1)  # H − V Λ Vᵀ = rest · I + U D Uᵀ
    D = np.concatenate([now.values.numpy() - rest, -held.values.numpy()])
    w, Q = np.linalg.eigh((U.T @ U).to("cpu", torch.float64).numpy())
    # UᵀU = root rootᵀ, so that U D Uᵀ has the eigenvalues of rootᵀ D root.
    root = Q * np.sqrt(np.maximum(w, 0))
    λ = rest + np.linalg.eigvalsh(root.T @ (D[:, None] * root))
    return max(0.0, float(np.abs(λ).max()) / rest - 1)
