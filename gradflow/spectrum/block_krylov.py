"""The default eigensolver: a warm-started block Krylov method with thick restarts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.collective import agree
from gradflow.spectrum.eigenpairs import Eigenpairs, orthonormalize, rayleigh_ritz
from gradflow.spectrum.operators import SymmetricOperator

#: Ritz vectors beyond those asked for that are carried from solve to solve.
GUARDS = 1
#: Krylov steps on a fresh random vector in every solve, against missing an eigenvalue. In 1,154 solves along
#: matrices of which an eigenvalue rises from the bulk to the top, it was missed 477 times with none, 10 times
#: with one, never with two (benchmarks/missed_eigenvalues.py).
PROBES = 2


@dataclass(frozen=True)
class Solution:
    """The pairs asked for, and a basis from which to start the next solve.

    Attributes
    ----------
    pairs : Eigenpairs
    basis : Tensor, shape (P, m)
        Their vectors, and the next few Ritz vectors.
    """

    pairs: Eigenpairs
    basis: Tensor


def block_krylov(
    operator: SymmetricOperator,
    k: int,
    start: Tensor | None,
    *,
    tol: float,
    max_hvps: int,
    generator: torch.Generator,
) -> Solution:
    """Compute the algebraically largest k eigenpairs of a symmetric operator.

    The search space V starts as the given basis and a random vector (cold: k + 2 random vectors), and grows
    by the residuals H x − λ x of the Ritz pairs that have not converged; on a random start that spans the
    block Krylov space of Golub & Underwood (1977), each product of which is kept. The random vector's own
    Krylov space is grown by `PROBES` steps. A warm solve takes at least k + 4 products. When V is full
    (4k + 20 vectors), the better half of its Ritz vectors is kept (thick restart, Wu & Simon 2000). The
    Rayleigh–Ritz problem is solved in float64.

    Parameters
    ----------
    operator : SymmetricOperator
    k : int
        1 ≤ k ≤ P.
    start : Tensor, shape (P, m), or None
        Vectors to start from, such as the `basis` of a solve nearby.
    tol : float
        Residual ‖Hx − λx‖/max|λ| to reach.
    max_hvps : int
        Products after which what is there is returned, flagged.
    generator : torch.Generator
        On the CPU, for the random vectors.

    Returns
    -------
    Solution
    """
    P = operator.shape[0]
    capacity = min(P, 4 * k + 20)

    def random(n: int) -> Tensor:
        draw = torch.randn(P, n, generator=generator, dtype=torch.float64)
        return draw.to(operator.device, operator.dtype)

    V = torch.empty(P, 0, device=operator.device, dtype=operator.dtype)
    HV, n_hvp = V, 0

    def grow(block: Tensor) -> bool:
        """Add what is new in a block to V, and its image; whether there was any."""
        nonlocal V, HV, n_hvp
        new = orthonormalize(block, V)[:, : P - V.shape[1]]
        if new.shape[1]:
            V, HV = torch.cat([V, new], 1), torch.cat([HV, operator @ new], 1)
            n_hvp += new.shape[1]
        return bool(new.shape[1])

    if start is None:
        grow(random(min(P, k + 2)))
    else:
        grow(torch.cat([start, random(1)], 1))
    while V.shape[1] < k and grow(random(k - V.shape[1])):
        pass

    # A small residual says that a pair is an eigenpair, not that none above it was missed: an eigenvalue that
    # rises out of the bulk is invisible from the old basis. Two Krylov steps on the random vector show it.
    probes_to_go = PROBES
    while True:
        pairs, rotation, defects = rayleigh_ritz(V, HV, k, tol, n_hvp=n_hvp)
        finite = bool(torch.isfinite(pairs.values).all())
        done = bool(pairs.converged.all()) and (probes_to_go == 0 or V.shape[1] == P)
        if agree(done or not finite or n_hvp >= max_hvps):
            break
        block = defects[:, ~pairs.converged.to(defects.device)]
        if probes_to_go > 0:
            block = torch.cat([block, HV[:, -1:]], 1)
            probes_to_go -= 1
        if V.shape[1] + block.shape[1] > capacity and capacity < P:
            best = rotation[:, : max(k + GUARDS, capacity // 2)]
            V, HV = V @ best, HV @ best
        if not grow(block) and not grow(random(1)):
            break
    return Solution(pairs, V @ rotation[:, : k + GUARDS])
