"""The error control by itself, on a method that makes the errors which it is told to make."""

import math
import warnings
from dataclasses import dataclass, field

import pytest
import torch

from gradflow import LossFunction
from gradflow.driver import Stepper
from gradflow.errors import IntegrationWarning
from gradflow.integrators import ErrorControl, Field, Integrator, StepResult
from gradflow.integrators.step_size.error_control import Control, _ratio
from gradflow.status import NumericalFailure, Status


@dataclass(frozen=True)
class Scripted(Integrator):
    """Attempts with errors given in units of the tolerance, the last one again and again; q = 2.

    z grows by the factor `growth` in a step, so that the tolerance at the end is another than at the start.
    """

    errors: tuple = (1.0,)
    guess: float = 1.0
    most: float = math.inf
    growth: float = 1.0
    control: ErrorControl = ErrorControl()  # noqa: RUF009 - a frozen value
    sizes: list = field(default_factory=list)

    name = "scripted"
    order = 1
    error_order = 2
    rejects_loss_increase = False

    @property
    def step_rule(self):
        return self.control

    def first_size(self, point, state):
        return self.guess

    def step(self, point, h, state):
        error = self.errors[min(len(self.sizes), len(self.errors) - 1)]
        self.sizes.append(h)
        unit = self.control.atol + self.control.rtol * float(point.z.norm()) * max(1.0, self.growth)
        return StepResult(self.growth * point.z, error=error * unit, h=min(h, self.most))


def point(scale=1.0, slope=1.0):
    """θ of length 5 · scale, where the gradient has the length `slope`."""
    direction = torch.tensor([0.0, 1.0], dtype=torch.float64)
    loss = LossFunction.from_callable(lambda x: slope * (x @ direction))
    return Field(loss).at(torch.tensor([3.0, 4.0], dtype=torch.float64) * scale)


def step(target=math.inf, size=1.0, start=None, **options):
    """Take one step that begins with a size; None: with the first step's guess. Return method, report, next size."""
    method = Scripted(**options)
    start = point() if start is None else start
    stepper = Stepper(method, start.field, start.z)
    if size is not None:
        stepper._started, stepper._control = True, Control(size)
    report = stepper.advance(target)
    return method, report, stepper._control.size


@pytest.mark.parametrize(
    ("error", "factor"),
    [(0.25, 1.8), (1.0, 0.9), (0.0, 5.0), (1e-12, 5.0), (0.81, 1.0), ((0.9 / 5) ** 2 * 1.01, 5 / 1.01**0.5)],
)
def test_the_next_step_is_what_the_error_allows(error, factor):
    method, report, size = step(errors=(error,))
    assert method.sizes == [1.0]
    assert report.n_rejected == 0
    assert size == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("error", "factor"),
    [(1.0001, 0.9 / 1.0001**0.5), (4.0, 0.45), (1e6, 0.1), (math.inf, 0.1), (math.nan, 0.1)],
)
def test_a_rejected_step_is_shortened_and_then_does_not_grow(error, factor):
    method, report, size = step(errors=(error, 1e-9))
    assert method.sizes == pytest.approx([1.0, factor])
    assert report.n_rejected == 1
    assert report.dt == pytest.approx(factor)
    assert size == pytest.approx(factor)


@pytest.mark.parametrize("growth", [0.5, 3.0])
@pytest.mark.parametrize(("error", "rejected"), [(0.999, 0), (1.001, 1)])
def test_the_tolerance_is_that_of_the_longer_end(growth, error, rejected):
    control = ErrorControl(rtol=1e-3, atol=1e-4)
    _, report, _ = step(errors=(error, 0.5), growth=growth, control=control)
    assert report.n_rejected == rejected


def test_attempts_are_bounded():
    method = Scripted(errors=(2.0,))
    stepper = Stepper(method, point().field, point().z)
    with pytest.raises(NumericalFailure, match="scripted: 40 attempts were rejected") as error:
        stepper.advance()
    assert error.value.status == Status.STEP_UNDERFLOW
    assert len(method.sizes) == stepper.n_rejected == 40
    assert stepper.n_steps == 0


def test_a_step_that_lands_on_a_time_keeps_the_size_for_the_next():
    method, report, size = step(target=0.01, errors=(1e-9,))
    assert method.sizes == [0.01]
    assert report.t == 0.01
    assert size == 1.0
    *_, size = step(target=0.01, errors=(0.25,), size=0.011)  # unless the error allows more
    assert size == pytest.approx(0.018)
    method, *_ = step(target=1.0 + 5e-10, errors=(0.81,))  # in spite of rounding
    assert method.sizes == [1.0 + 5e-10]
    method, *_ = step(target=1.0 + 5e-9, errors=(0.81,))
    assert method.sizes == [1.0]


def test_a_method_that_does_less_than_asked_goes_on_from_what_it_did():
    _, report, size = step(errors=(0.25,), most=0.5)
    assert report.dt == 0.5
    assert size == pytest.approx(0.9)


def test_steps_are_at_most_max_step():
    method, report, _ = step(errors=(1e-9,), control=ErrorControl(max_step=0.25))
    assert method.sizes == [0.25]
    assert report.dt == 0.25


def test_a_first_step_far_too_short_is_taken_again():
    method, report, _ = step(size=None, guess=1e-3, errors=(1e-12, 0.25, 0.16))
    assert method.sizes == pytest.approx([1e-3, 1.0])  # a thousandfold at most; 1.8 is not far too short
    assert report.n_rejected == 1
    method, report, _ = step(size=None, guess=1e-3, errors=(0.2,))  # 2.01 is, eight times
    factor = 0.9 / 0.2**0.5
    assert method.sizes == pytest.approx([1e-3 * factor**i for i in range(9)])
    assert report.n_rejected == 8


@pytest.mark.parametrize(
    ("scale", "slope", "size"), [(1.0, 2.0, 3.0), (1.0, 100.0, 0.06), (0.0, 0.5, 2.0), (1.0, 0.0, 1.0)]
)
def test_a_first_step_moves_theta_by_its_own_length_at_most(scale, slope, size):
    method, *_ = step(size=None, start=point(scale, slope), guess=1e6, errors=(0.81,))
    assert method.sizes == pytest.approx([size])


def test_after_a_rise_of_the_loss_the_control_goes_on_from_half_of_the_step():
    assert ErrorControl().after_loss_increase(0.5, Control(3.0, n_rejected=2, cap="cap")) == Control(
        0.25, cap="cap"
    )


def test_what_is_not_finite_misses_every_tolerance():
    assert _ratio(1.0, math.inf) == _ratio(math.inf, math.inf) == _ratio(0.0, math.nan) == math.inf
    assert _ratio(1.0, 0.0) == math.inf
    assert (_ratio(0.0, 0.0), _ratio(1.0, 4.0)) == (0.0, 0.25)


def test_a_tolerance_of_zero_is_met_by_no_error_alone():
    loss = LossFunction.from_callable(lambda x: x.sum())
    origin = Field(loss).at(torch.zeros(2, dtype=torch.float64))
    _, report, _ = step(start=origin, control=ErrorControl(atol=0.0), errors=(0.0,))
    assert (report.dt, report.n_rejected) == (1.0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_least_rtol_is_twenty_roundings(dtype):
    least = 20 * torch.finfo(dtype).eps
    start = Field(LossFunction.from_callable(lambda x: 0.5 * (x**2).sum())).at(torch.ones(4, dtype=dtype))

    def begin(**options):
        return ErrorControl(**options).init(start, lambda: 1.0)

    with pytest.warns(IntegrationWarning, match="below what"):
        begin(rtol=0.9 * least, atol=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin(rtol=1.1 * least, atol=0.0)
        begin(rtol=0.9 * least, atol=2.1 * least)  # ‖θ‖ = 2
