"""The default eigensolver: a warm-started Krylov method with thick restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.collective import agree
from gradflow.spectrum.eigenpairs import Eigenpairs, orthonormalize, rayleigh_ritz
from gradflow.spectrum.task import Solution, Task

#: Ritz vectors beyond those asked for that are carried from solve to solve, as guards.
GUARDS = 1
#: Part of a random unit vector that is mixed into a guard before it is multiplied.
MIXED = 0.3
#: Krylov steps on the guard, which go on while its Ritz value rises by more than 5 % of the last one asked for.
PROBES, MOST_PROBES, RISING = 1, 6, 0.05


def block_krylov(task: Task) -> Solution:
    """Compute the algebraically largest k eigenpairs of a symmetric operator.

    The search space V starts as the given vectors (cold: k + 2 random ones), and grows by the residual
    H x − λ x of the Ritz pair that is furthest from converged, one product at a time; each product is kept.
    When V is full (4k + 20 vectors), the better half of its Ritz vectors is kept (thick restart, Wu & Simon
    2000). The Rayleigh–Ritz problem is solved in float64.

    A small residual says that a pair is an eigenpair, not that none above it was missed: an eigenvalue that
    rises out of the bulk is invisible from the last basis. So the Ritz vector after those asked for is carried
    along as a guard, some of a random vector is mixed into it, and its images are searched as well.
    """
    k, P = task.k, task.P
    space = _SearchSpace(task, capacity=min(P, 4 * k + 20))
    if task.start is None:
        space.grow(task.random(min(P, k + 2)))
    else:
        start = task.start[:, : k + GUARDS].clone()
        guards = start[:, k:]
        noise = task.random(guards.shape[1])
        guards += MIXED * noise / torch.linalg.vector_norm(noise, dim=0)
        space.grow(start)
    while len(space) < k and space.grow(task.random(k - len(space))):
        pass

    probes, guard = 0, -torch.inf
    while True:
        pairs, ritz, rotation, defects = space.ritz()
        finite = bool(torch.isfinite(pairs.values).all())
        before, guard = guard, float(ritz[k]) if len(ritz) > k else -torch.inf
        rising = guard - before > RISING * abs(float(ritz[k - 1])) and probes < MOST_PROBES
        probing = (probes < PROBES or rising) and len(space) < P
        done = bool(pairs.converged.all()) and not probing
        if agree(done or not finite or space.n_hvp >= task.max_hvps):
            break
        worst = pairs.residuals.argmax()
        block = defects[:, worst : worst + 1] if not pairs.converged[worst] else task.empty()
        if probing:
            block = torch.cat([block, space.image(rotation[:, k : k + GUARDS])], 1)
            probes += 1
        space.make_room(block.shape[1], rotation, keep=k + GUARDS)
        if not space.grow(block) and not space.grow(task.random(1)):
            break
    return Solution(pairs, space.vectors(rotation[:, : k + GUARDS]))


class _SearchSpace:
    """An orthonormal basis V with H V, by rows in one buffer each."""

    def __init__(self, task: Task, capacity: int) -> None:
        self._task = task
        self._capacity = capacity
        self._V = task.empty().T
        self._HV = self._V
        self._n = 0
        self.n_hvp = 0

    def __len__(self) -> int:
        return self._n

    def grow(self, block: Tensor) -> bool:
        """Add what is new in a block, shape (P, b), and its image; whether there was any."""
        new = orthonormalize(block, self._V[: self._n].T)[:, : self._task.P - self._n]
        b = new.shape[1]
        if b:
            self._reserve(self._n + b)
            self._V[self._n : self._n + b] = new.T
            self._HV[self._n : self._n + b] = (self._task.operator @ new).T
            self._n += b
            self.n_hvp += b
        return bool(b)

    def _reserve(self, n: int) -> None:
        if n > len(self._V):
            size = max(n, min(self._capacity, 2 * len(self._V)))
            V, HV = self._V.new_empty(2, size, self._task.P)
            V[: self._n], HV[: self._n] = self._V[: self._n], self._HV[: self._n]
            self._V, self._HV = V, HV

    def make_room(self, b: int, rotation: Tensor, keep: int) -> None:
        """Keep the better half of the Ritz vectors if b more vectors would be too many."""
        if self._n + b > self._capacity and self._capacity < self._task.P:
            best = rotation[:, : max(keep, self._capacity // 2)].T
            n = len(best)
            self._V[:n], self._HV[:n] = best @ self._V[: self._n], best @ self._HV[: self._n]
            self._n = n

    def ritz(self) -> tuple[Eigenpairs, Tensor, Tensor, Tensor]:
        """Give the top pairs, all Ritz values, the Ritz vectors in terms of V, and the pairs' residuals."""
        V, HV = self._V[: self._n].T, self._HV[: self._n].T
        return rayleigh_ritz(V, HV, self._task.k, self._task.tol, n_hvp=self.n_hvp)

    def vectors(self, rotation: Tensor) -> Tensor:
        """Give V times columns."""
        return self._V[: self._n].T @ rotation

    def image(self, rotation: Tensor) -> Tensor:
        """Give H V times columns."""
        return self._HV[: self._n].T @ rotation
