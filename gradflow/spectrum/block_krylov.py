"""The default eigensolver: a warm-started block Krylov method with thick restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.collective import agree
from gradflow.spectrum.eigenpairs import orthonormalize, rayleigh_ritz
from gradflow.spectrum.task import Solution, Task

#: Ritz vectors beyond those asked for that are carried from solve to solve.
GUARDS = 1
#: Krylov steps on a fresh random vector, and on the guard, in every solve: against missing an eigenvalue that
#: rises (benchmarks/missed_eigenvalues.py counts how many are missed, and what it costs).
PROBES = 2


def block_krylov(task: Task) -> Solution:
    """Compute the algebraically largest k eigenpairs of a symmetric operator.

    The search space V starts as the given basis and a random vector (cold: k + 2 random vectors), and grows
    by the residuals H x − λ x of the Ritz pairs that have not converged; on a random start that spans the
    block Krylov space of Golub & Underwood (1977), each product of which is kept. In the first `PROBES`
    rounds the images of the random vector and of the guard, the Ritz vector after those asked for, are
    added. When V is full (4k + 20 vectors), the better half of its Ritz vectors is kept (thick restart, Wu &
    Simon 2000). The Rayleigh–Ritz problem is solved in float64.
    """
    operator, k, P = task.operator, task.k, task.P
    capacity = min(P, 4 * k + 20)
    V, HV, n_hvp = task.empty(), task.empty(), 0

    def grow(block: Tensor) -> bool:
        """Add what is new in a block to V, and its image; whether there was any."""
        nonlocal V, HV, n_hvp
        new = orthonormalize(block, V)[:, : P - V.shape[1]]
        if new.shape[1]:
            V, HV = torch.cat([V, new], 1), torch.cat([HV, operator @ new], 1)
            n_hvp += new.shape[1]
        return bool(new.shape[1])

    if task.start is None:
        grow(task.random(min(P, k + 2)))
    else:
        grow(torch.cat([task.start[:, : k + GUARDS], task.random(1)], 1))
    while V.shape[1] < k and grow(task.random(k - V.shape[1])):
        pass

    # A small residual says that a pair is an eigenpair, not that none above it was missed: an eigenvalue that
    # rises out of the bulk is invisible from the old basis. So random vector and guard are refined as well.
    probes_to_go = PROBES
    while True:
        pairs, rotation, defects = rayleigh_ritz(V, HV, k, task.tol, n_hvp=n_hvp)
        finite = bool(torch.isfinite(pairs.values).all())
        done = bool(pairs.converged.all()) and (probes_to_go == 0 or V.shape[1] == P)
        if agree(done or not finite or n_hvp >= task.max_hvps):
            break
        block = defects[:, ~pairs.converged.to(defects.device)]
        if probes_to_go > 0:
            block = torch.cat([block, HV @ rotation[:, k : k + GUARDS], HV[:, -1:]], 1)
            probes_to_go -= 1
        if V.shape[1] + block.shape[1] > capacity and capacity < P:
            best = rotation[:, : max(k + GUARDS, capacity // 2)]
            V, HV = V @ best, HV @ best
        if not grow(block) and not grow(task.random(1)):
            break
    return Solution(pairs, V @ rotation[:, : k + GUARDS])
