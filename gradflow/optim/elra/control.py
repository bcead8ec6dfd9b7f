"""The scalars that steer ELRA: which step is taken back, and how long the next one is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from gradflow.optim.elra.period import CompatPeriod, Period
from gradflow.optim.elra.settings import Settings

#: Longest step in noisy mode.
LONGEST = 10.0
#: Real calls between two updates of the schedule.
WINDOW = 100
#: Samples in a statistics period, over those in a window.
_PERIOD = 768
#: Most that α grows by in a step.
_GROWTH = 1e6
#: The growth damper when fresh, and what an accepted step divides it by.
_DAMPER, _DAMPER_FALL = 855_000.0, 3.9
#: What a revoked step multiplies the damper by, as long as it is below the threshold.
_DAMPER_RISE, _DAMPER_HIGH = 16.0, 62_500.0
#: Largest α|s| where consecutive slopes oppose each other.
_OPPOSED = 0.1
#: Bounds of α after an accepted and after a revoked step.
_ALPHA, _ALPHA_REVOKED = (1e-8, 1e6), (1e-12, 1e6)
_SHORTEST_ETA = 1e-5
#: One step of σ is a factor of 1.5 in η; at the highest, (2/3)^σ is the smallest η.
_BASE = 1.5
_SIGMA_HIGHEST = 5 * math.log(10) / math.log(_BASE)
_MOST_COLLECTED = 6250
_PATIENCE = 6


@dataclass
class Control:
    """Scalar state of ELRA and its rules; the vectors are the optimiser's.

    The slope vector ĝ is the gradient that the last step followed (with momentum: its projection on the direction
    travelled). A parabola with the slopes at both ends of that step has its minimum at the secant step length
    α/(1 − s), s = ⟨g, ĝ⟩/‖ĝ‖², which is the long step of Barzilai & Borwein (1988).

    Attributes
    ----------
    α, η : float
        Secant and schedule step length: the length in noise-free and in noisy mode.
    length : float
        Length of the last step.
    ρ, σ : float
        Retrace damper and exponent of the schedule: η = ρ(2/3)^σ.
    d : float
        Growth damper: α grows by 10⁶/(1 + d) at most.
    N : float
        ‖ĝ‖.
    s : float
        The last normalised scalar product.
    f_last, f_first : float
        Loss of the last good point, and of the first, at least ln(classes).
    μ, δ, κ : float
        A loss is accepted below μ + 5δκ.
    period : Period
    first_period, only_start : bool
        Whether no period has ended; whether no point but the first has been accepted.
    T, R, revoked_calls : int
        Real calls (accepted or revoked); those revoked in this window, and in all.
    A, a : float
        Sum of min(0, αs) over the window, and its minimum.
    Γ, G : float
        Sum of N over the window; mean N of the last window.
    c : int
        Micro-batches in a real call.
    q : int
        Periods without a new best mean loss.
    L : list of float
        Mean losses of those periods.
    enlarged : bool
        Whether the last period's end doubled c.
    since_enlarged : int
        0: μ is the best mean; 1, 2: μ starts anew at the period's end after next, or at the next.
    w : float
        Strength of weight decay.
    train_loss, valid_loss : float or None
        What w follows.
    """

    settings: Settings
    α: float = 0.0
    η: float = 0.1
    length: float = 0.0
    ρ: float = 1.0
    σ: float = 1.0
    d: float = _DAMPER
    N: float = 0.0
    s: float = 0.0
    f_last: float = math.nan
    f_first: float = math.nan
    μ: float = math.nan
    δ: float = math.nan
    κ: float = 1.0
    period: Period = field(default_factory=Period)
    first_period: bool = True
    only_start: bool = True
    T: int = 0
    R: int = 0
    revoked_calls: int = 0
    A: float = 0.0
    a: float = 0.0
    Γ: float = 0.0
    G: float = 0.0
    c: int = 1
    q: int = 0
    L: list[float] = field(default_factory=lambda: [0.0] * _PATIENCE)
    enlarged: bool = False
    since_enlarged: int = 0
    w: float = 0.0
    train_loss: float | None = None
    valid_loss: float | None = None

    @classmethod
    def new(cls, settings: Settings) -> Self:
        """Return the state before the first call."""
        period = CompatPeriod() if settings.compat else Period()
        return cls(settings, α=settings.lr, w=settings.weight_decay, period=period)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Self:
        """Return the state that was saved by ``dataclasses.asdict``."""
        settings = Settings(**state["settings"])
        period = (CompatPeriod if settings.compat else Period)(**state["period"])
        plain = {
            each.name: state[each.name] for each in fields(cls) if each.name not in {"settings", "period"}
        }
        return cls(settings, period=period, **{**plain, "L": list(plain["L"])})

    def start(self, f: float, norm: float) -> float:
        """Begin with the first loss and ‖g‖; return the length of the first step, α₀."""
        size = f if f > 0 else abs(f) + math.ulp(1.0)
        self.f_last, self.f_first = f, max(f, math.log(max(self.settings.classes, 2)))
        self.μ, self.δ = f + 0.1 * size, 0.33 * size
        self.count(has_gradient=True)
        self.period.F, self.period.n = f, 1
        self.N = self.G = norm
        self.length = self.η if self.settings.compat and not self.settings.is_noise_free else self.α
        return self.α

    def count(self, has_gradient: bool) -> None:
        """Count a real call, and update the schedule at the end of a window."""
        self.T += 1
        self.period.count(has_gradient)
        if self.T % WINDOW == 0:
            self._end_window()

    def accepts(self, f: float, least: float) -> bool:
        """Whether a point is kept: its loss is not far above the running mean.

        A loss no higher than at the last good point is always accepted, else equal losses, whose spread is 0, would
        be refused for ever.

        Parameters
        ----------
        f, least : float
            Mean and smallest loss of the group of micro-batches.
        """
        if not self.settings.is_noise_free and not f < 1.1 * self.f_first:
            return False
        usual = least < self.μ + 5 * self.δ * self.κ
        return usual or (not self.settings.compat and f <= self.f_last)

    def accepted(self, f: float, s: float, norm: float) -> float:
        """Take note of an accepted call with slope ratio s and ‖g‖; return the length of the next step."""
        self.κ = max(1.0, self.κ / 1.05)
        self.period.add(f)
        if self.first_period:
            self.μ, self.δ = self.period.mean(), self.period.deviation() * 1.05 ** min(self.period.r, 1000)
        self.f_last = f
        self.s = s
        self.ρ = math.sqrt(self.ρ)
        self._secant(s)
        self._schedule(norm)
        noise_free = self.settings.is_noise_free
        if not noise_free and s > 0:
            self.α = min(self.α, self.η / s)
        self.A += min(0.0, self.α * s)
        self.a = min(self.a, self.α * s)
        if self.α * s < -_OPPOSED:
            self.α = _OPPOSED / abs(s)
        self.α = _clamp(self.α, *_ALPHA)
        self.only_start = False
        self.length = self.α if noise_free else self.η
        return self.length

    def _secant(self, s: float) -> None:
        """α: the parabola's minimum, or growth where it has none or is too flat."""
        self.d /= _DAMPER_FALL
        γ = _GROWTH / (1 + self.d)
        h = 1 - s
        self.α = γ * self.α if γ * h < 1 else self.length / h

    def _schedule(self, norm: float) -> None:
        """η: ρ(2/3)^σ, at most ρT/W, and no step longer than 10."""
        warmup = self.settings.warmup
        ω = 1 / warmup if warmup > 1 else 1.0
        self.η = max(_SHORTEST_ETA, self.ρ * min(_BASE ** -(self.σ + self.enlarged), ω * self.T))
        if self.η * norm > LONGEST:
            self.η = LONGEST / norm

    def set_slope(self, N: float) -> None:
        """Take note of the norm of the slope vector that the next step follows."""
        self.N = N
        self.Γ += N

    def revoked(self, f: float) -> float:
        """Take note of a revoked call; return the length of the step from the last good point."""
        noise_free = self.settings.is_noise_free
        self.κ *= 1.05
        self.period.r += 1
        self.R += 1
        self.revoked_calls += 1
        if not noise_free and self.R % 26 == 25:
            self.q, self.c = 0, min(max(2 * self.c, 2), _MOST_COLLECTED)
        self._damp_growth()
        self.σ = min(self.σ + 0.4, _SIGMA_HIGHEST)
        self.ρ = max(1e-3, self.ρ / 2)
        self.η = max(_SHORTEST_ETA, self.η / 2)
        if noise_free:
            self.α = _clamp(self.α * self._shortening(f), *_ALPHA_REVOKED)
        elif self.only_start and not self.settings.compat:
            self.α = _clamp(self.α / 2, *_ALPHA_REVOKED)
        self.Γ += self.N
        length = self.α if noise_free or self.only_start else self.η
        self.length = self.η if self.settings.compat and not noise_free else length
        return length

    def _damp_growth(self) -> None:
        if self.d <= 1:
            self.d += _DAMPER_RISE
        elif self.d < _DAMPER_HIGH:
            self.d *= _DAMPER_RISE
        else:
            self.d = _DAMPER

    def _shortening(self, f: float) -> float:
        """Minimum, over α, of the parabola with slope −αN² and loss `f_last` at 0, and loss f at α.

        0.01 where that is no shorter step, or there is none.
        """
        drop = self.α * self.N * self.N
        rise = f - self.f_last + drop
        φ = 0.5 * drop / rise if rise != 0 else math.nan
        allowed = φ < math.inf if self.settings.compat else 0 <= φ < 1
        return φ if allowed else 0.01

    def decay(self, gradient_norm: float, parameter_norm: float) -> float:
        """Return a_w: a_w θ is added to the gradient; its norm is w·1 % of the mean gradient's."""
        if self.w == 0 or parameter_norm == 0 or (self.T == 0 and not self.settings.is_noise_free):
            return 0.0
        scale = self.G if self.G > 0 else gradient_norm
        return self.w * 0.005 * scale / parameter_norm * (4 if self.enlarged else 2)

    def _end_window(self) -> None:
        """Every 100 real calls, before the gradient of the last of them is used."""
        per_window = max(1, _PERIOD // (self.c * self.settings.batch_size))
        if self.period.t >= WINDOW * per_window:
            self._end_period()
        self.G = self.Γ / WINDOW
        self.w = self._decay_strength()
        if self.G > 0:
            self._steer()
        self.R = 0
        self.A = self.a = self.Γ = 0.0
        self.period.end_window()

    def _steer(self) -> None:
        """σ: up where slopes opposed each other too much in this window, else slowly down."""
        lowest = math.log(self.G / LONGEST) / math.log(_BASE)
        if self.A > -1 and self.R > 0:
            self.σ = max(lowest, self.σ - 1)
        self.σ = self.σ + 1 if self.a < -0.2 else max(lowest, self.σ - 0.33)
        self.σ = min(self.σ, _SIGMA_HIGHEST)

    def _decay_strength(self) -> float:
        """w: grows with the collector and with the gap between validation and training loss."""
        train, valid, w0 = self.train_loss, self.valid_loss, self.settings.weight_decay
        if w0 == 0 or train is None or valid is None or not (train > 0 and valid > 0):
            return w0
        gap = 1.0 if valid <= train else math.sqrt(2 * valid / train - 1)
        return min(3 * self.c**0.666, gap)

    def _end_period(self) -> None:
        """Compare the period's mean loss with the best; collect more where six have not improved on it."""
        ended = self.period
        ended.close()
        self.period = type(ended)()
        self.first_period = False
        if ended.n < 1:
            return
        mean = ended.mean()
        self.q = self.q + 1 if mean > self.μ else 0
        self.μ = min(self.μ, mean)
        if self.since_enlarged == 2:
            self.μ, self.since_enlarged = mean, 0
        elif self.since_enlarged == 1:
            self.since_enlarged = 2
        self.enlarged = self.q >= _PATIENCE
        if self.enlarged:
            self.L[0] = self.μ = mean
            self.since_enlarged, self.q = 1, 0
        else:
            self.L[self.q] = mean
            self._forgive()
        self.δ, self.κ = ended.deviation(), 1.0
        if not self.settings.is_noise_free and self.enlarged:
            self.c = min(2 * self.c, _MOST_COLLECTED)

    def _forgive(self) -> None:
        """Start counting anew where averages over two or three of the last six periods still fall."""
        L = self.L
        if self.q != _PATIENCE - 1:
            return
        if L[0] + L[1] > L[4] + L[5] or sum(L[:3]) > sum(L[3:]):
            self.q = 0
            L[0] = self.μ = min((L[4] + L[5]) / 2, (L[3] + L[4] + L[5]) / 3)


def _clamp(value: float, lowest: float, highest: float) -> float:
    return max(lowest, min(value, highest))
