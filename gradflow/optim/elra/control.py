"""The scalars that steer ELRA: they decide which step is taken back, and how long the next one is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from gradflow.optim.elra.former import FORMER_NAMES
from gradflow.optim.elra.period import Period
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
#: Factor of the damper after a revoked step, and the threshold from which on the damper is reset instead.
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
    secant_length, schedule_length : float
        α and η: the step length in noise-free and in noisy mode.
    length : float
        Length of the last step.
    retrace_damper, schedule_exponent : float
        ρ and σ of the schedule: η = ρ(2/3)^σ.
    growth_damper : float
        d: α grows by 10⁶/(1 + d) at most.
    slope_norm : float
        N = ‖ĝ‖.
    slope_ratio : float
        The last s.
    last_loss, first_loss : float
        Loss of the last good point, and of the first, at least ln(classes).
    reference_loss, loss_spread, leniency : float
        μ, δ and κ: a loss is accepted below μ + 5δκ.
    period : Period
    first_period, only_start : bool
        Whether no period has ended; whether no point but the first has been accepted.
    n_calls, n_revoked_in_window, revoked_calls : int
        Real calls (accepted or revoked); those revoked in this window, and in all.
    opposition_sum, opposition_min : float
        Sum of min(0, αs) over the window, and its minimum.
    slope_norm_sum, mean_slope_norm : float
        Sum of N over the window; mean N of the last window.
    micro_batches : int
        Micro-batches in a real call.
    stagnant_periods : int
        Periods without a new best mean loss.
    period_losses : list of float
        Mean losses of those periods.
    enlarged : bool
        Whether the last period's end doubled `micro_batches`.
    since_enlarged : int
        0: μ is the best mean; 1, 2: μ starts anew at the period's end after next, or at the next.
    decay_strength : float
        w, the strength of weight decay.
    train_loss, valid_loss : float or None
        The losses that w follows.
    """

    settings: Settings
    secant_length: float = 0.0
    schedule_length: float = 0.1
    length: float = 0.0
    retrace_damper: float = 1.0
    schedule_exponent: float = 1.0
    growth_damper: float = _DAMPER
    slope_norm: float = 0.0
    slope_ratio: float = 0.0
    last_loss: float = math.nan
    first_loss: float = math.nan
    reference_loss: float = math.nan
    loss_spread: float = math.nan
    leniency: float = 1.0
    period: Period = field(default_factory=Period)
    first_period: bool = True
    only_start: bool = True
    n_calls: int = 0
    n_revoked_in_window: int = 0
    revoked_calls: int = 0
    opposition_sum: float = 0.0
    opposition_min: float = 0.0
    slope_norm_sum: float = 0.0
    mean_slope_norm: float = 0.0
    micro_batches: int = 1
    stagnant_periods: int = 0
    period_losses: list[float] = field(default_factory=lambda: [0.0] * _PATIENCE)
    enlarged: bool = False
    since_enlarged: int = 0
    decay_strength: float = 0.0
    train_loss: float | None = None
    valid_loss: float | None = None

    def __getattr__(self, name: str) -> Any:
        """Name the attribute that one of before has become."""
        now = FORMER_NAMES["control"].get(name)
        hint = f": it is called {now!r} now" if now else ""
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}.")

    @classmethod
    def new(cls, settings: Settings) -> Self:
        """Return the state before the first call."""
        return cls(settings, secant_length=settings.lr, decay_strength=settings.weight_decay)

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Self:
        """Return the state that was saved by ``dataclasses.asdict``."""
        period = Period(**state["period"])
        plain = {
            each.name: state[each.name] for each in fields(cls) if each.name not in {"settings", "period"}
        }
        plain["period_losses"] = list(plain["period_losses"])
        return cls(Settings(**state["settings"]), period=period, **plain)

    def start(self, f: float, norm: float) -> float:
        """Begin with the first loss and ‖g‖; return the length of the first step, α₀."""
        size = f if f > 0 else abs(f) + math.ulp(1.0)
        self.last_loss, self.first_loss = f, max(f, math.log(max(self.settings.classes, 2)))
        self.reference_loss, self.loss_spread = f + 0.1 * size, 0.33 * size
        self.count()
        self.period.loss_sum, self.period.n_losses = f, 1
        self.slope_norm = self.mean_slope_norm = norm
        self.length = self.secant_length
        return self.length

    def count(self) -> None:
        """Count a real call, and update the schedule at the end of a window."""
        self.n_calls += 1
        self.period.n_calls += 1
        if self.n_calls % WINDOW == 0:
            self._end_window()

    def accepts(self, f: float, least: float) -> bool:
        """Return whether a point is kept: its loss is not far above the running mean.

        A loss no higher than at the last good point is always accepted, else equal losses, whose spread is 0, would
        be refused for ever.

        Parameters
        ----------
        f, least : float
            Mean and smallest loss of the group of micro-batches.
        """
        if not self.settings.is_noise_free and not f < 1.1 * self.first_loss:
            return False
        usual = least < self.reference_loss + 5 * self.loss_spread * self.leniency
        return usual or f <= self.last_loss

    def accepted(self, f: float, s: float, norm: float) -> float:
        """Take note of an accepted call with slope ratio s and ‖g‖; return the length of the next step."""
        self.leniency = max(1.0, self.leniency / 1.05)
        self.period.add(f)
        if self.first_period:
            self.reference_loss = self.period.mean()
            self.loss_spread = self.period.deviation() * 1.05 ** min(self.period.n_revoked, 1000)
        self.last_loss = f
        self.slope_ratio = s
        self.retrace_damper = math.sqrt(self.retrace_damper)
        self._secant(s)
        self._schedule(norm)
        noise_free = self.settings.is_noise_free
        if not noise_free and s > 0:
            self.secant_length = min(self.secant_length, self.schedule_length / s)
        self.opposition_sum += min(0.0, self.secant_length * s)
        self.opposition_min = min(self.opposition_min, self.secant_length * s)
        if self.secant_length * s < -_OPPOSED:
            self.secant_length = _OPPOSED / abs(s)
        self.secant_length = _clamp(self.secant_length, *_ALPHA)
        self.only_start = False
        self.length = self.secant_length if noise_free else self.schedule_length
        return self.length

    def _secant(self, s: float) -> None:
        """Set α to the parabola's minimum, or let it grow if the parabola has none or is too flat."""
        self.growth_damper /= _DAMPER_FALL
        γ = _GROWTH / (1 + self.growth_damper)
        h = 1 - s
        self.secant_length = γ * self.secant_length if γ * h < 1 else self.length / h

    def _schedule(self, norm: float) -> None:
        """Set η to ρ(2/3)^σ, at most ρT/W, and such that no step is longer than 10."""
        warmup = self.settings.warmup
        ω = 1 / warmup if warmup > 1 else 1.0
        allowed = min(_BASE ** -(self.schedule_exponent + self.enlarged), ω * self.n_calls)
        self.schedule_length = max(_SHORTEST_ETA, self.retrace_damper * allowed)
        if self.schedule_length * norm > LONGEST:
            self.schedule_length = LONGEST / norm

    def set_slope(self, N: float) -> None:
        """Take note of the norm of the slope vector that the next step follows."""
        self.slope_norm = N
        self.slope_norm_sum += N

    def revoked(self, f: float) -> float:
        """Take note of a revoked call; return the length of the step from the last good point."""
        noise_free = self.settings.is_noise_free
        self.leniency *= 1.05
        self.period.n_revoked += 1
        self.n_revoked_in_window += 1
        self.revoked_calls += 1
        if not noise_free and self.n_revoked_in_window % 26 == 25:
            self.stagnant_periods = 0
            self.micro_batches = min(max(2 * self.micro_batches, 2), _MOST_COLLECTED)
        self._damp_growth()
        self.schedule_exponent = min(self.schedule_exponent + 0.4, _SIGMA_HIGHEST)
        self.retrace_damper = max(1e-3, self.retrace_damper / 2)
        self.schedule_length = max(_SHORTEST_ETA, self.schedule_length / 2)
        if noise_free:
            self.secant_length = _clamp(self.secant_length * self._shortening(f), *_ALPHA_REVOKED)
        elif self.only_start:
            self.secant_length = _clamp(self.secant_length / 2, *_ALPHA_REVOKED)
        self.slope_norm_sum += self.slope_norm
        self.length = self.secant_length if noise_free or self.only_start else self.schedule_length
        return self.length

    def _damp_growth(self) -> None:
        if self.growth_damper <= 1:
            self.growth_damper += _DAMPER_RISE
        elif self.growth_damper < _DAMPER_HIGH:
            self.growth_damper *= _DAMPER_RISE
        else:
            self.growth_damper = _DAMPER

    def _shortening(self, f: float) -> float:
        """Return the minimum, over α, of the parabola with slope −αN² and loss `last_loss` at 0, and loss f at α.

        Return 0.01 if that is no shorter step, or the parabola has no minimum.
        """
        drop = self.secant_length * self.slope_norm * self.slope_norm
        rise = f - self.last_loss + drop
        φ = 0.5 * drop / rise if rise != 0 else math.nan
        return φ if 0 <= φ < 1 else 0.01

    def decay(self, gradient_norm: float, parameter_norm: float) -> float:
        """Return a_w: a_w θ is added to the gradient; its norm is w·1 % of the mean gradient's."""
        if (
            self.decay_strength == 0
            or parameter_norm == 0
            or (self.n_calls == 0 and not self.settings.is_noise_free)
        ):
            return 0.0
        scale = self.mean_slope_norm if self.mean_slope_norm > 0 else gradient_norm
        return self.decay_strength * 0.005 * scale / parameter_norm * (4 if self.enlarged else 2)

    def _end_window(self) -> None:
        """Update the schedule: every 100 real calls, before the gradient of the last of them is used."""
        per_window = max(1, _PERIOD // (self.micro_batches * self.settings.batch_size))
        if self.period.n_calls >= WINDOW * per_window:
            self._end_period()
        self.mean_slope_norm = self.slope_norm_sum / WINDOW
        self.decay_strength = self._strength_from_losses()
        if self.mean_slope_norm > 0:
            self._steer()
        self.n_revoked_in_window = 0
        self.opposition_sum = self.opposition_min = self.slope_norm_sum = 0.0

    def _steer(self) -> None:
        """Raise σ if slopes opposed each other too much in this window, else lower it slowly."""
        lowest = math.log(self.mean_slope_norm / LONGEST) / math.log(_BASE)
        σ = self.schedule_exponent
        if self.opposition_sum > -1 and self.n_revoked_in_window > 0:
            σ = max(lowest, σ - 1)
        σ = σ + 1 if self.opposition_min < -0.2 else max(lowest, σ - 0.33)
        self.schedule_exponent = min(σ, _SIGMA_HIGHEST)

    def _strength_from_losses(self) -> float:
        """Return w, which grows with the micro-batches in a call and with the gap of validation and training loss."""
        train, valid, w0 = self.train_loss, self.valid_loss, self.settings.weight_decay
        if w0 == 0 or train is None or valid is None or not (train > 0 and valid > 0):
            return w0
        gap = 1.0 if valid <= train else math.sqrt(2 * valid / train - 1)
        return min(3 * self.micro_batches**0.666, gap)

    def _end_period(self) -> None:
        """Compare the period's mean loss with the best; collect more if six have not improved on it."""
        ended = self.period
        self.period = type(ended)()
        self.first_period = False
        if ended.n_losses < 1:
            return
        mean = ended.mean()
        self.stagnant_periods = self.stagnant_periods + 1 if mean > self.reference_loss else 0
        self.reference_loss = min(self.reference_loss, mean)
        if self.since_enlarged == 2:
            self.reference_loss, self.since_enlarged = mean, 0
        elif self.since_enlarged == 1:
            self.since_enlarged = 2
        self.enlarged = self.stagnant_periods >= _PATIENCE
        if self.enlarged:
            self.period_losses[0] = self.reference_loss = mean
            self.since_enlarged, self.stagnant_periods = 1, 0
        else:
            self.period_losses[self.stagnant_periods] = mean
            self._forgive()
        self.loss_spread, self.leniency = ended.deviation(), 1.0
        if not self.settings.is_noise_free and self.enlarged:
            self.micro_batches = min(2 * self.micro_batches, _MOST_COLLECTED)

    def _forgive(self) -> None:
        """Start counting anew where averages over two or three of the last six periods still fall."""
        L = self.period_losses
        if self.stagnant_periods != _PATIENCE - 1:
            return
        if L[0] + L[1] > L[4] + L[5] or sum(L[:3]) > sum(L[3:]):
            self.stagnant_periods = 0
            L[0] = self.reference_loss = min((L[4] + L[5]) / 2, (L[3] + L[4] + L[5]) / 3)


def _clamp(value: float, lowest: float, highest: float) -> float:
    return max(lowest, min(value, highest))
