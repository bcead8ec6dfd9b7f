"""Derivatives of a loss as torch computes them, against central differences."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradflow.errors import InexactDerivativeError
from gradflow.loss.linearization import Linearization
from gradflow.loss.parameters import as_flat

if TYPE_CHECKING:
    from gradflow.loss.function import LossFunction

# Noise on θ and steps of the differences, relative to the size of the parameters, in a first and a second attempt.
# Fewer kinks lie within a smaller step, while a wrong derivative stays wrong.
_NOISE = (3e-2, 1e-2)
_STEPS = (1e-5, 1e-8)
_COARSE_STEPS = (1e-2, 3e-3)
# What derivatives and differences may differ by beyond rounding: in float64, and in float32.
_ALLOWED, _ALLOWED_COARSE = 1e-6, 5e-2
_COARSE = 1e-12
# Rounding errors of a loss or gradient, in units of eps.
_ROUNDING = 30.0
# Differences over one step and over two that differ by more than this part of a mismatch say that it comes from a kink.
_KINK = 0.1
_MOST_LEAVES = 50


@dataclass(frozen=True)
class Reading:
    """A difference, relative to the size of what differs, and what it may be; NaN where none was measured.

    `kinked` says that there was one which a kink may explain.
    """

    value: float = math.nan
    allowed: float = math.nan
    kinked: bool = False

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    @property
    def passed(self) -> bool:
        """Whether the difference is within what it may be, or wasn't measured."""
        return not self.value > self.allowed

    def then(self, later: Reading) -> Reading:
        """Return the reading that counts: the smaller, or none where the later one can't confirm a mismatch."""
        if later.kinked and not self.passed:
            return later
        return later if later.value < self.value or not self.measured else self


@dataclass
class Derivatives:
    """How far derivatives are from what they should be.

    Attributes
    ----------
    gradient : Reading
        ∇L·v against differences of L.
    hessian : Reading
        H·v against differences of ∇L.
    symmetry : Reading
        uᵀHv against vᵀHu.
    gradient_names, hessian_names : list of str
        The parameters whose derivatives are off; of the Hessian, the worst first.
    no_products : str
        Why H·v couldn't be computed.
    functions : list of str
        The subclasses of ``torch.autograd.Function`` in the graph.
    """

    gradient: Reading = Reading()
    hessian: Reading = Reading()
    symmetry: Reading = Reading()
    gradient_names: list[str] = field(default_factory=list)
    hessian_names: list[str] = field(default_factory=list)
    no_products: str = ""
    functions: list[str] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether all could be measured and is as it should be."""
        readings = (self.gradient, *(() if self.no_products else (self.hessian, self.symmetry)))
        return all(reading.measured and reading.passed for reading in readings)


def measure(loss: LossFunction, theta: Tensor, eps: float) -> Derivatives:
    """Compare the derivatives near θ with differences of fourth order.

    Along directions where the gradient isn't zero: parameters without a gradient, such as the padding of an
    embedding, may be frozen by intent. What doesn't agree is measured again elsewhere with a smaller step. The best
    reading counts, and none where a kink may explain the mismatch.

    Parameters
    ----------
    loss : LossFunction
    theta : Tensor, shape (P,)
    eps : float
        What the loss is rounded to.
    """
    found = Derivatives()
    generator = torch.Generator("cpu").manual_seed(0)
    scale = _scale(loss, theta)
    for noise, h in zip(_NOISE, _STEPS if eps < _COARSE else _COARSE_STEPS, strict=True):
        place = _Place(loss, theta + noise * scale * _draw(theta, generator), scale, eps, generator)
        place.compare(found, h)
        if found.settled:
            break
    else:
        if not found.gradient.passed:
            found.gradient_names = place.names_off(h)
    return found


def measure_third(loss: LossFunction, theta: Tensor, eps: float) -> Reading:
    """Compare products ∇³L[u]·v near θ with differences of H·v of fourth order; else as :func:`measure`."""
    found = Reading()
    generator = torch.Generator("cpu").manual_seed(0)
    scale = _scale(loss, theta)
    for noise, h in zip(_NOISE, _STEPS if eps < _COARSE else _COARSE_STEPS, strict=True):
        place = _Place(loss, theta + noise * scale * _draw(theta, generator), scale, eps, generator)
        found = found.then(place.third_reading(h))
        if found.measured and found.passed:
            break
    return found


class _Place:
    """A θ with the derivatives there, and directions to look along."""

    def __init__(
        self, loss: LossFunction, theta: Tensor, scale: Tensor, eps: float, generator: torch.Generator
    ) -> None:
        self._loss = loss
        self._theta = theta
        self._scale = scale
        self._eps = eps
        self._linearization: Linearization | None = None
        self._why_not = ""
        try:
            self._linearization = loss.linearize(theta)
            self._value, self._gradient = self._linearization.value, self._linearization.gradient
        except InexactDerivativeError as error:
            self._why_not = str(error)
            self._value, self._gradient = loss.gradient(theta)
        self._u = scale * (self._gradient != 0) * _draw(theta, generator)
        # Uphill in each parameter tensor alike, so that ∇L·v isn't small for what cancels in it.
        self._v = scale * _unit_by_leaf(loss, self._gradient) * (1 + _draw(theta, generator))

    def compare(self, found: Derivatives, h: float) -> None:
        """Put in what is found here where it is better than what was found before."""
        slopes, curves = self._differences(self._v, h)
        found.gradient = found.gradient.then(self._slope_reading(self._v, slopes, h))
        found.functions = self._loss.functions
        found.no_products = self._why_not
        if self._linearization is None:
            return
        try:
            Hv, Hu = self._linearization.hvp(self._v), self._linearization.hvp(self._u)
        except RuntimeError as error:  # "the derivative for … is not implemented"
            found.no_products = f"There are no products with the Hessian: {str(error).splitlines()[0]}"
            return
        s = self._scale
        off = s * (Hv - _fourth(*curves))
        size, apart = max(_norm(s * Hv), _norm(s * curves[0])), _norm(s * (curves[0] - curves[1]))
        reading = self._reading(_norm(off), apart, size, _norm(s * self._gradient), h)
        found.hessian = found.hessian.then(reading)
        if found.hessian is reading:
            found.hessian_names = _worst(self._loss, off)
        between = (_norm(self._u / s) * _norm(s * Hv) + _norm(self._v / s) * _norm(s * Hu)) / 2
        skew = abs(float(self._u @ Hv) - float(self._v @ Hu))
        if between <= 1e3 * self._eps * abs(
            float(self._value)
        ):  # a constant: its products are rounding errors
            skew = 0.0
        reading = Reading(skew / between if between else skew, max(1e-9, 1e3 * self._eps))
        found.symmetry = found.symmetry.then(reading)

    def third_reading(self, h: float) -> Reading:
        """Set ∇³L[u]·v against differences of H·v along u."""
        assert self._linearization is not None
        u, v, s = self._v, self._u, self._scale
        product = self._linearization.third(u) @ v
        curves = []
        for k in (1, 2):
            up, down = (self._loss.hvp(self._theta + sign * k * h * u, v) for sign in (1, -1))
            curves.append((up - down) / (2 * k * h))
        off, apart = _norm(s * (product - _fourth(*curves))), _norm(s * (curves[0] - curves[1]))
        size = max(_norm(s * product), _norm(s * curves[0]))
        return self._reading(off, apart, size, _norm(s * self._linearization.hvp(v)), h)

    def names_off(self, h: float) -> list[str]:
        """Name the parameters along which the gradient isn't that of the loss."""
        found, at = [], 0
        leaves = self._loss.leaves(self._theta)[:_MOST_LEAVES]
        for name, leaf in zip(self._loss.names, leaves, strict=False):
            v = torch.zeros_like(self._theta)
            v[at : at + leaf.numel()] = self._v[at : at + leaf.numel()]
            at += leaf.numel()
            if not self._slope_reading(v, self._differences(v, h)[0], h).passed:
                found.append(name)
        return found

    def _differences(self, v: Tensor, h: float) -> tuple[list[float], list[Tensor]]:
        """Return central differences along v over one and two steps: of the loss, and of the gradient, shape (P,)."""
        slopes, curves = [], []
        for k in (1, 2):
            up, down = (self._loss.gradient(self._theta + sign * k * h * v) for sign in (1, -1))
            slopes.append((float(up[0]) - float(down[0])) / (2 * k * h))
            curves.append((up[1] - down[1]) / (2 * k * h))
        return slopes, curves

    def _slope_reading(self, v: Tensor, slopes: list[float], h: float) -> Reading:
        expected, apart = float(self._gradient @ v), abs(slopes[0] - slopes[1])
        size = max(abs(expected), abs(slopes[0]))
        return self._reading(abs(expected - _fourth(*slopes)), apart, size, abs(float(self._value)), h)

    def _reading(self, off: float, apart: float, size: float, rounded: float, h: float) -> Reading:
        """Set a mismatch against the size of what it is of; where that is small, against what rounding explains."""
        allowed = _ALLOWED if self._eps < _COARSE else _ALLOWED_COARSE
        size += _ROUNDING * self._eps * rounded / h / allowed
        if not math.isfinite(off + size):
            return Reading()
        if off > allowed * size and apart > _KINK * off:
            return Reading(kinked=True)
        return Reading(off / size if size else 0.0, allowed)


def _fourth(one: Any, two: Any) -> Any:
    """Combine central differences over one and two steps to fourth order."""
    return (4 * one - two) / 3


def _scale(loss: LossFunction, theta: Tensor) -> Tensor:
    """Return the size of each parameter, shape (P,): that of its tensor, and no less than a tenth of all."""
    least = 0.1 * (_rms(theta) or 1.0)
    return as_flat([torch.full_like(leaf, _rms(leaf) + least) for leaf in loss.leaves(theta)])


def _unit_by_leaf(loss: LossFunction, gradient: Tensor) -> Tensor:
    return as_flat([leaf / (_rms(leaf) or 1.0) for leaf in loss.leaves(gradient)])


def _worst(loss: LossFunction, off: Tensor) -> list[str]:
    """Name the parameters that have more than a tenth of the largest difference, the worst first."""
    sizes = {name: _norm(leaf) for name, leaf in zip(loss.names, loss.leaves(off), strict=True)}
    return [
        name for name in sorted(sizes, key=lambda n: -sizes[n]) if sizes[name] > 0.1 * max(sizes.values())
    ]


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor))


def _rms(tensor: Tensor) -> float:
    return _norm(tensor) / math.sqrt(max(1, tensor.numel()))


def _draw(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like)
