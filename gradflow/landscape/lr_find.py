"""The learning rate range test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, NonFiniteLossError
from gradflow.landscape.arguments import as_theta, progress_bar
from gradflow.landscape.batches import as_batches
from gradflow.landscape.rates import Method, make_optimizer, steps_at
from gradflow.loss import Loss, LossFunction, as_loss
from gradflow.spectrum import SpectrumService


def lr_find(
    loss: Loss,
    params: Tensor | None = None,
    *,
    method: Method = "gd",
    lr_min: float = 1e-5,
    lr_max: float = 10.0,
    n: int = 100,
    divergence: float = 4.0,
    smoothing: float | None = None,
    batches: Sequence[LossFunction] | None = None,
    batch_size: int | None = None,
    n_batches: int | None = None,
    seed: int = 0,
    method_options: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Look for a learning rate: one step at each of n growing ones, from θ₀ on (Smith 2017).

    Parameters
    ----------
    loss : LossFunction or callable
    params : Tensor, shape (P,), optional
        θ₀, never changed. Default: the net's present weights; must be given for a callable.
    method : str, Integrator or class of optimisers, default "gd"
        One with a learning rate. What it remembers (momentum) goes on from step to step.
    lr_min, lr_max : float
        Learning rates are n in geometric progression between them.
    n : int, default 100
    divergence : float, default 4.0
        Stop where the smoothed loss is above so many times its smallest value so far; in general above
        L + (divergence − 1)|L|, for losses that can be negative. ``math.inf``: only where it isn't finite.
    smoothing : float, optional
        β in [0, 1) of a bias-corrected exponential moving average of the loss. Default: 0.9 with mini-batches,
        else 0, since the loss of all data has no noise to be smoothed.
    batches : sequence of LossFunction, optional
        Mini-batches, taken in turn, one a step. Default: all data at every step.
    batch_size, n_batches, seed : int, optional
        Make them of `loss`, as of :func:`minibatches`.
    method_options : mapping, optional
        Options of the method but for its learning rate.
    progress : bool, optional
        Show a progress line on standard error. Default: when it is a terminal.

    Returns
    -------
    xarray.Dataset
        Over ``lr``: ``loss``, ``smoothed_loss`` and ``gradient_norm`` after the step at that learning rate, on the
        next mini-batch where there are any; NaN after divergence, which is the last value shown. Scalars:

        - ``initial_loss``, at θ₀;
        - ``suggestion_steepest``, where the smoothed loss falls fastest with log lr;
        - ``suggestion_minimum``, a tenth of where it is smallest;
        - ``suggestion_curvature``, c/λ₁, beyond which the method is unstable on the quadratic at θ₀: c is 2 for
          gradient descent, 2 + 2β for Polyak's momentum; an upper bound, not a choice;
        - ``sharpness``, the λ₁ of all data at θ₀ that it rests on.

        The sweep goes on falling for some steps beyond c/λ₁, until an instability that it crossed has grown.
        A suggestion is NaN where there is none: the loss never fell, λ₁ ≤ 0, or the method has no such c, as Adam,
        whose threshold is for the λ₁ of a preconditioned Hessian that changes as it goes.
        ``diverged`` in the attributes is 1 if the sweep stopped early.

    Raises
    ------
    NonFiniteLossError
        If the loss or its gradient isn't finite at θ₀.

    Examples
    --------
    >>> found = lr_find(lambda x: 5 * (x**2).sum(), torch.ones(2, dtype=torch.float64), lr_min=1e-3)
    >>> round(float(found.suggestion_curvature), 6)
    0.2
    """
    loss = as_loss(loss)
    theta = as_theta(loss, params)
    rates = _rates(lr_min, lr_max, n)
    check_number("divergence", divergence, above=1, finite=False)
    parts = as_batches(loss, batches, batch_size, n_batches, seed)
    β = (0.9 if parts else 0.0) if smoothing is None else smoothing
    check_number("smoothing", β, least=0, below=1)
    integrator = make_optimizer(method, method_options, lr_min, loss)

    raw, smoothed, slopes = (np.full(n, np.nan) for _ in range(3))
    initial = best = average = math.nan
    diverged = False
    with progress_bar(n, "lr_find", progress) as shown:
        for k, point in enumerate(steps_at(rates, integrator, parts or [loss], theta), start=-1):
            if k < 0:
                if not point.is_finite:
                    raise NonFiniteLossError(
                        f"Expected a finite loss and gradient at θ₀, got loss {point.loss}. Check data and weights."
                    )
                initial = best = point.loss
                average = 0.0
                continue
            average = β * average + (1 - β) * point.loss
            raw[k], smoothed[k] = point.loss, average / (1 - β ** (k + 1))
            slopes[k] = float(torch.linalg.vector_norm(point.gradient, dtype=torch.float64))
            shown.update()
            diverged = not point.is_finite or smoothed[k] > best + (divergence - 1) * abs(best)
            if diverged:
                break
            best = min(best, float(smoothed[k]))
    steepest, minimum = _suggestions(rates, smoothed, initial)
    λ1, curvature = _curvature(loss, theta, integrator)
    return _dataset(
        rates,
        {
            "loss": (raw, "loss after the step"),
            "smoothed_loss": (smoothed, "moving average of the loss"),
            "gradient_norm": (slopes, "2-norm of the gradient after the step"),
        },
        {
            "initial_loss": (initial, "loss before the first step"),
            "suggestion_steepest": (steepest, "learning rate at which the loss falls fastest"),
            "suggestion_minimum": (minimum, "a tenth of the learning rate at which the loss is smallest"),
            "suggestion_curvature": (curvature, "largest stable learning rate on the quadratic at the start"),
            "sharpness": (λ1, "largest Hessian eigenvalue at the start"),
        },
        {"method": integrator.name, "smoothing": β, "diverged": int(diverged)},
    )


def _rates(lr_min: float, lr_max: float, n: int) -> np.ndarray:
    check_number("lr_min", lr_min, above=0)
    check_number("lr_max", lr_max, above=0)
    check_count("n", n, least=2)
    if not lr_min < lr_max:
        raise InvalidInputError(f"Expected lr_min < lr_max, got {lr_min} and {lr_max}. Exchange them.")
    return np.geomspace(lr_min, lr_max, n)


def _suggestions(rates: np.ndarray, smoothed: np.ndarray, initial: float) -> tuple[float, float]:
    """Return where the curve falls fastest before its minimum, and a tenth of where that is."""
    finite = np.flatnonzero(np.isfinite(smoothed))
    if len(finite) < 2 or not smoothed[finite].min() < initial:
        return math.nan, math.nan
    lowest = finite[smoothed[finite].argmin()]
    slope = np.gradient(smoothed[finite], np.log(rates[finite]))[: lowest + 1]
    steepest = float(rates[slope.argmin()]) if slope.min() < 0 else math.nan
    return steepest, float(rates[lowest]) / 10


def _curvature(loss: LossFunction, theta: Tensor, integrator: Any) -> tuple[float, float]:
    """Return λ₁ at θ, and the learning rate at which the method's stability threshold is there."""
    c = _stability_constant(integrator)
    if math.isnan(c):
        return math.nan, math.nan
    λ1 = float(SpectrumService(loss).top(1, theta).values[0])
    return λ1, c / λ1 if λ1 > 0 else math.nan


def _stability_constant(integrator: Any) -> float:
    """Return c where the method is stable while λ₁ < c/lr; NaN where that isn't so, or not for the λ₁ of H."""
    if integrator.stability_threshold is None or integrator.preconditions:
        return math.nan
    twice = replace(integrator, lr=2 * integrator.lr)
    c = [float(each.lr * each.stability_threshold) for each in (integrator, twice)]
    return c[0] if math.isclose(*c, rel_tol=1e-9) else math.nan


def _dataset(
    rates: np.ndarray,
    curves: Mapping[str, tuple[np.ndarray, str]],
    scalars: Mapping[str, tuple[float, str]],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    data: dict[str, Any] = {
        name: ("lr", values, {"units": "1", "long_name": said}) for name, (values, said) in curves.items()
    }
    data |= {name: ((), value, {"units": "1", "long_name": said}) for name, (value, said) in scalars.items()}
    coords = {"lr": ("lr", rates, {"units": "1", "long_name": "learning rate"})}
    return xr.Dataset(data, coords, dict(attrs))
