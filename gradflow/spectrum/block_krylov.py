"""The default eigensolver: a warm-started Krylov method with thick restarts."""

from __future__ import annotations

import torch
from torch import Tensor

from gradflow.spectrum.eigenpairs import Eigenpairs, orthonormalize, rayleigh_ritz
from gradflow.spectrum.eigenproblem import EigenProblem, EigenSolution
from gradflow.spectrum.sums import inner

#: Ritz vectors, beyond those asked for, that are carried from solve to solve as guards.
GUARDS = 1
#: Part of a random unit vector that is mixed into the guard before it is multiplied.
MIXED = 0.3
#: Krylov steps on the guard, which go on while its Ritz value rises by more than 5 % of the last one asked for.
PROBES, MOST_PROBES, RISING = 1, 6, 0.05
#: Start vectors are poor if more than this part of the image of their sum lies outside their span.
POOR = 0.05
#: A start vector set aside is added back if more than this part of it lies outside the search space.
LEFT_OUT = 0.4
#: Krylov steps from a random vector that end a cold solve, at most.
SEARCH = 8
#: The search is as long as it takes to see an eigenvalue this much above the last one asked for, in max|λ|, of which
#: the random vector has this part of what a unit vector has on average, by the square.
ABOVE, SHARE = 0.02, 0.01


def block_krylov(problem: EigenProblem) -> EigenSolution:
    """Compute the algebraically largest k eigenpairs of a symmetric operator.

    The search space V starts as the given vectors (cold: a random one), and grows by the residual
    H x − λ x of the largest Ritz pair that has not converged, one product at a time; each product is kept.
    When V is full (4k + 20 vectors, or fewer where they don't fit in memory), the better half of its Ritz vectors
    is kept (thick restart, Wu & Simon 2000). The Rayleigh–Ritz problem is solved in float64.

    The sum of the start vectors is multiplied first. If its image shows that they span nothing that is nearly
    invariant, the others are not worth a product each, and V grows from that sum as in the Lanczos method.
    That finds one vector of an eigenspace, or two with the guard's: so what V has left out of the start
    vectors' span when all has converged is searched then.

    A small residual shows that a pair is an eigenpair, not that none above it was missed: an eigenvalue that
    rises out of the bulk is invisible from the last basis. So the Ritz vector after those asked for is carried
    along as a guard, some of a random vector is mixed into it, and its images are searched as well. A cold solve
    ends with a few Krylov steps from another random vector, until those raise none of the k Ritz values: what
    they find is mostly further vectors of an eigenspace, of which the first vector has one component.
    There are as many as it takes to see such a vector, by the spectrum that the first vector has shown.
    """
    k, P = problem.k, problem.P
    space = _SearchSpace(problem, capacity=_capacity(problem))
    cold, put_off = _begin(space, problem)
    while len(space) < k and (space.grow(space.newest_image()) or space.grow(problem.random(1))):
        pass

    # A cold solve looks further in its end.
    probes, guard, first = (PROBES, torch.inf, 0) if cold else (0, -torch.inf, 0)
    while True:
        ritz, rotation = space.ritz()
        if not space.is_finite or space.n_hvp >= problem.max_hvps:
            pairs, full = space.extract()
            break
        # Pairs are looked at from the largest on; what has converged is looked at again in the end.
        first, block = space.unconverged(ritz, rotation, first)
        before, guard = guard, float(ritz[k]) if len(ritz) > k else -torch.inf
        rising = guard - before > RISING * abs(float(ritz[k - 1])) and probes < MOST_PROBES
        if (probes < PROBES or rising) and len(space) < P:
            block = torch.cat([block, space.image(rotation[:, k : k + GUARDS])], 1)
            probes += 1
        elif not block.shape[1]:
            block, put_off = space.outside(put_off), problem.empty()
        if not block.shape[1]:
            if cold and _finds_more(space, problem, ritz, rotation):
                first = 0
                continue
            pairs, full = space.extract()
            if bool(pairs.converged.all()):
                break
            ritz, rotation = space.ritz()
            first, block = space.unconverged(ritz, rotation, 0)
        space.make_room(block.shape[1], ritz, rotation, keep=k + GUARDS)
        if not space.grow(block) and not space.grow(problem.random(1)):
            pairs, full = space.extract()
            break
    return EigenSolution(pairs, space.improved(full[:, : k + GUARDS]))


def _capacity(problem: EigenProblem) -> int:
    """Return how many vectors a search space may have, each with its image."""
    k, P = problem.k, problem.P
    wanted, least = 4 * k + 20, max(2 * k + 6, 2 * SEARCH)  # a restart keeps half, and a search follows
    if problem.memory is not None:
        wanted = max(least, min(wanted, problem.memory // (2 * P * problem.operator.dtype.itemsize)))
    return min(P, wanted)


def _begin(space: _SearchSpace, problem: EigenProblem) -> tuple[bool, Tensor]:
    """Begin with the start vectors if they are good.

    Returns
    -------
    cold : bool
        Whether there are no start vectors.
    put_off : Tensor, shape (P, m)
        Start vectors that are not multiplied yet.
    """
    k = problem.k
    start = problem.empty() if problem.start is None else problem.start
    X, guard = orthonormalize(start[:, :k]), start[:, k : k + GUARDS]
    if not space.grow(X.sum(1, keepdim=True)):
        space.grow(problem.random(1))
        return True, problem.empty()
    image = space.newest_image()
    leaves = torch.linalg.vector_norm(image - X @ inner(X.T, image.T))
    noise = problem.random(max(1, guard.shape[1]))
    noise *= MIXED / torch.linalg.vector_norm(noise, dim=0)
    guard = guard + noise if guard.shape[1] else noise
    if bool(leaves <= POOR * torch.linalg.vector_norm(image)):
        space.grow(torch.cat([X, guard], 1))
        return False, problem.empty()
    space.grow(torch.cat([guard, image], 1))
    return False, X


def _finds_more(space: _SearchSpace, problem: EigenProblem, ritz: Tensor, rotation: Tensor) -> bool:
    """Search from a random vector; return whether that raises one of the k largest Ritz values."""
    steps = _steps_of_search(space, problem, ritz, rotation)
    space.make_room(steps, ritz, rotation, keep=problem.k + GUARDS)
    vector = problem.random(1)
    for _ in range(steps):
        if not space.grow(vector):
            break
        vector = space.newest_image()
    rise = space.ritz()[0][: problem.k] - ritz[: problem.k]
    return bool((rise > problem.tol * space.scale).any())


def _steps_of_search(space: _SearchSpace, problem: EigenProblem, ritz: Tensor, rotation: Tensor) -> int:
    """Return how many Krylov steps from a random vector would see an eigenvalue above those asked for.

    The Lanczos method from a random vector v gives the spectrum as v sees it: Ritz values, with the squares of their
    vectors' parts of v as weights (Golub & Welsch 1969). Those that have converged have weights of about 1/P, and the
    search space has them already. To the others an eigenvalue with a small weight is added, and the Lanczos method
    is run on that measure.
    """
    if len(space) < space.n_hvp or not len(ritz) > problem.k:  # restarted: what v was is lost
        return SEARCH
    weights = rotation[0] ** 2
    bulk = weights > 1 / problem.P
    bulk[: problem.k] = False
    last = ritz[problem.k - 1]
    nodes = torch.cat([ritz[bulk], (last + ABOVE * space.scale)[None]])
    vector = torch.cat([weights[bulk], weights.new_tensor([SHARE / problem.P])]).sqrt()[:, None]
    basis = vector / torch.linalg.vector_norm(vector)
    for steps in range(1, SEARCH):
        if steps > 1:
            basis = torch.cat([basis, orthonormalize(nodes[:, None] * basis[:, -1:], basis)], 1)
        if torch.linalg.eigvalsh(basis.T @ (nodes[:, None] * basis))[-1] > last + problem.tol * space.scale:
            return steps
    return SEARCH


class _SearchSpace:
    """An orthonormal basis V with H V, by rows in one buffer each, and T = Vᵀ H V in float64."""

    def __init__(self, problem: EigenProblem, capacity: int) -> None:
        self._problem = problem
        self._capacity = capacity
        self._V = problem.empty().T
        self._HV = self._V
        self._T = torch.zeros(0, 0, dtype=torch.float64, device="cpu")
        self.scale = 0.0
        self._n = 0
        self.n_hvp = 0

    def __len__(self) -> int:
        return self._n

    def grow(self, block: Tensor) -> bool:
        """Add what is new in a block, shape (P, b), and its image; whether there was any."""
        new = orthonormalize(block, self._V[: self._n].T)[:, : self._problem.P - self._n]
        b = new.shape[1]
        if b:
            self._reserve(self._n + b)
            image = (self._problem.operator @ new).T
            self._V[self._n : self._n + b] = new.T
            self._HV[self._n : self._n + b] = image
            self._n += b
            self.n_hvp += b
            self._project(b)
        return bool(b)

    def _reserve(self, n: int) -> None:
        if n > len(self._V):
            size = max(n, min(self._capacity, 2 * len(self._V)))
            if self._problem.operator.device.type == "cpu":  # which gives memory when it is first written to
                size = max(n, self._capacity)
            V, HV = self._V.new_empty(2, size, self._problem.P)
            V[: self._n], HV[: self._n] = self._V[: self._n], self._HV[: self._n]
            self._V, self._HV = V, HV

    def _project(self, b: int) -> None:
        """Extend T by the last b vectors."""
        V, image = self._V[: self._n], self._HV[self._n - b : self._n]
        rows = inner(image, V).to("cpu", torch.float64)
        T = torch.zeros(self._n, self._n, dtype=torch.float64, device="cpu")
        T[:-b, :-b] = self._T
        T[-b:], T[:, -b:] = rows, rows.T
        T[-b:, -b:] = 0.5 * (rows[:, -b:] + rows[:, -b:].T)
        self._T = T
        norms = torch.linalg.vector_norm(image, dim=1, dtype=torch.float64)
        self.scale = max(self.scale, float(norms.max()))

    @property
    def is_finite(self) -> bool:
        """Whether all products with H were finite so far."""
        return bool(torch.isfinite(self._T).all())

    def make_room(self, b: int, ritz: Tensor, rotation: Tensor, keep: int) -> None:
        """Keep the better half of the Ritz vectors if b more vectors would be too many."""
        if self._n + b > self._capacity and self._capacity < self._problem.P:
            n = max(keep, self._capacity // 2)
            best = rotation[:, :n].T.to(self._V)
            self._V[:n], self._HV[:n] = best @ self._V[: self._n], best @ self._HV[: self._n]
            self._T = torch.diag(ritz[:n])
            self._n = n

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return all Ritz values, largest first, and the Ritz vectors in terms of V, in float64."""
        if not self.is_finite:
            nan = torch.full((self._n,), torch.nan, dtype=torch.float64)
            return nan, torch.eye(self._n, dtype=torch.float64)
        ritz, rotation = torch.linalg.eigh(self._T)
        return ritz.flip(0), rotation.flip(1)

    def unconverged(self, ritz: Tensor, rotation: Tensor, first: int) -> tuple[int, Tensor]:
        """Return the first pair from `first` on that has not converged, and its H x − λ x, shape (P, 1).

        If all have, k and no column.
        """
        V, HV = self._V[: self._n], self._HV[: self._n]
        scale = max(self.scale, float(ritz.abs().max()))
        for j in range(first, self._problem.k):
            y = rotation[:, j].to(V)
            defect = y @ HV - float(ritz[j]) * (y @ V)
            size = float(torch.linalg.vector_norm(defect, dtype=torch.float64))
            if not size <= self._problem.tol * (scale if scale > 0 else 1.0):
                return j, defect[:, None]
        return self._problem.k, self._problem.empty()

    def outside(self, X: Tensor) -> Tensor:
        """Return the directions in the span of orthonormal X that V leaves out, shape (P, m)."""
        V = self._V[: self._n].T
        directions, parts, _ = torch.linalg.svd(X - V @ inner(V.T, X.T), full_matrices=False)
        return directions[:, parts > LEFT_OUT]

    def extract(self) -> tuple[Eigenpairs, Tensor]:
        """Return the top pairs with their residuals, and all Ritz vectors, as :func:`rayleigh_ritz` does."""
        V, HV = self._V[: self._n].T, self._HV[: self._n].T
        return rayleigh_ritz(V, HV, self._problem.k, self._problem.tol, n_hvp=self.n_hvp, scale=self.scale)

    def improved(self, rotation: Tensor) -> Tensor:
        """Return Ritz vectors x after a step of the power method, H x/λ, which costs nothing here.

        Those whose residual ‖H x − λ x‖ is not below λ stay as they are.
        """
        X, HX = self._V[: self._n].T @ rotation.to(self._V), self.image(rotation)
        λ = (X * HX).sum(0)
        converging = λ > torch.linalg.vector_norm(HX - λ * X, dim=0)
        return torch.where(converging, HX / torch.where(converging, λ, 1.0), X)

    def image(self, rotation: Tensor) -> Tensor:
        """Return H V times columns."""
        return self._HV[: self._n].T @ rotation.to(self._V)

    def newest_image(self) -> Tensor:
        """Return H times the last vector of V, shape (P, 1)."""
        return self._HV[self._n - 1 : self._n].T
