"""The default eigensolver: a warm-started block Krylov method with thick restarts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.collective import agree
from gradflow.spectrum.eigenpairs import Eigenpairs, orthonormalize, rayleigh_ritz
from gradflow.spectrum.operators import SymmetricOperator


@dataclass(frozen=True)
class Solution:
    """The pairs asked for, and a basis from which to start the next solve.

    Attributes
    ----------
    pairs : Eigenpairs
    basis : Tensor, shape (P, k + 1) at most
        Their vectors, and the next Ritz vector as a guard against one that overtakes them.
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

    The search space V starts as the given basis and a random guard vector (cold: k + 2 random vectors),
    and grows by the residuals H x − λ x of the Ritz pairs that have not converged; on a random start that
    spans the block Krylov space of Golub & Underwood (1977), each product of which is kept. When V is full
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

    def grow(block: Tensor) -> bool:
        """Add what is new in a block to V, and its image; whether there was any."""
        nonlocal V, HV, n_hvp
        new = orthonormalize(block, V)[:, : P - V.shape[1]]
        if new.shape[1]:
            V, HV = torch.cat([V, new], 1), torch.cat([HV, operator @ new], 1)
            n_hvp += new.shape[1]
        return bool(new.shape[1])

    V = torch.empty(P, 0, device=operator.device, dtype=operator.dtype)
    HV, n_hvp = V, 0
    if start is None:
        grow(random(min(P, k + 2)))
    else:
        guard = random(1)
        grow(torch.cat([start, guard / torch.linalg.vector_norm(guard)], 1))
    while V.shape[1] < k and grow(random(k - V.shape[1])):
        pass

    # A cold start must look beyond its random vectors before it may believe a small residual.
    rounds_to_go = 2 if start is None else 0
    while True:
        pairs, rotation, defects = rayleigh_ritz(V, HV, k, tol, n_hvp=n_hvp)
        finite = bool(torch.isfinite(pairs.values).all())
        done = bool(pairs.converged.all()) and (rounds_to_go <= 0 or V.shape[1] == P)
        if agree(done or not finite or n_hvp >= max_hvps):
            break
        rounds_to_go -= 1
        unconverged = ~pairs.converged if not pairs.converged.all() else torch.ones_like(pairs.converged)
        block = defects[:, unconverged.to(defects.device)]
        if V.shape[1] + block.shape[1] > capacity and capacity < P:
            best = rotation[:, : max(k + 2, capacity // 2)]
            V, HV = V @ best, HV @ best
        if not grow(block) and not grow(random(1)):
            break
    return Solution(pairs, V @ rotation[:, : k + 1])
