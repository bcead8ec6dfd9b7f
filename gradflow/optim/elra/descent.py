"""One call of ELRA: collect micro-batches, accept or revoke the last step, and move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradflow.errors import NonFiniteLossError
from gradflow.optim.elra.control import Control
from gradflow.optim.elra.flat import FlatParameters


@dataclass(frozen=True)
class Group:
    """Micro-batches collected for one real call.

    Attributes
    ----------
    gradient : Tensor or None, shape (n,)
        Sum of gradients over the number to collect.
    n_batches : int
        Micro-batches in it.
    losses, least : float
        Sum of the losses, and the smallest of them.
    """

    gradient: Tensor | None = None
    n_batches: int = 0
    losses: float = 0.0
    least: float = math.inf

    def with_batch(self, f: float, g: Tensor, n: int) -> Group:
        """Return the group with one of n micro-batches more."""
        share = g if n == 1 else g / n
        total = share if self.gradient is None else self.gradient + share
        return Group(total, self.n_batches + 1, self.losses + f, min(self.least, f))


@dataclass(frozen=True)
class Track:
    """The line of the last step.

    Attributes
    ----------
    good : Tensor, shape (n,)
        The last good point, where it begins.
    slope : Tensor, shape (n,)
        ĝ there: the gradient, or its projection on the momentum.
    momentum : Tensor or None, shape (n,)
        Moving average of gradients.
    """

    good: Tensor
    slope: Tensor
    momentum: Tensor | None


class Descent:
    """Run ELRA on a vector.

    Attributes
    ----------
    control : Control
    flat : FlatParameters
        θ, shape (n,).
    track : Track or None
        None before the first call.
    group : Group
        The micro-batches since the last real call.
    """

    def __init__(self, control: Control, flat: FlatParameters) -> None:
        self.control = control
        self.flat = flat
        self.track: Track | None = None
        self.group = Group()

    def advance(self, f: float, g: Tensor | None, decaying: Sequence[bool]) -> tuple[Tensor, float] | None:
        """Make a call.

        Parameters
        ----------
        f : float
            Loss at θ.
        g : Tensor or None, shape (n,)
            Gradient there, which may be kept. None: the last step is taken back.
        decaying : sequence of bool
            Whether each parameter decays.

        Returns
        -------
        (Tensor, float) or None
            θ and its loss, if it was accepted.
        """
        usable = g is not None and _norm(g) < math.sqrt(torch.finfo(g.dtype).max)
        if self.track is None:
            self._start(f, g if usable else None, decaying)
            return None
        least = f
        if g is None or not usable:
            if g is not None:
                f = math.nan  # a loss that came with such a gradient is no guide to a step length
            g, self.group = None, Group()
        else:
            self.group = self.group.with_batch(f, g, self.control.micro_batches)
            if self.group.n_batches < self.control.micro_batches:
                return None
            group, self.group = self.group, Group()
            f, g, least = group.losses / group.n_batches, group.gradient, group.least
        self.control.count()
        if g is not None and self.control.accepts(f, least):
            return self._accept(f, g, self.track, decaying), f
        self._move(self.track, self.control.revoked(f), self.track.slope)
        return None

    def _start(self, f: float, g: Tensor | None, decaying: Sequence[bool]) -> None:
        if g is None or not math.isfinite(f):
            raise NonFiniteLossError(
                f"Expected a finite loss and gradient at the first step, got loss {f:g} and "
                f"{'a' if g is not None else 'no'} finite gradient. Start from other parameters."
            )
        θ = self.flat.read()
        g = self._decayed(g, θ, decaying)
        length = self.control.start(f, _norm(g))
        self._move(Track(θ, g, g if self.control.settings.momentum else None), length, g)

    def _accept(self, f: float, g: Tensor, last: Track, decaying: Sequence[bool]) -> Tensor:
        """Keep θ, and step from it; return θ."""
        θ = self.flat.read()
        g = self._decayed(g, θ, decaying)
        length = self.control.accepted(f, _ratio(g, last.slope, self.control.slope_norm), _norm(g))
        if last.momentum is None:
            track, direction = Track(θ, g, None), g
        else:
            direction = g.lerp(last.momentum, self.control.settings.momentum)
            slope = direction * _ratio(g, direction, _norm(direction))
            track = Track(θ, slope, direction)
        self.control.set_slope(_norm(track.slope))
        self._move(track, length, direction)
        return θ

    def _move(self, track: Track, length: float, direction: Tensor) -> None:
        self.track = track
        self.flat.write(track.good.sub(direction, alpha=length))

    def _decayed(self, g: Tensor, θ: Tensor, decaying: Sequence[bool]) -> Tensor:
        """Add a_w θ to a gradient, where parameters decay."""
        if self.control.decay_strength == 0:
            return g
        strength = self.control.decay(_norm(g), _norm(θ))
        if strength == 0:
            return g
        g = g.clone()
        for decays, to, part in zip(decaying, self.flat.split(g), self.flat.split(θ), strict=True):
            if decays:
                to.add_(part, alpha=strength)
        return g


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _ratio(g: Tensor, slope: Tensor, N: float) -> float:
    """Return ⟨g, ĝ⟩/‖ĝ‖²; 0 for a slope of length 0."""
    return float(torch.dot(g, slope)) / N / N if N > 0 else 0.0
