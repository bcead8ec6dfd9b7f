"""The kind of a point θ: minimum, saddle, maximum, plateau, or none of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import NonFiniteLossError
from gradflow.landscape.arguments import as_theta
from gradflow.loss import Linearization, Loss, as_loss
from gradflow.spectrum import SpectrumService

#: Parameters up to which the whole spectrum is computed, from the dense Hessian.
DENSE = 300

Verdict = Literal["minimum", "maximum", "saddle", "plateau", "not critical", "undecided"]


@dataclass(frozen=True)
class CriticalPoint:
    """The loss near θ, and the kind of point that this makes θ.

    Attributes
    ----------
    verdict : str
        One of ``minimum``, ``maximum``, ``saddle``, ``plateau``, ``not critical`` and ``undecided``.
    reason : str
        The numbers on which the verdict rests.
    loss, gradient_norm : float
    sharpness : float
        The largest Hessian eigenvalue.
    sharpness_error : float
        Bound on its distance from an eigenvalue.
    bottom : float
        The smallest eigenvalue.
    bottom_error : float
        Bound on its distance from an eigenvalue.
    trace, trace_error : float
        Estimate of the trace of the Hessian, and its standard error; 0 if it is exact.
    n_hvps : int
        Hessian–vector products that the classification took.
    """

    verdict: Verdict
    reason: str
    loss: float
    gradient_norm: float
    sharpness: float
    sharpness_error: float
    bottom: float
    bottom_error: float
    trace: float
    trace_error: float
    n_hvps: int


def classify(
    loss: Loss,
    theta: Tensor | None = None,
    *,
    gradient_tol: float = 1e-4,
    flat_tol: float = 1e-6,
    eigs_tol: float | None = None,
    max_hvps: int = 500,
    n_vectors: int = 20,
    seed: int = 0,
) -> CriticalPoint:
    """Find out whether θ is a minimum, a saddle, a maximum, a plateau or none of these.

    By the second derivative: with both ends of the spectrum above 0 a minimum, below it a maximum, apart a saddle.
    An eigenvalue has a sign if it is further from 0 than its error and `flat_tol`; the error is the residual ‖Hv −
    λv‖, or 10 machine epsilons of max|λ| if that is more. If the sign of an eigenvalue is needed and not known, the
    point is undecided: the second derivative doesn't decide. Minima of networks with more parameters than data
    usually are undecided, because their Hessian is singular. A minimum or a maximum is undecided, too, if the
    eigensolver has not converged. An eigensolver that has converged may still have missed an eigenvalue further out.

    Sharp and flat minima differ in ``sharpness`` and ``trace``; both change with the scale of the weights.

    Parameters
    ----------
    loss : LossFunction or callable
    theta : Tensor, shape (P,), optional
        Default: the net's present weights; must be given for a callable.
    gradient_tol : float, default 1e-4
        Largest ‖∇L‖ of a critical point, in units of the loss over those of θ.
    flat_tol : float, default 1e-6
        Largest |λ| that counts as 0; where all do, the point is a plateau.
    eigs_tol : float, optional
        Residual over max|λ| to which the ends of the spectrum are computed. Default: 1e-6 in float64, 1e-4 in float32.
        Up to 300 parameters all eigenvalues are computed, to rounding.
    max_hvps : int, default 500
        Products after which either end is taken as it is, with its residual.
    n_vectors : int, default 20
        Random vectors of Hutchinson's estimate of the trace, a product each; exact for P up to that.
    seed : int, default 0
        Seed of these vectors and of the eigensolver's.

    Returns
    -------
    CriticalPoint

    Raises
    ------
    NonFiniteLossError
        If loss or gradient aren't finite at θ.

    Examples
    --------
    >>> found = classify(lambda w: w[0] ** 2 - 2 * w[1] ** 2, torch.zeros(2))
    >>> found.verdict, found.sharpness, found.bottom, found.trace
    ('saddle', 2.0, -4.0, -2.0)
    """
    loss = as_loss(loss)
    theta = as_theta(loss, theta)
    for name, tol in (("gradient_tol", gradient_tol), ("flat_tol", flat_tol)):
        check_number(name, tol, least=0)
    eigs_tol = (1e-6 if theta.dtype == torch.float64 else 1e-4) if eigs_tol is None else eigs_tol
    check_number("eigs_tol", eigs_tol, above=0)
    check_count("max_hvps", max_hvps, least=1)
    check_count("n_vectors", n_vectors, least=2)
    check_count("seed", seed)

    hessian = loss.linearize(theta)
    slope = float(torch.linalg.vector_norm(hessian.gradient, dtype=torch.float64))
    if not bool(torch.isfinite(hessian.value)) or not bool(torch.isfinite(hessian.gradient).all()):
        raise NonFiniteLossError(
            f"Expected a finite loss and gradient at θ, got loss {float(hessian.value)}."
        )
    backend = "dense" if theta.numel() <= DENSE else "block-krylov"
    spectrum = SpectrumService(loss, backend=backend, max_hvps=max_hvps, seed=seed)
    ends = [solve(1, hessian, tol=eigs_tol) for solve in (spectrum.top, spectrum.bottom)]
    scale = max(pairs.scale for pairs in ends)
    floor = 10 * torch.finfo(theta.dtype).eps * scale
    (top, bottom), errors = (
        [float(pairs.values[0]) for pairs in ends],
        [max(float(pairs.residuals[0]) * pairs.scale, floor) for pairs in ends],
    )
    trace, trace_error = _trace(spectrum, hessian, n_vectors)
    missed = [not bool(pairs.converged.all()) for pairs in ends]
    verdict, reason = _verdict(slope, (top, bottom), errors, missed, gradient_tol, flat_tol)
    return CriticalPoint(
        verdict=verdict,
        reason=reason,
        loss=float(hessian.value),
        gradient_norm=slope,
        sharpness=top,
        sharpness_error=errors[0],
        bottom=bottom,
        bottom_error=errors[1],
        trace=trace,
        trace_error=trace_error,
        n_hvps=hessian.n_hvps,
    )


def _verdict(
    slope: float,
    ends: tuple[float, float],
    errors: list[float],
    missed: list[bool],
    gradient_tol: float,
    flat_tol: float,
) -> tuple[Verdict, str]:
    top, bottom = ends
    shown = ", ".join(
        f"λ_{end} = {λ:.3g} ± {error:.1g}" for end, λ, error in zip(("max", "min"), ends, errors, strict=True)
    )
    if slope > gradient_tol:
        return "not critical", f"‖∇L‖ = {slope:.3g} > gradient_tol = {gradient_tol:.3g}"
    # A saddle needs one eigenvalue of each sign; the other kinds are claims on all, which need converged ends.
    late = "; not converged within max_hvps, there may be others further out"
    if all(abs(λ) + error <= flat_tol for λ, error in zip(ends, errors, strict=True)):
        said = f"{shown}, all within flat_tol = {flat_tol:.3g}"
        return ("undecided", said + late) if any(missed) else ("plateau", said)
    limits = [max(error, flat_tol) for error in errors]
    if bottom > limits[1]:
        return ("undecided", shown + late) if missed[1] else ("minimum", shown)
    if top < -limits[0]:
        return ("undecided", shown + late) if missed[0] else ("maximum", shown)
    if top > limits[0] and bottom < -limits[1]:
        return "saddle", shown
    unsure = ", ".join(
        f"λ_{end} is 0 within {limit:.1g}"
        for end, λ, limit in zip(("max", "min"), ends, limits, strict=True)
        if abs(λ) <= limit
    )
    return "undecided", f"{shown}; {unsure}"


def _trace(spectrum: SpectrumService, hessian: Linearization, n_vectors: int) -> tuple[float, float]:
    """Return the trace and its standard error: E[vᵀHv] of random unit vectors is the trace over P."""
    P = hessian.shape[0]
    if n_vectors >= P:
        eye = torch.eye(P, dtype=hessian.dtype, device=hessian.device)
        return float((hessian @ eye).diagonal().double().sum()), 0.0
    # One Lanczos step from v has the one node vᵀHv.
    samples = P * spectrum.density(hessian, n_vectors=n_vectors, n_steps=1).nodes[:, 0]
    return float(samples.mean()), float(samples.std()) / n_vectors**0.5
