"""Step sizes by choice: any method with steps that are given, capped by λ₁, or sized by its error."""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
import torch

import gradflow
from gradflow import LossFunction, open_run, problems, steps
from gradflow.driver import Stepper
from gradflow.errors import InvalidInputError, InvalidTypeError, UnknownNameError, UnknownOptionError
from gradflow.flows import GradientFlow
from gradflow.integrators import (
    METHODS,
    ErrorControl,
    Field,
    FixedStep,
    FixedTableau,
    Integrator,
    SharpnessCap,
    StepResult,
    StepSize,
    Tableau,
)
from gradflow.integrators.doubling import StepDoubling
from gradflow.integrators.step_size import Proposal

DOUBLED = "ErrorControl(rtol=1e-5, atol=1e-7)"


def log_cosh(rate=1.0):
    """Σ log cosh(rate·xᵢ)/rate², along whose flow sinh(rate·x) decays as e^{−t}."""
    start = torch.tensor([2.0, 1.0, -1.5], dtype=torch.float64)
    return (
        (lambda x: torch.log(torch.cosh(rate * x)).sum() / rate**2),
        start,
        lambda t: torch.asinh(math.exp(-t) * torch.sinh(rate * start)) / rate,
    )


@pytest.fixture
def chebyshev():
    train, _, theta = problems.load("chebyshev-3-20", "regression", "mse", dtype=torch.float64)
    return train, theta


class Died(Exception):
    pass


def resumed(path, cut, loss, theta, **options):
    """A run, and the same one after it died and went on."""

    def dies(report):
        if report.step > cut:
            raise Died

    whole = gradflow.integrate(loss, theta, **options)
    with pytest.raises(Died):
        gradflow.integrate(
            loss, theta, out=path, checkpoint_every=1e-9, sync_every=0, callback=dies, **options
        )
    again = gradflow.integrate(loss, theta, resume=path, **options).load()
    assert whole.attrs["n_steps"] > cut + 1
    return whole, again


def assert_same(whole, again):
    for name in ("time", "theta", "params", "step_size", "n_gradients", "n_hvps", "n_rejected"):
        if name in whole:
            assert np.array_equal(whole[name], again[name], equal_nan=True), name
    assert whole.attrs["n_rejected_steps"] == again.attrs["n_rejected_steps"]


@dataclass(frozen=True)
class Choosy(Integrator):
    """Euler's method, with the controller that it is given."""

    rule: object
    name: ClassVar[str] = "choosy"
    order: ClassVar[int] = 1

    @property
    def step_rule(self):
        return self.rule

    def step(self, point, h, state):
        return StepResult(point.z + h * point.velocity)


# ---------------------------------------------------------------------- error control by step doubling


def test_step_doubling_estimates_the_error_of_the_two_half_steps():
    loss, start, exact = log_cosh()
    method = StepDoubling(METHODS["rk4"]())
    errors, estimates, hs = [], [], [0.4, 0.2, 0.1]
    for h in hs:
        result = method.step(Field(LossFunction.from_callable(loss)).at(start), h, None)
        errors.append(float((result.z - exact(h)).norm()))
        estimates.append(result.error)
    assert np.array(estimates) / errors == pytest.approx(1.0, abs=0.25)
    assert estimates[-1] / errors[-1] == pytest.approx(1.0, abs=0.1)
    assert np.polyfit(np.log(hs), np.log(estimates), 1)[0] == pytest.approx(method.error_order, abs=0.3)


@pytest.mark.parametrize(
    ("name", "order", "options"),
    [("rk4", 4, {}), ("midpoint", 2, {}), ("heun3", 3, {}), ("expeuler", 1, {"stiff_dim": 1})],
)
def test_a_method_without_an_estimate_follows_the_tolerance_by_step_doubling(name, order, options):
    """A local error of rtol in steps h ~ rtol^{1/(p+1)} makes a global one of rtol^{p/(p+1)}."""
    loss, start, exact = log_cosh()
    errors, counts, rtols = [], [], [1e-2, 1e-3, 1e-4] if order == 1 else [1e-4, 1e-5, 1e-6, 1e-7]
    for rtol in rtols:
        control = ErrorControl(rtol, 1e-2 * rtol)
        run = gradflow.integrate(
            loss, start, method=name, step_size=control, t_max=3.0, save_every=3.0, **options
        )
        errors.append(float((torch.from_numpy(run.params.values) - exact(3.0)).norm()))
        counts.append(run.attrs["n_steps"])
        assert errors[-1] < rtol ** (order / (order + 1))
    assert np.polyfit(np.log(rtols), np.log(errors), 1)[0] == pytest.approx(order / (order + 1), abs=0.12)
    assert np.polyfit(np.log(rtols), np.log(counts), 1)[0] == pytest.approx(-1 / (order + 1), abs=0.06)


def test_rk4_by_step_doubling_costs_eleven_gradients_a_step(chebyshev):
    """Three for the step, three for each half, and the velocity in between and at the end; ten if rejected."""
    train, theta = chebyshev
    by_hand = gradflow.solver("rk4", train, theta, step_size="ErrorControl(rtol=1e-9, atol=1e-12)")
    reports = [by_hand.step() for _ in range(25)]
    rejected = []
    for before, after in pairwise(reports):
        rejected.append(after.n_rejected - before.n_rejected)
        assert after.n_gradients - before.n_gradients == 11 + 10 * rejected[-1]
        assert after.n_hvps == before.n_hvps
    assert reports[0].n_rejected > 0  # the guess of the first step is short


def test_step_doubling_stays_under_a_cap(chebyshev):
    train, theta = chebyshev
    free, capped = (
        gradflow.solver("rk4", train, theta, step_size=ErrorControl(rtol=1e-2, cap=cap))
        for cap in (None, SharpnessCap(alpha=0.5))
    )
    for by_hand, least, most in ((free, 1.5, math.inf), (capped, 0.4, 0.51)):
        products = []
        for _ in range(8):
            λ = float(gradflow.SpectrumService(train).top(1, by_hand.params).values[0])
            products.append(by_hand.step().dt * λ)
        assert least < max(products) < most


def test_a_doubled_step_that_raises_the_loss_is_judged_as_the_method_is():
    doubled = StepDoubling(METHODS["rk4"](loss_rtol=0.25))
    assert doubled.rejects_loss_increase
    assert doubled.loss_tolerance == 0.25
    assert doubled.stability_interval == pytest.approx(2.7853, abs=1e-4)


@dataclass(frozen=True)
class Remembering(Choosy):
    """Euler's method that knows how many velocities it has seen, in a state that only it can make plain."""

    name: ClassVar[str] = "remembering"

    def init(self, point):
        return {1}

    def step(self, point, h, state):
        return StepResult(point.z + h * point.velocity, state=state | {max(state) + 1})

    def after_rejection(self, point, state):
        return state | {-len(state)}

    def state_dict(self, state):
        return sorted(state)

    def load_state(self, saved, point):
        return set(saved)


def test_a_doubled_method_keeps_its_state_its_own_way():
    loss, start, _ = log_cosh()
    field = Field(LossFunction.from_callable(loss))
    stepper = Stepper(Remembering(ErrorControl(rtol=1e-3)), field, start)
    for _ in range(3):
        stepper.advance()
    saved = stepper.state_dict()
    assert saved["integrator"][-7:] == [1, 2, 3, 4, 5, 6, 7]  # two half steps each
    assert saved["integrator"][0] < 0 < stepper.n_rejected
    stepper.load_state_dict(saved)
    stepper.advance()
    assert stepper.state_dict()["integrator"][-1] == 9


# ---------------------------------------------------------------------- steps that are given


@pytest.mark.parametrize(
    ("name", "options"),
    [("rkc", {}), ("exprb43", {"dense": False}), ("rk4", {}), ("dopri5", {}), ("expeuler", {"stiff_dim": 1})],
)
def test_steps_of_a_given_size_are_taken_exactly(name, options, chebyshev):
    run = gradflow.integrate(
        *chebyshev, method=name, step_size=0.05, t_max=1.0, save_every=steps(1), **options
    )
    assert run.time.values == pytest.approx(0.05 * np.arange(21), abs=1e-12)
    assert run.attrs["n_rejected_steps"] == 0
    assert np.all(np.diff(run.train_loss) < 0)


def test_a_cap_alone_sizes_the_steps_of_a_pair():
    H = torch.diag(torch.tensor([40.0, 3.0, 1.0], dtype=torch.float64))
    start = torch.ones(3, dtype=torch.float64)

    def first_steps(step_size):
        by_hand = gradflow.solver("dopri5", lambda x: 0.5 * x @ H @ x, start, step_size=step_size)
        return [by_hand.step().dt for _ in range(3)], by_hand

    sizes, by_hand = first_steps(SharpnessCap())
    assert sizes == pytest.approx([0.9 * METHODS["dopri5"]().stability_interval / 40] * 3)
    assert by_hand.step().n_rejected == 0
    assert first_steps("SharpnessCap(alpha=1.5, max_step=0.02)")[0] == [0.02] * 3
    assert first_steps("SharpnessCap(1.5)")[0] == pytest.approx([1.5 / 40] * 3)
    with pytest.raises(InvalidInputError, match=r"alpha ≤ 3\.307, the stability limit"):
        first_steps(SharpnessCap(alpha=3.4))


def test_a_tolerance_that_is_given_is_that_of_the_phi_functions_too():
    """exprb43 computes them to a tenth of the tolerance: to that of the control, not to the default of its own."""
    loss, start, exact = log_cosh(3.0)
    options = {"method": "exprb43", "dense": False, "t_max": 2.0, "save_every": 2.0}
    own, given = (
        gradflow.integrate(loss, start, **options, **each)
        for each in ({"rtol": 1e-8, "atol": 1e-10}, {"step_size": ErrorControl(rtol=1e-8, atol=1e-10)})
    )
    assert np.array_equal(own.params, given.params)
    assert float((torch.from_numpy(given.params.values) - exact(2.0)).norm()) < 1e-7


# ---------------------------------------------------------------------- as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.05", FixedStep(0.05)),
        (" 1e-2 ", FixedStep(0.01)),
        (2, FixedStep(2.0)),
        (np.float32(0.5), FixedStep(0.5)),
        ("ErrorControl", ErrorControl()),
        ("ErrorControl(rtol=1e-6)", ErrorControl(rtol=1e-6)),
        ("ErrorControl(1e-6, atol=0)", ErrorControl(1e-6, 0)),
        ("SharpnessCap()", SharpnessCap()),
        (
            "ErrorControl(rtol=1e-6, cap=SharpnessCap(alpha=1.0, every=5))",
            ErrorControl(rtol=1e-6, cap=SharpnessCap(alpha=1.0, every=5)),
        ),
        ("ErrorControl(cap=SharpnessCap)", ErrorControl(cap=SharpnessCap())),
        ("FixedStep(0.1)", FixedStep(0.1)),
        ("ErrorControl(max_step=inf)", ErrorControl()),
        (repr(ErrorControl(cap=SharpnessCap(every=2.0))), ErrorControl(cap=SharpnessCap(every=2.0))),
    ],
)
def test_controllers_are_read_from_text(text, expected):
    assert METHODS["rk4"](step_size=text).step_size == expected


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("ErrorControll(rtol=1e-6)", UnknownNameError, "'ErrorControll'; did you mean 'ErrorControl'"),
        ("ErrorControl(rtoll=1e-6)", InvalidTypeError, r"ErrorControl\(rtoll=1e-6\): .*rtoll"),
        ("ErrorControl(rtol=-1)", InvalidInputError, "rtol > 0, got -1"),
        ("ErrorControl(order=0)", InvalidInputError, "order ≥ 1"),
        ("ErrorControl(1e-6, rtol=1e-6)", InvalidTypeError, "multiple values for argument 'rtol'"),
        ("ErrorControl(rtol='small')", InvalidTypeError, "rtol to be a number, got str"),
        ("ErrorControl(cap=1)", InvalidTypeError, "cap as a SharpnessCap"),
        ("ErrorControl(cap=ErrorControl())", InvalidTypeError, "cap as a SharpnessCap"),
        ("ErrorControl(**{'rtol': 1})", InvalidInputError, "Expected step_size as a number"),
        ("SharpnessCap(alpha=2*1)", InvalidInputError, "Expected step_size as a number"),
        ("os.remove('x')", InvalidInputError, "Expected step_size as a number"),
        ("ErrorControl(rtol=", InvalidInputError, "Expected step_size as a number"),
        ("", InvalidInputError, "Expected step_size as a number"),
        ("'0.1'", InvalidInputError, "Expected step_size as a number"),
        ("None", InvalidInputError, "Expected step_size as a number"),
        ("True", InvalidTypeError, "step_size to be a number, got bool True"),
        ("-0.1", InvalidInputError, "step_size > 0, got -0.1"),
        ("0", InvalidInputError, "step_size > 0, got 0"),
        ("FixedStep(0)", InvalidInputError, "step_size > 0, got 0"),
        (-0.1, InvalidInputError, "step_size > 0, got -0.1"),
        (0, InvalidInputError, "step_size > 0, got 0"),
        (math.inf, InvalidInputError, "step_size to be finite"),
        ([0.1], InvalidTypeError, "Expected step_size as a number, .* got list"),
        (ErrorControl, InvalidTypeError, "got the class: ErrorControl"),
    ],
)
def test_what_is_no_controller_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        METHODS["rk4"](step_size=given)


@dataclass(frozen=True)
class Halves(StepSize):
    """A controller of a user's own, which no text names."""

    def propose(self, point, t, step, state, *, fresh=False):
        return Proposal(0.5, 0.5)


@pytest.mark.parametrize("given", [ErrorControl(rtol=1e-6), "ErrorControl(rtol=1e-6)", Halves(), 0.5])
def test_auto_hands_the_controller_on(given):
    loss = LossFunction.from_callable(log_cosh()[0])
    chosen = METHODS["auto"](step_size=given).choose(loss, GradientFlow())
    assert chosen.step_size == METHODS["exprb43"](step_size=given).step_size


@dataclass(frozen=True)
class Short(Choosy):
    """Euler's method, which shortens its steps itself."""

    name: ClassVar[str] = "short"

    def step(self, point, h, state):
        h = min(h, 0.01)
        return StepResult(point.z + h * point.velocity, h=h)


def test_steps_that_a_method_shortens_are_not_doubled():
    """Their lengths would be taken for those that were asked for."""
    loss, start, _ = log_cosh()
    stepper = Stepper(Short(ErrorControl(rtol=0.1)), Field(LossFunction.from_callable(loss)), start)
    with pytest.raises(InvalidInputError, match=r"can't double the steps of short, .* \(StepResult\.h\)"):
        stepper.advance()


def test_the_record_names_the_controller(tmp_path):
    loss, start, _ = log_cosh()
    gradflow.integrate(
        loss, start, method="rk4", step_size=DOUBLED, t_max=1.0, save_every=1.0, out=tmp_path / "x.nc"
    )
    config = open_run(tmp_path / "x.nc").attrs["gradflow_config"]
    assert "ErrorControl(rtol=1e-05, atol=1e-07" in config


# ---------------------------------------------------------------------- what doesn't go together


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("rk4", {"alpha": 0.5}, "alpha belongs to rk4's own"),
        ("rk4", {"max_step": 0.5, "sharpness_every": 1.0}, "max_step, sharpness_every belongs to rk4's own"),
        ("dopri5", {"rtol": 1e-6}, "rtol belongs to dopri5's own"),
        ("dopri5", {"cap": False}, "cap belongs to dopri5's own"),
        ("exprb43", {"rtol": 1e-6}, "rtol belongs to exprb43's own"),
        ("rkc", {"atol": 1e-5}, "atol belongs to rkc's own"),
        ("expeuler", {"stiff_dim": 1, "max_step": 0.2}, "max_step belongs to expeuler's own"),
    ],
)
def test_options_of_a_methods_own_controller_clash_with_another(name, options, named):
    with pytest.raises(InvalidInputError, match=f"{named} step-size controller, which step_size replaces"):
        gradflow.solver(name, lambda x: (x**2).sum(), torch.ones(3), step_size=0.1, **options)


@dataclass(frozen=True)
class Optimiser(Choosy):
    name: ClassVar[str] = "optimiser"
    discrete: ClassVar[bool] = True


@dataclass(frozen=True)
class Limited(Choosy):
    name: ClassVar[str] = "limited"
    limits_itself: ClassVar[bool] = True


def test_error_control_is_refused_where_a_method_sizes_its_own_steps():
    start = torch.ones(3, dtype=torch.float64)
    for name in ("gd", "adam", "adaptive-gd", "scipy:RK45"):
        with pytest.raises(UnknownOptionError, match=f"Method '{name}' has no option 'step_size'"):
            gradflow.solver(name, lambda x: (x**2).sum(), start, step_size=ErrorControl())
    for method, why in (
        (Optimiser, "an optimiser's steps are its learning rate's"),
        (Limited, "its own error"),
    ):
        with pytest.raises(InvalidInputError, match=f"can't size the steps of {method.name}: .*{why}"):
            gradflow.solver(method(ErrorControl()), lambda x: (x**2).sum(), start)


@pytest.mark.parametrize(
    ("rule", "got"), [(0.1, "float"), (None, "NoneType"), (FixedStep, "ABCMeta"), (SharpnessCap, "ABCMeta")]
)
def test_a_rule_that_is_no_controller_is_refused(rule, got):
    with pytest.raises(
        InvalidTypeError, match=rf"Expected choosy.step_rule to give a .*StepSize, got {got}\."
    ):
        gradflow.integrate(lambda x: (x**2).sum(), torch.ones(2), method=Choosy(rule), t_max=1.0)


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("refused", "after_rejection(point, state)"),
        ("portable", "state_dict(state)"),
        ("restore", "load_state(saved, point)"),
        ("watches_loss", "rejects_loss_increase"),
        ("recovers", "allows_nonfinite"),
    ],
)
def test_former_names_of_the_contract_are_refused_with_the_new_ones(former, now):
    with pytest.raises(InvalidTypeError, match=re.escape(f"Mine.{former} has a new name: call it {now}.")):
        type("Mine", (Integrator,), {former: None})


# ---------------------------------------------------------------------- controllers and methods of a user's own


@dataclass(frozen=True)
class Zigzag(StepSize):
    """Long and short steps by turns; what comes next is its state. Every fifth attempt is rejected."""

    long: float = 0.1

    def init(self, point, first_size):
        return {"attempts": 0}

    def propose(self, point, t, step, state, *, fresh=False):
        return Proposal(self.long if state["attempts"] % 2 == 0 else self.long / 4, state=state)

    def judge(self, point, h, result, state):
        attempts = state["attempts"] + 1
        return attempts % 5 != 0, {"attempts": attempts}


@dataclass(frozen=True)
class Ralston(FixedTableau):
    """Ralston's method of order 2: all that a user writes."""

    name: ClassVar[str] = "ralston"
    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = Tableau(A=((), (2 / 3,)), b=(1 / 4, 3 / 4))


def test_a_controller_of_a_users_own_sizes_and_judges_the_steps(tmp_path):
    loss, start, exact = log_cosh()
    by_hand = gradflow.solver("rk4", loss, start, step_size=Zigzag())
    reports = [by_hand.step() for _ in range(10)]
    assert [r.dt for r in reports] == [0.1, 0.025, 0.1, 0.025, 0.025, 0.1, 0.025, 0.1, 0.1, 0.025]
    assert [r.n_rejected for r in reports] == [0] * 4 + [1] * 4 + [2] * 2
    options = {"method": "rk4", "step_size": Zigzag(), "t_max": 2.0, "save_every": 0.5}
    whole, again = resumed(tmp_path / "x.nc", 7, loss, start, **options)
    assert_same(whole, again)
    assert np.abs(whole.params.values - exact(2.0).numpy()).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({"alpha": 0.1}, 5e-3),
        ({"step_size": 0.05}, 1e-3),
        ({"step_size": "ErrorControl(rtol=1e-7)"}, 2e-5),
        ({"step_size": SharpnessCap(max_step=0.05)}, 1e-3),
        ({"step_size": Zigzag(0.05)}, 1e-3),
    ],
)
def test_a_tableau_is_all_that_an_explicit_method_of_a_users_own_needs(options, largest, tmp_path):
    loss, start, exact = log_cosh()
    run = {"method": Ralston(**options), "t_max": 2.0, "save_at": [0.77]}
    whole = gradflow.integrate(loss, start, **run)
    assert whole.attrs["method"] == "ralston"
    assert np.abs(whole.theta.values[1] - exact(0.77).numpy()).max() < largest
    assert np.abs(whole.params.values - exact(2.0).numpy()).max() < largest
    if whole.attrs["n_steps"] > 6:
        assert_same(*resumed(tmp_path / "x.nc", 4, loss, start, **run))


def test_a_users_tableau_integrates_any_flow_and_is_checked():
    loss, start, exact = log_cosh()
    run = gradflow.integrate(
        loss, start, flow=lambda point: -2 * point.gradient, method=Ralston(step_size=0.01), t_max=1.0
    )
    assert run.params.values == pytest.approx(exact(2.0).numpy(), abs=1e-4)
    with pytest.raises(InvalidInputError, match=r"Expected alpha ≤ 2, the stability limit"):
        Ralston(alpha=2.5)


# ---------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dopri5", {}),
        ("dopri8", {}),
        ("dopri5", {"cap": False}),
        ("dopri5", {"step_size": SharpnessCap(every=0.7)}),
        ("rk4", {"step_size": DOUBLED}),
        ("rk4", {"step_size": "ErrorControl(rtol=1e-5, cap=SharpnessCap(alpha=0.4))"}),
        ("exprb43", {"dense": False, "step_size": "ErrorControl(rtol=1e-5)"}),
    ],
)
def test_what_a_controller_knows_survives_a_checkpoint(method, options, chebyshev, tmp_path):
    whole, again = resumed(
        tmp_path / "x.nc", 3, *chebyshev, method=method, t_max=3.0, save_every=0.8, **options
    )
    assert_same(whole, again)


def test_the_state_of_a_run_is_plain(chebyshev):
    """A checkpoint holds the control with the state of its cap."""
    train, theta = chebyshev
    first, second = (Stepper(METHODS["dopri5"](), Field(train), theta) for _ in range(2))
    for _ in range(4):
        first.advance()
    second.load_state_dict(first.state_dict())
    assert second._control.cap.pairs.values == first._control.cap.pairs.values > 0
    for _ in range(12):
        a, b = first.advance(), second.advance()
        assert (a.t, a.dt, a.n_gradients, a.n_hvps) == (b.t, b.dt, b.n_gradients, b.n_hvps)
    assert torch.equal(first.point.z, second.point.z)


@pytest.mark.parametrize(
    ("method", "options", "norm"),
    [
        ("rk4", {}, None),
        ("rk4", {"step_size": "ErrorControl(rtol=1e-5)"}, "l2"),
        ("dopri5", {}, "l2"),
        ("dopri5", {"step_size": "SharpnessCap(alpha=1.0)"}, None),
        ("rkc", {}, "l2"),
        ("rkc", {"step_size": 0.1}, None),
        ("scipy:RK45", {}, "rms"),
        ("torchdiffeq:dopri5", {}, "rms"),
        ("gd", {"lr": 0.1}, None),
    ],
)
def test_the_record_says_what_tolerances_are_in_terms_of(method, options, norm):
    run = gradflow.integrate(
        lambda x: (x**2).sum(), torch.ones(2, dtype=torch.float64), method=method, t_max=0.5, **options
    )
    assert run.attrs.get("error_norm") == norm
