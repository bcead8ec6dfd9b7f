"""The eigensolver that a whole run shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradflow.autocast import without_autocast
from gradflow.checks import check_count
from gradflow.errors import InvalidInputError, UnknownNameError, suggest
from gradflow.spectrum.backends import BACKENDS
from gradflow.spectrum.density import SpectralDensity, lanczos_density
from gradflow.spectrum.eigenpairs import Eigenpairs
from gradflow.spectrum.eigenproblem import EigenProblem, EigenSolution
from gradflow.spectrum.operators import Negated, SymmetricOperator, check_operator

#: Upper bound on the extrapolation length, in units of the previous step.
_FURTHEST = 1.5


@runtime_checkable
class HasHessian(Protocol):
    """A function whose Hessian at θ is a symmetric operator, such as a LossFunction."""

    def linearize(self, theta: Tensor) -> Any:
        """Return the Hessian at θ as a symmetric operator."""


class SpectrumService:
    """Eigenpairs of the Hessian along a trajectory.

    One object per run: every solve starts from the bases of the last two, extrapolated, and what is known at
    the same θ is not computed again. The service takes a loss, or any symmetric operator.

    Parameters
    ----------
    target : LossFunction or SymmetricOperator, optional
        What to take eigenpairs of: a loss (its Hessian at the θ of each call), or an operator. May be left
        out if every call passes an operator.
    backend : {"block-krylov", "dense", "eigsh", "lobpcg", "power"}
        The eigensolver. All but the first are for comparison.
    max_hvps : int, optional
        Products after which a solve gives up and returns what it has, flagged. Default: 100 + 60 k.
    seed : int
        Seed of the random start vectors.

    Attributes
    ----------
    n_hvps : int
        Products so far, over all calls.

    Examples
    --------
    >>> H = torch.diag(torch.tensor([3.0, -7.0, 1.0, 0.0], dtype=torch.float64))
    >>> SpectrumService(H).top(2).values
    tensor([3., 1.], dtype=torch.float64)
    """

    def __init__(
        self,
        target: HasHessian | SymmetricOperator | None = None,
        *,
        backend: str = "block-krylov",
        max_hvps: int | None = None,
        seed: int = 0,
    ) -> None:
        if backend not in BACKENDS:
            raise UnknownNameError(f"No eigensolver {backend!r}; {suggest(backend, BACKENDS)}")
        if max_hvps is not None:
            check_count("max_hvps", max_hvps, least=1)
        if target is not None and not isinstance(target, HasHessian):
            check_operator(target)
        self.backend = backend
        self.n_hvps = 0
        self._target = target
        self._max_hvps = max_hvps
        self._generator = torch.Generator("cpu").manual_seed(seed)
        self._histories: dict[str, _BasisHistory] = {}
        self._cache: dict[str, tuple[_CacheKey, Eigenpairs]] = {}

    def top(self, k: int, at: Any = None, *, tol: float = 1e-3, start: Tensor | None = None) -> Eigenpairs:
        """Compute the algebraically largest k eigenpairs.

        Parameters
        ----------
        k : int
            1 ≤ k ≤ P.
        at : Tensor of shape (P,), Linearization or SymmetricOperator, optional
            θ, or the operator at it. Left out: the operator that the service was made with.
        tol : float, default 1e-3
            Residual ‖Hv − λv‖/max|λ| to reach. Below about 100 machine epsilons it can't be met.
        start : Tensor, shape (P, m), optional
            Vectors to start from when the service has no basis of its own yet.

        Returns
        -------
        Eigenpairs
            Those that missed the tolerance are flagged in `converged`.
        """
        return self._solve("top", k, at, tol, start)

    def bottom(self, k: int, at: Any = None, *, tol: float = 1e-3) -> Eigenpairs:
        """Compute the algebraically smallest k eigenpairs, smallest first; else as :meth:`top`."""
        return self._solve("bottom", k, at, tol, None)

    @without_autocast()
    def density(self, at: Any = None, *, n_vectors: int = 10, n_steps: int = 80) -> SpectralDensity:
        """Estimate the eigenvalue density by stochastic Lanczos quadrature.

        Parameters
        ----------
        at
            As in :meth:`top`.
        n_vectors : int
            Random vectors; the statistical error falls with their square root.
        n_steps : int
            Lanczos steps from each, one product a step.
        """
        for name, value in (("n_vectors", n_vectors), ("n_steps", n_steps)):
            check_count(name, value, least=1)
        with torch.no_grad():
            density = lanczos_density(self._operator(at), n_vectors, n_steps, self._generator)
        self.n_hvps += density.n_hvp
        return density

    def known(self, k: int, theta: Tensor, *, tol: float) -> Eigenpairs | None:
        """Return the top k pairs if they have been computed at this θ to this tolerance."""
        entry = self._cache.get("top")
        return (
            entry[1].first(k)
            if entry is not None and entry[0].has(theta) and _serves(entry[1], k, tol)
            else None
        )

    def warm_start(self, theta: Tensor, vectors: Tensor) -> None:
        """Start the next solve of :meth:`top` from eigenvectors that are known.

        Parameters
        ----------
        theta : Tensor, shape (P,)
            Where they were computed.
        vectors : Tensor, shape (P, m)
            The top eigenvectors there, or approximations of them.
        """
        self._histories["top"] = self._histories.get("top", _BasisHistory()).then(vectors, theta)

    def offer(self, theta: Tensor, vectors: Tensor) -> None:
        """Raise an AttributeError: the method is called :meth:`warm_start` now."""
        raise AttributeError("SpectrumService.offer is called warm_start now, with the same arguments.")

    @property
    def basis(self) -> Tensor | None:
        """The last basis of :meth:`top`, shape (P, m)."""
        history = self._histories.get("top")
        return history.bases[-1] if history is not None else None

    def state_dict(self) -> dict[str, Any]:
        """Return what a later service needs to go on as this one would."""
        histories = {
            end: {"bases": each.bases, "thetas": each.thetas} for end, each in self._histories.items()
        }
        known = {end: (key.theta, pairs) for end, (key, pairs) in self._cache.items()}
        return {
            "trails": histories,  # the name in checkpoints
            "known": known,
            "n_hvps": self.n_hvps,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._histories = {
            end: _BasisHistory(history["bases"], history["thetas"])
            for end, history in state["trails"].items()
        }
        self.n_hvps = state["n_hvps"]
        self._generator.set_state(state["generator"])
        source = getattr(self._target, "source", self._target)
        self._cache = {
            end: (_CacheKey(source, theta), pairs) for end, (theta, pairs) in state["known"].items()
        }

    # ------------------------------------------------------------------

    @without_autocast()
    def _solve(self, end: str, k: int, at: Any, tol: float, start: Tensor | None) -> Eigenpairs:
        check_count("k", k, least=1)
        k = int(k)
        if not tol > 0:
            raise InvalidInputError(f"Expected tol > 0, got {tol}.")
        key = self._key(at)
        entry = self._cache.get(end)
        if entry is not None and entry[0].is_at(key) and _serves(entry[1], k, tol):
            return entry[1].first(k)
        operator = self._operator(at)
        P = operator.shape[0]
        if not 1 <= k <= P:
            raise InvalidInputError(f"Expected 1 ≤ k ≤ P = {P} eigenpairs, got k = {k}.")
        if start is not None and start.dim() != 2:
            raise InvalidInputError(f"Expected start of shape (P, m), got {tuple(start.shape)}.")
        θ = key.theta if key is not None else None
        history = self._histories.get(end)
        basis = history.ahead(θ) if history is not None else start
        if basis is not None and (
            len(basis) != P or (basis.dtype, basis.device) != (operator.dtype, operator.device)
        ):
            basis = history = None
        solver: Callable[[EigenProblem], EigenSolution] = BACKENDS[self.backend]
        if self.backend == "block-krylov" and max(32, 3 * k) >= P:
            solver = BACKENDS["dense"]
        max_hvps = 100 + 60 * k if self._max_hvps is None else self._max_hvps
        signed = operator if end == "top" else Negated(operator)
        of = self._target if self._target is not None else getattr(operator, "source", None)
        memory = getattr(of, "memory_budget", None)
        with torch.no_grad():
            solution = solver(EigenProblem(signed, k, basis, tol, max_hvps, self._generator, memory))
        pairs = solution.pairs
        if end == "bottom":
            pairs = Eigenpairs(
                -pairs.values, pairs.vectors, pairs.residuals, pairs.n_hvp, pairs.converged, pairs.scale
            )
        self.n_hvps += pairs.n_hvp
        self._histories[end] = (history or _BasisHistory()).then(solution.basis, θ)
        if key is None:
            self._cache.pop(end, None)
        else:
            self._cache[end] = (key, pairs)
        return pairs

    def _operator(self, at: Any) -> SymmetricOperator:
        if at is None:
            if self._target is None or isinstance(self._target, HasHessian):
                raise InvalidInputError(
                    "Say where: pass θ, a linearization or an operator as the second argument."
                )
            return self._target
        if isinstance(at, Tensor) and at.dim() == 1:
            if not isinstance(self._target, HasHessian):
                raise InvalidInputError("θ needs a loss: make the service with SpectrumService(loss).")
            return check_operator(self._target.linearize(at))
        return check_operator(at)

    def _key(self, at: Any) -> _CacheKey | None:
        """Return what the result of a call is cached under; None for operators without a θ, which are solved anew."""
        if isinstance(at, Tensor) and at.dim() == 1 and self._target is not None:
            return _CacheKey(getattr(self._target, "source", self._target), at.detach().clone())
        theta = getattr(at, "theta", None)
        return _CacheKey(getattr(at, "source", at), theta.detach().clone()) if theta is not None else None


@dataclass(frozen=True)
class _BasisHistory:
    """The last two bases, shape (P, m) each, and where they were computed."""

    bases: tuple[Tensor, ...] = ()
    thetas: tuple[Tensor | None, ...] = ()

    def then(self, basis: Tensor, theta: Tensor | None) -> _BasisHistory:
        """Return the history one basis further."""
        return _BasisHistory((*self.bases, basis)[-2:], (*self.thetas, theta)[-2:])

    def ahead(self, theta: Tensor | None) -> Tensor:
        """Extrapolate the bases to θ: V + c (V − V′), with c the step to θ over the last one.

        V′ is the basis before, aligned to V by orthogonal Procrustes. Without a θ the steps count as equal.
        """
        V = self.bases[-1]
        if len(self.bases) < 2 or self.bases[0].shape != V.shape:
            return V
        ratio = 1.0
        before, last = self.thetas
        if theta is not None and before is not None and last is not None:
            step, gap = (float(torch.linalg.vector_norm(x)) for x in (theta - last, last - before))
            ratio = min(step / gap, _FURTHEST) if gap > 0 else 0.0
        left, _, right = torch.linalg.svd((self.bases[0].T @ V).to("cpu", torch.float64))
        return V + ratio * (V - self.bases[0] @ (left @ right).to(V))


def _serves(pairs: Eigenpairs, k: int, tol: float) -> bool:
    """Return whether known pairs answer a call for k of them to a tolerance."""
    return len(pairs) >= k and bool((pairs.residuals[:k] <= tol).all())


@dataclass(frozen=True)
class _CacheKey:
    """The place of a cached result: a loss, by identity, and θ, by value."""

    source: object
    theta: Tensor

    def is_at(self, other: _CacheKey | None) -> bool:
        return other is not None and self.source is other.source and self.has(other.theta)

    def has(self, theta: Tensor) -> bool:
        a, b = self.theta, theta
        return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
