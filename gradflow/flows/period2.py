"""The period-2 flow of an optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from gradflow.checks import check_count, check_number
from gradflow.errors import InvalidInputError, UnknownNameError, suggest
from gradflow.flows.base import Flow
from gradflow.flows.oscillating import as_rate
from gradflow.spectrum import Eigenpairs
from gradflow.variable import Variable

if TYPE_CHECKING:
    from gradflow.flows.field import Field
    from gradflow.flows.point import Point

#: Default of beta2 by rule: that of torch.optim. None: the rule has no second moment.
RULES = {"gd": None, "rmsprop": 0.99, "adam": 0.999}
#: The flow's largest rate at the edge of stability is about 2 a step; and a margin for what overshoots it.
FASTEST = 2.5


class _State(NamedTuple):
    """The centre c or the direction q of its oscillation, with the momentum that belongs to it."""

    theta: Tensor
    momentum: Tensor | None


@dataclass(frozen=True)
class PeriodTwoFlow(Flow):
    """A centre and the oscillation of period 2 about it, beyond the edge of stability too: z = c ± a.

    An optimiser whose step maps (w, m) to Φ(w, m), with w the weights and m its momentum, alternates beyond the edge of
    stability: step t is at c + (−1)ᵗ a. Both change slowly. In steps of the optimiser,

        c′ = ½[Φ(c + a) + Φ(c − a)] − c,        a′ = −½[Φ(c + a) − Φ(c − a)] − a + ρ c.

    The average of squared gradients ν is the same at c + a and c − a, with g± = ∇L(c ± a):

        ν′ = (1 − β₂) [½(g₊² + g₋²) − ν].

    For gradient descent this is the edge flow (arXiv:2606.18080) with the curvature at finite amplitude. ρ stands for
    the rounding errors from which the oscillation of an optimiser without noise starts: it is by how much they exceed
    it when λ₁ comes down that decides how late that is. Where the learning rate is large against the other
    curvatures, the centre differs from the optimiser's by terms of first order, as gradient flow does.

    A velocity costs two gradients, or a gradient and a product while a is at most √eps‖c‖. Explicit methods follow it.

    Parameters
    ----------
    lr : float
        Learning rate η.
    rule : {"gd", "rmsprop", "adam"}
        The optimiser, with the formulas of ``torch.optim``. Momentum without second moments is none of them: there
        the oscillation of this flow came 75 to 110 steps late.
    beta1 : float, default 0.9
        Decay of Adam's momentum.
    beta2 : float, optional
        Decay of the averages of squared gradients. Default: 0.99 for RMSProp, 0.999 for Adam.
    eps : float, default 1e-8
        Added to the root of ν.
    rho_floor : float, optional
        ρ. Default: the machine epsilon of θ's dtype.
    warmup_steps : int, default 0
        Steps of the optimiser before the flow's time 0. The first ones of RMSProp and Adam aren't smooth.
    """

    lr: float
    rule: str = "gd"
    beta1: float = 0.9
    beta2: float | None = None
    eps: float = 1e-8
    rho_floor: float | None = None
    warmup_steps: int = 0

    name: ClassVar[str] = "period-2"
    variables: ClassVar[Mapping[str, Variable]] = {
        "predicted_train_loss": Variable(long_name="mean training loss of the two phases of the oscillation"),
        "predicted_gradient_norm": Variable(
            long_name="root of the mean square of the gradient over the two phases of the oscillation"
        ),
        "rho": Variable(long_name="amplitude of the oscillation"),
    }

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        if not isinstance(self.rule, str) or self.rule not in RULES:
            raise UnknownNameError(
                f"No rule {self.rule!r} for the flow 'period-2'; {suggest(str(self.rule), RULES)}"
            )
        if self.beta2 is None:
            object.__setattr__(self, "beta2", RULES[self.rule])
        for name in ("beta1", "beta2"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), least=0, below=1)
        if self.beta2 is not None and RULES[self.rule] is None:
            raise InvalidInputError(
                f"The rule {self.rule!r} has no average of squared gradients, got beta2={self.beta2!r}. Leave it out, "
                "or choose the rule 'rmsprop' or 'adam'."
            )
        check_number("eps", self.eps, least=0)
        if self.rho_floor is not None:
            check_number("rho_floor", self.rho_floor, above=0)
        check_count("warmup_steps", self.warmup_steps)

    # ------------------------------------------------------------------ the state

    def initial(self, theta: Tensor) -> Tensor:
        """Return c = θ and a = ρ θ; momentum and ν are 0, and the powers β₁ᵗ and β₂ᵗ are 1."""
        zero = torch.zeros_like(theta)
        size = max(super().size(theta), 1e-30)
        q = theta / size if bool(theta.any()) else torch.ones_like(theta) / len(theta) ** 0.5
        s = theta.new_tensor([math.log(self._floor(theta) * size)])
        parts = {
            "gd": [theta, q, s],
            "rmsprop": [theta, q, s, zero],
            "adam": [theta, zero, q, zero, s, zero, theta.new_ones(2)],
        }
        return torch.cat(parts[self.rule])

    def begin(self, field: Field, theta: Tensor) -> Tensor:
        """Return the state after the optimiser's first steps, which cost a gradient each."""
        z = self.initial(theta)
        for _ in range(self.warmup_steps):
            c, q, s, ν, powers = self._parts(z)
            g = field.evaluate(c.theta).gradient
            ν, powers = self._averages(ν, powers, g**2)
            z = self._flat(self._step(c, g, ν, powers), q, s, ν, powers)
        return z

    def theta(self, z: Tensor) -> Tensor:
        """Return the centre."""
        return self._parts(z)[0].theta

    def size(self, z: Tensor) -> float:
        """Return ‖c‖₂."""
        return super().size(self.theta(z))

    def _floor(self, like: Tensor) -> float:
        return torch.finfo(like.dtype).eps if self.rho_floor is None else self.rho_floor

    def _parts(self, z: Tensor) -> tuple[_State, _State, Tensor, Tensor | None, Tensor | None]:
        """Return centre, direction of the oscillation, s, ν and the powers (β₁ᵗ, β₂ᵗ)."""
        if self.rule == "gd":
            P = (len(z) - 1) // 2
            c, q, s = z.split([P, P, 1])
            return _State(c, None), _State(q, None), s, None, None
        if self.rule == "rmsprop":
            P = (len(z) - 1) // 3
            c, q, s, ν = z.split([P, P, 1, P])
            return _State(c, None), _State(q, None), s, ν, None
        P = (len(z) - 3) // 5
        c, m, q, b, s, ν, powers = z.split([P, P, P, P, 1, P, 2])
        return _State(c, m), _State(q, b), s, ν, powers

    @staticmethod
    def _flat(c: _State, q: _State, s: Tensor, ν: Tensor | None, powers: Tensor | None) -> Tensor:
        return torch.cat([part for part in (*c, *q, s, ν, powers) if part is not None])

    # ------------------------------------------------------------------ the rules

    def _averages(
        self, ν: Tensor | None, powers: Tensor | None, squared: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return ν and the powers after a step that sees this mean of squared gradients."""
        if ν is None or self.beta2 is None:
            return None, None
        ν = self.beta2 * ν.clamp(min=0) + (1 - self.beta2) * squared
        return ν, None if powers is None else powers * powers.new_tensor([self.beta1, self.beta2])

    def _step(self, x: _State, g: Tensor, ν: Tensor | None, powers: Tensor | None) -> _State:
        """Return Φ, linear in (w, m, g) for given averages: the same for a centre and an oscillation."""
        η, ε, β = self.lr, self.eps, self.beta1
        w, m = x
        if ν is None:
            return _State(w - η * g, None)
        if m is None or powers is None:
            return _State(w - η * g / (ν.sqrt() + ε), None)
        m = β * m + (1 - β) * g
        P = (ν / (1 - powers[1])).sqrt() + ε
        return _State(w - η * (m / (1 - powers[0])) / P, m)

    # ------------------------------------------------------------------ the flow

    @property
    def time_definition(self) -> str:
        """Flow time for gradient descent, otherwise steps."""
        return "flow" if self.rule == "gd" else "optimiser steps"

    @property
    def _steps_per_time(self) -> float:
        return 1 / self.lr if self.rule == "gd" else 1.0

    def velocity(self, point: Point) -> Tensor:
        """Return c′ and, of a′ = eˢ d, q′ = d − (qᵀd) q/|q|² and s′ = qᵀd/|q|²; those of the momentum, and ν′."""
        c, q, s, ν, powers = self._parts(point.z)
        even, odd = self._gradients(point, c.theta, q.theta, s)
        ν1, powers1 = self._averages(ν, powers, even**2 + (s.exp() * odd) ** 2)
        c1, q1 = self._step(c, even, ν1, powers1), self._step(q, odd, ν1, powers1)
        d = -q1.theta - q.theta + self._floor(point.z) * (-s).exp() * c.theta
        rate = (q.theta @ d / (q.theta @ q.theta))[None]
        moved = _State(c1.theta - c.theta, None)
        turned = _State(d - rate * q.theta, None)
        if c.momentum is not None and q.momentum is not None:
            assert c1.momentum is not None
            assert q1.momentum is not None
            moved = moved._replace(momentum=c1.momentum - c.momentum)
            turned = turned._replace(momentum=-q1.momentum - q.momentum - rate * q.momentum)
        averaged = None if ν is None or ν1 is None else ν1 - ν
        decayed = None if powers is None or powers1 is None else powers1 - powers
        velocity = self._flat(moved, turned, rate, averaged, decayed)
        return self._steps_per_time * velocity

    @staticmethod
    def _gradients(point: Point, c: Tensor, q: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return ½(g₊ + g₋) and ½(g₊ − g₋)/eˢ; for a small a by a product with the Hessian, free of cancellation."""
        a = s.exp() * q
        if torch.linalg.vector_norm(a) <= torch.finfo(c.dtype).eps ** 0.5 * torch.linalg.vector_norm(c):
            H = point.linearization
            return H.gradient, H @ q
        up, down = (point.field.evaluate(w).gradient for w in (c + a, c - a))
        return (up + down) / 2, (up - down) / 2 * (-s).exp()

    def rates(self, point: Point, k: int, tol: float) -> Eigenpairs:
        """Return what its rates are at most while the optimiser is stable or oscillates: it costs nothing."""
        return as_rate(FASTEST * self._steps_per_time, point.z)

    def measure(self, point: Point) -> dict[str, Any]:
        """Return mean loss and gradient of the two phases, and the amplitude."""
        c, q, s, _, _ = self._parts(point.z)
        a = s.exp() * q.theta
        up, down = (point.field.evaluate(w) for w in (c.theta + a, c.theta - a))
        squares = [
            float(torch.linalg.vector_norm(at.gradient, dtype=torch.float64)) ** 2 for at in (up, down)
        ]
        return {
            "predicted_train_loss": (float(up.value) + float(down.value)) / 2,
            "predicted_gradient_norm": (sum(squares) / 2) ** 0.5,
            "rho": float(torch.linalg.vector_norm(a, dtype=torch.float64)),
        }
