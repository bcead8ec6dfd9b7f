"""The error control by itself, on a method that makes the errors which it is told to make."""

import math
import warnings
from dataclasses import dataclass, field

import pytest
import torch

from gradflow import LossFunction
from gradflow.errors import IntegrationWarning
from gradflow.integrators import Flow
from gradflow.integrators.base import StepUnderflow
from gradflow.integrators.step_size.error_control import Attempt, Control, ErrorControlled, _ratio


@dataclass(frozen=True)
class Scripted(ErrorControlled):
    """Attempts with errors given in units of the tolerance, the last one again and again; q = 2.

    θ grows by the factor `growth` in a step, so that the tolerance at the end is another than at the start.
    """

    errors: tuple = (1.0,)
    guess: float = 1.0
    most: float = math.inf
    growth: float = 1.0
    sizes: list = field(default_factory=list)

    name = "scripted"
    order = 1
    error_order = 2

    def prepare(self, point, memory):
        return memory

    def first_size(self, point, work):
        return self.guess

    def attempt(self, point, work, h, tol):
        error = self.errors[min(len(self.sizes), len(self.errors) - 1)]
        size = float(point.theta.norm())
        assert tol == pytest.approx(self.atol + self.rtol * size, rel=1e-12)
        self.sizes.append(h)
        unit = self.atol + self.rtol * size * max(1.0, self.growth)
        return Attempt(self.growth * point.theta, min(h, self.most), error * unit, lambda s: point.theta)


def point(scale=1.0, slope=1.0):
    """θ of length 5 · scale, where the gradient has the length `slope`."""
    direction = torch.tensor([0.0, 1.0], dtype=torch.float64)
    loss = LossFunction.from_callable(lambda x: slope * (x @ direction))
    return Flow(loss).at(torch.tensor([3.0, 4.0], dtype=torch.float64) * scale)


def step(h=math.inf, size=1.0, **options):
    method = Scripted(**options)
    return method, method.step(point(), h, Control(size))


@pytest.mark.parametrize(
    ("error", "factor"),
    [(0.25, 1.8), (1.0, 0.9), (0.0, 5.0), (1e-12, 5.0), (0.81, 1.0), ((0.9 / 5) ** 2 * 1.01, 5 / 1.01**0.5)],
)
def test_the_next_step_is_what_the_error_allows(error, factor):
    method, result = step(errors=(error,))
    assert method.sizes == [1.0]
    assert result.n_rejected == 0
    assert result.error == pytest.approx(error)
    assert result.state.size == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("error", "factor"),
    [(1.0001, 0.9 / 1.0001**0.5), (4.0, 0.45), (1e6, 0.1), (math.inf, 0.1), (math.nan, 0.1)],
)
def test_a_rejected_step_is_shortened_and_then_does_not_grow(error, factor):
    method, result = step(errors=(error, 1e-9))
    assert method.sizes == pytest.approx([1.0, factor])
    assert result.n_rejected == 1
    assert result.h == pytest.approx(factor)
    assert result.state.size == pytest.approx(factor)


def test_the_tolerance_is_that_of_the_longer_end():
    for growth in (0.5, 3.0):
        _, result = step(errors=(0.5,), growth=growth, rtol=1e-3, atol=1e-4)
        assert result.error == pytest.approx(0.5, rel=1e-12)


def test_attempts_are_bounded():
    method = Scripted(errors=(2.0,))
    with pytest.raises(StepUnderflow, match="40 attempts were rejected"):
        method.step(point(), math.inf, Control(1.0))
    assert len(method.sizes) == 40


def test_a_step_that_lands_on_a_time_keeps_the_size_for_the_next():
    method, result = step(h=0.01, errors=(1e-9,))
    assert method.sizes == [0.01]
    assert result.state.size == 1.0
    _, result = step(h=0.01, errors=(0.25,), size=0.011)  # unless the error allows more
    assert result.state.size == pytest.approx(0.018)
    method, result = step(h=1.0 + 5e-10, errors=(0.81,))  # in spite of rounding
    assert method.sizes == [1.0 + 5e-10]
    method, result = step(h=1.0 + 5e-9, errors=(0.81,))
    assert method.sizes == [1.0]


def test_a_method_that_does_less_than_asked_goes_on_from_what_it_did():
    _, result = step(errors=(0.25,), most=0.5)
    assert result.h == 0.5
    assert result.state.size == pytest.approx(0.9)


def test_steps_are_at_most_max_step():
    method, result = step(errors=(1e-9,), max_step=0.25)
    assert method.sizes == [0.25]
    assert result.h == 0.25


def test_a_first_step_far_too_short_is_taken_again():
    method, result = step(size=None, guess=1e-3, errors=(1e-12, 0.25, 0.16))
    assert method.sizes == pytest.approx([1e-3, 1.0])  # a thousandfold at most; 1.8 is not far too short
    assert result.n_rejected == 1
    method, result = step(size=None, guess=1e-3, errors=(0.2,))  # 2.01 is, eight times
    factor = 0.9 / 0.2**0.5
    assert method.sizes == pytest.approx([1e-3 * factor**i for i in range(9)])
    assert result.n_rejected == 8


@pytest.mark.parametrize(
    ("scale", "slope", "size"), [(1.0, 2.0, 3.0), (1.0, 100.0, 0.06), (0.0, 0.5, 2.0), (1.0, 0.0, 1.0)]
)
def test_a_first_step_moves_theta_by_its_own_length_at_most(scale, slope, size):
    method = Scripted(guess=1e6, errors=(0.81,))
    method.step(point(scale, slope), math.inf, method.init(point(scale, slope)))
    assert method.sizes == pytest.approx([size])


def test_a_refused_step_goes_on_from_half_of_it():
    assert Scripted().refused(0.5, Control(3.0, "memory")) == Control(0.25)


def test_what_is_not_finite_misses_every_tolerance():
    assert _ratio(1.0, math.inf) == _ratio(math.inf, math.inf) == _ratio(0.0, math.nan) == math.inf
    assert _ratio(1.0, 0.0) == math.inf
    assert (_ratio(0.0, 0.0), _ratio(1.0, 4.0)) == (0.0, 0.25)


def test_a_tolerance_of_zero_is_met_by_no_error_alone():
    loss = LossFunction.from_callable(lambda x: x.sum())
    origin = Flow(loss).at(torch.zeros(2, dtype=torch.float64))
    assert Scripted(atol=0.0, errors=(0.0,)).step(origin, 1.0, Control(1.0)).error == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_rtol_is_twenty_roundings(dtype):
    least = 20 * torch.finfo(dtype).eps
    start = torch.ones(4, dtype=dtype)
    flow = Flow(LossFunction.from_callable(lambda x: 0.5 * (x**2).sum()))
    with pytest.warns(IntegrationWarning, match="below what"):
        Scripted(rtol=0.9 * least, atol=0.0).init(flow.at(start))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Scripted(rtol=1.1 * least, atol=0.0).init(flow.at(start))
        Scripted(rtol=0.9 * least, atol=2.1 * least).init(flow.at(start))  # ‖θ‖ = 2
