"""Flows as values: a function of the point, a class with a Jacobian, and the modified flow, against other solutions."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import gradflow
from gradflow.errors import (
    InvalidInputError,
    InvalidTypeError,
    NonFiniteLossError,
    UnknownNameError,
    UnknownOptionError,
)
from gradflow.flows import FLOWS, Field, ModifiedFlow
from gradflow.flows.field import Differences

double = torch.float64
START = torch.tensor([-1.0, 0.5], dtype=double)


def valley(x):
    return 0.1 * (1 - x[0]) ** 2 + 5 * (x[1] - x[0] ** 2) ** 2


def valley_gradient(x):
    return np.array([-0.2 * (1 - x[0]) - 20 * x[0] * (x[1] - x[0] ** 2), 10 * (x[1] - x[0] ** 2)])


def valley_hessian(x):
    return np.array([[0.2 - 20 * x[1] + 60 * x[0] ** 2, -20 * x[0]], [-20 * x[0], 10.0]])


def solution(velocity, start=START, t=2.0):
    """The end of the flow by SciPy, from formulas of its own."""
    found = solve_ivp(lambda _, x: velocity(x), (0, t), start.numpy(), "DOP853", rtol=1e-12, atol=1e-12)
    return found.y[:, -1]


def end(**options):
    return gradflow.integrate(valley, START, t_max=2.0, save_every=2.0, **options).params.values


def decayed(point):
    return -point.gradient - 0.1 * point.theta


@dataclass(frozen=True)
class WeightDecay(gradflow.Flow):
    """The same as a class, with its Jacobian."""

    strength: float = 0.1
    name = "weight decay"
    symmetric = True

    def velocity(self, point):
        return -(point.gradient + self.strength * point.theta)

    def jacobian(self, point):
        return point.operator(lambda v: -(point.hvp(v) + self.strength * v))


def network_loss(**options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).to(double)
        x, y = torch.randn(12, 3, dtype=double), torch.randn(12, 2, dtype=double)
    data = torch.utils.data.TensorDataset(x, y)
    return gradflow.LossFunction(data, torch.nn.MSELoss(), net, **options)


# ---------------------------------------------------------------------- a function of the point

EXPLICIT = {
    "rk4": {"alpha": 0.25},
    "rkc": {"rtol": 1e-8, "atol": 1e-10},
    "dopri5": {"rtol": 1e-8, "atol": 1e-10},
    "auto": {"rtol": 1e-8, "atol": 1e-10},
    "torchdiffeq:rk4": {"step_size": 0.005},
    "torchdiffeq:dopri5": {"rtol": 1e-8, "atol": 1e-10},
    "scipy:RK45": {"rtol": 1e-8, "atol": 1e-10},
    "scipy:LSODA": {"rtol": 1e-8, "atol": 1e-10},
}


@pytest.mark.parametrize("method", EXPLICIT)
def test_a_function_of_the_point_is_a_flow_for_every_explicit_method(method):
    expected = solution(lambda x: -valley_gradient(x) - 0.1 * x)
    assert np.abs(end(flow=decayed, method=method, **EXPLICIT[method]) - expected).max() < 1e-6


def test_gradient_descent_is_eulers_method_on_the_flow():
    theta = START.clone()
    for _ in range(200):
        theta = theta + 0.01 * (-torch.from_numpy(valley_gradient(theta.numpy())) - 0.1 * theta)
    assert np.allclose(end(flow=decayed, method="gd", lr=0.01), theta, rtol=1e-12)


STIFF = {
    "exprb32": {"rtol": 1e-7, "atol": 1e-9},
    "exprb43": {"rtol": 1e-7, "atol": 1e-9},
    "scipy:Radau": {"rtol": 1e-9, "atol": 1e-11},
    "scipy:BDF": {"rtol": 1e-9, "atol": 1e-11},
}


@pytest.mark.parametrize("method", STIFF)
def test_a_class_with_a_jacobian_is_one_for_stiff_methods(method):
    expected = solution(lambda x: -valley_gradient(x) - 0.1 * x)
    assert np.abs(end(flow=WeightDecay(), method=method, **STIFF[method]) - expected).max() < 1e-6


def test_expeuler_follows_a_quadratic_flow_exactly():
    def bowl(x):
        return 0.5 * (torch.tensor([1.0, 50.0], dtype=double) * x**2).sum()

    run = gradflow.integrate(
        bowl, torch.ones(2, dtype=double), flow=WeightDecay(0.5), method="expeuler", stiff_dim=2, t_max=1.0
    )
    assert np.allclose(run.params, np.exp([-1.5, -50.5]), rtol=1e-10)


@pytest.mark.parametrize(
    ("method", "needs", "would"),
    [("exprb43", "symmetric Jacobian", "rkc, rk4, dopri5"), ("expeuler", "symmetric Jacobian", "rkc, rk4, dopri5"),
     ("adaptive-gd", "symmetric Jacobian", "rkc, rk4, dopri5"), ("scipy:Radau", "Jacobian", "rkc, rk4, dopri5")],
)  # fmt: skip
def test_what_a_flow_lacks_is_said_at_once(method, needs, would):
    options = {"adaptive-gd": {"lr": 0.1}, "expeuler": {"stiff_dim": 1}}.get(method, {})
    with pytest.raises(InvalidInputError) as caught:
        end(flow=decayed, method=method, **options)
    assert str(caught.value) == (
        f"{method} needs a flow with a {needs}, and 'function' has no Jacobian. Use {would}; or, in a subclass of "
        "gradflow.Flow, give it a method jacobian."
    )


def test_optimisers_follow_no_flow():
    with pytest.raises(InvalidInputError, match=r"^adam is an optimiser, .* got flow='modified'\."):
        end(flow="modified", flow_options={"lr": 0.1}, method="adam", lr=0.1)


@pytest.mark.parametrize(
    ("flow", "options", "error", "message"),
    [
        ("modfied", {}, UnknownNameError, "No flow 'modfied'; did you mean 'modified'"),
        ("modified", {}, InvalidTypeError, "Flow 'modified' needs lr: pass lr=…"),
        ("modified", {"lr": -1.0}, InvalidInputError, "Expected lr > 0, got -1.0."),
        ("modified", {"flow_options": {"lr": 1.0, "eta": 2}}, UnknownOptionError, "Flow 'modified' has no option"),
        ("modified", {"lr": 1.0, "flow_options": {"lr": 1.0}}, UnknownOptionError,
         "Options given twice, as keywords and in flow_options: lr."),
        (ModifiedFlow, {}, InvalidTypeError, "Expected a flow as an instance, got the class: ModifiedFlow(…)."),
        (ModifiedFlow(0.1), {"flow_options": {"lr": 1.0}}, UnknownOptionError, "flow is made already"),
        (3.0, {}, InvalidTypeError, "Expected flow as a name, a gradflow.Flow, or a function of the point, got float."),
        (lambda point: 0.0, {}, InvalidTypeError, "return dθ/dt as a Tensor of shape (2,) in torch.float64"),
        (lambda point: point.theta.float(), {}, InvalidTypeError, "got shape (2,) in torch.float32"),
        (lambda point: point.theta.mul_(-1), {}, InvalidInputError, "'function' wrote into what the point gave it"),
        (lambda point: -point.gradient.add_(point.theta), {}, InvalidInputError, "Make new tensors: v = "),
        (lambda point: point.gradient / 0, {}, NonFiniteLossError, "a finite velocity of the flow 'function'"),
    ],
)  # fmt: skip
def test_bad_flows_are_refused(flow, options, error, message):
    with pytest.raises(error) as caught:
        end(flow=flow, method="rk4", **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", ["gd", "rk4", "scipy:RK45"])
@pytest.mark.parametrize(
    ("part", "function", "message"),
    [
        ("velocity", lambda self, point: -point.gradient.sum(), r"the velocity of flow 'bad' .* got shape \(\) in"),
        ("velocity", lambda self, point: -point.gradient.sum()[None], r"velocity of flow 'bad' .* got shape \(1,\)"),
        ("velocity", lambda self, point: -point.gradient.float(), r"in torch\.float64 .* got .* in torch\.float32"),
        ("velocity", lambda self, point: -point.gradient.numpy(), r"the velocity of flow 'bad' .* got ndarray"),
        ("initial", lambda self, theta: theta[:, None], r"flat first state of flow 'bad', got shape \(2, 1\)"),
        ("initial", lambda self, theta: theta.float(), r"first state of flow 'bad' .* got .* in torch\.float32"),
        ("theta", lambda self, z: z[:1], r"θ of a state of flow 'bad' as a Tensor of shape \(2,\) .* got shape \(1,\)"),
    ],
)  # fmt: skip
def test_a_flow_of_another_shape_or_dtype_is_refused(part, function, message, method):
    """It would be broadcast, or would change the dtype of the run."""
    body = {"name": "bad", "velocity": lambda self, point: -point.gradient, part: function}
    bad = dataclass(frozen=True)(type("Bad", (gradflow.Flow,), body))()
    options = {"lr": 0.01} if method == "gd" else {}
    with pytest.raises(InvalidTypeError, match=message):
        gradflow.solver(method, valley, START, flow=bad, **options)


def test_a_velocity_keeps_no_graph():
    strength = torch.ones(2, dtype=double, requires_grad=True)

    @dataclass(frozen=True)
    class Graphed(gradflow.Flow):
        name = "graphed"

        def velocity(self, point):
            return -strength * point.gradient

    point = Field(gradflow.LossFunction.from_callable(valley), Graphed()).at(START)
    assert not point.velocity.requires_grad


def test_an_option_that_flow_and_method_have_must_say_whose_it_is():
    with pytest.raises(
        UnknownOptionError, match=r"Both the flow 'modified' and the method 'gd' have an option 'lr'"
    ):
        end(flow="modified", method="gd", lr=0.1)
    a = end(flow="modified", method="gd", flow_options={"lr": 0.1}, lr=0.01)
    b = end(flow=ModifiedFlow(0.1), method="gd", lr=0.01)
    assert np.array_equal(a, b)


# ---------------------------------------------------------------------- the modified flow

η = 0.02


def modified_velocity(x):
    g = valley_gradient(x)
    return -g - η / 2 * valley_hessian(x) @ g


@pytest.mark.parametrize(
    ("method", "options", "order"),
    [("rk4", {}, 4), ("rkc", {}, 2), ("exprb43", {"krylov_tol": 1e-14, "dense": False}, 4),
     ("exprb43", {"dense": True}, 4), ("exprb32", {"dense": True}, 3)],
)  # fmt: skip
def test_the_modified_flow_has_each_methods_order(method, options, order):
    start = START + torch.tensor([0.5, 0.3], dtype=double)
    expected = solution(modified_velocity, start, 0.4)
    errors = []
    for h in (0.01, 0.005, 0.0025):
        run = gradflow.integrate(
            valley,
            start,
            flow="modified",
            flow_options={"lr": η},
            method=method,
            step_size=h,
            t_max=0.4,
            save_every=0.4,
            **options,
        )
        assert run.attrs["n_steps"] == round(0.4 / h)
        errors.append(np.linalg.norm(run.params - expected))
    slopes = np.log2(np.array(errors[:-1]) / errors[1:])
    assert abs(slopes[-1] - order) < 0.25, (errors, slopes)


@pytest.mark.parametrize("method", ["dopri5", "scipy:Radau", "rkc", "exprb43", "auto"])
def test_the_modified_flow_to_a_tolerance(method):
    expected = solution(modified_velocity)
    for rtol in (1e-5, 1e-8):
        found = end(flow="modified", lr=η, method=method, rtol=rtol, atol=rtol * 1e-2)
        assert np.linalg.norm(found - expected) < 200 * rtol


FIXED = {
    **{name: {"method_options": {"lr": 5e-3}} for name in ("gd", "euler", "adaptive-gd")},
    **{
        prefix + name: {"step_size": 0.005}
        for prefix in ("", "torchdiffeq:")
        for name in ("rk4", "midpoint", "heun2", "heun3")
    },
    **{
        name: {"step_size": 0.01, "options": {"max_order": 4}}
        for name in gradflow.integrators.METHODS
        if "adams" in name
    },
    "expeuler": {"stiff_dim": 1, "max_step": 0.01},
    "torchdiffeq:euler": {"step_size": 0.005},
}


@pytest.mark.parametrize(
    "method",
    [n for n, cls in gradflow.integrators.METHODS.items() if cls.needs is not None and cls.only_for is None],
)
def test_every_method_for_flows_follows_the_modified_flow(method):
    options = FIXED.get(method, {"rtol": 1e-6, "atol": 1e-8})
    found = end(flow="modified", flow_options={"lr": η}, method=method, **options)
    assert np.linalg.norm(found - solution(modified_velocity)) < (1e-2 if method in FIXED else 1e-4)


def test_gradient_descent_is_nearer_to_the_modified_flow_by_an_order():
    distance = {"gradient": [], "modified": []}
    flow = end(method="dopri5", rtol=1e-9, atol=1e-11)
    for lr in (0.005, 0.0025, 0.00125):
        gd = end(method="gd", lr=lr)
        modified = end(flow="modified", lr=lr, method="dopri5", rtol=1e-9, atol=1e-11)
        distance["gradient"].append(np.linalg.norm(gd - flow))
        distance["modified"].append(np.linalg.norm(gd - modified))
    slopes = {name: np.log2(d[-2] / d[-1]) for name, d in distance.items()}
    assert abs(slopes["gradient"] - 1) < 0.1, slopes
    assert abs(slopes["modified"] - 2) < 0.1, slopes


@pytest.mark.parametrize("options", [{}, {"batch_size": 5}, {"batch_size": 5, "memory_budget": 1}])
def test_its_jacobian_is_minus_the_hessian_of_the_modified_loss(options):
    loss = network_loss(**options)
    theta = loss.parameters()

    def modified(x):
        (g,) = torch.autograd.grad(whole(x), x, create_graph=True)
        return whole(x) + η / 4 * (g**2).sum()

    def whole(x):  # in one piece
        return network_loss()(x)

    point = Field(loss, ModifiedFlow(η)).at(theta)
    x = theta.clone().requires_grad_()
    (g,) = torch.autograd.grad(modified(x), x)
    assert torch.allclose(point.velocity, -g, rtol=1e-11, atol=1e-13)
    H = torch.autograd.functional.hessian(modified, theta)
    eye = torch.eye(len(theta), dtype=double)
    assert torch.allclose(point.jacobian @ eye, -H, rtol=1e-9, atol=1e-11)
    assert torch.allclose(point.jacobian @ eye[0], -H[0], rtol=1e-9, atol=1e-11)


def test_what_it_costs_is_counted(monkeypatch):
    calls = {"gradients": 0}
    loss = network_loss(check=None)  # which would evaluate as well, before the first third derivative
    for name in ("evaluated", "linearize"):
        original = getattr(type(loss), name)

        def counted(self, theta, *args, original=original, **options):
            calls["gradients"] += 1
            return original(self, theta, *args, **options)

        monkeypatch.setattr(type(loss), name, counted)
    field = Field(loss, ModifiedFlow(η))
    point = field.at(loss.parameters())
    _ = point.velocity, point.loss, point.gradient
    assert (field.cost.n_gradients, field.cost.n_hvps, field.cost.n_third) == (1, 1, 0)
    _ = point.jacobian @ torch.ones(len(point.z), 3, dtype=double)
    assert (field.cost.n_gradients, field.cost.n_hvps, field.cost.n_third) == (1, 7, 3)
    assert calls["gradients"] == 1


# ---------------------------------------------------------------------- Jacobians that aren't symmetric

ROTATION = torch.tensor([[1.0, 30.0], [-30.0, 2.0]], dtype=double)


@dataclass(frozen=True)
class Spiral(gradflow.Flow):
    """z′ = −A z, A not symmetric; the loss has no part in it."""

    name = "spiral"

    def velocity(self, point):
        return -ROTATION @ point.theta

    def jacobian(self, point):
        return -ROTATION


def test_a_jacobian_that_isnt_symmetric_serves_implicit_and_explicit_methods():
    expected = solution(lambda x: -ROTATION.numpy() @ x, t=1.0)
    for method, options in {
        "scipy:Radau": {"rtol": 1e-7, "atol": 1e-9},
        "dopri5": {"rtol": 1e-7, "atol": 1e-9},
        "rk4": {"alpha": 0.1},
    }.items():
        run = gradflow.integrate(
            valley, START, flow=Spiral(), method=method, t_max=1.0, save_every=1.0, **options
        )
        assert np.allclose(run.params, expected, atol=2e-5), method
    with pytest.raises(InvalidInputError, match="a Jacobian that isn't declared symmetric"):
        gradflow.integrate(valley, START, flow=Spiral(), method="exprb43", t_max=1.0)


def test_rates_are_those_of_the_dense_jacobian():
    largest = np.abs(np.linalg.eigvals(ROTATION.numpy())).max()
    rates = Field(gradflow.LossFunction.from_callable(valley), Spiral()).at(START).rates(1, tol=1e-6)
    assert np.isclose(rates.scale, largest, rtol=1e-10)
    loss = network_loss()
    for flow in (WeightDecay(0.3), ModifiedFlow(0.1)):
        point = Field(loss, flow).at(loss.parameters())
        J = (point.jacobian @ torch.eye(len(point.z), dtype=double)).numpy()
        top = point.rates(2, tol=1e-8).values.numpy()
        assert np.allclose(top, np.linalg.eigvalsh(-J)[::-1][:2], rtol=1e-8)
        by_differences = Differences(point) @ torch.ones(len(point.z), dtype=double)
        assert np.allclose(by_differences, J.sum(1), rtol=1e-5, atol=1e-6)


def test_a_flow_without_a_jacobian_is_capped_by_its_largest_rate():
    loss = network_loss()
    run = gradflow.integrate(loss, flow=lambda point: -3 * point.gradient, method="rk4", t_max=1.0, n_eigs=1)
    sharpness = float(run.eigenvalue[0, 0])
    assert np.isclose(float(run.sharpness_used[1]), 3 * sharpness, rtol=0.02)
    assert np.isclose(float(run.step_size[1]), min(0.005, 1 / (3 * sharpness)), rtol=0.02)


# ---------------------------------------------------------------------- what may rise


def test_the_loss_may_rise_along_a_flow_that_says_so_and_only_there():
    climb = gradflow.integrate(valley, START, flow=lambda point: point.gradient, method="rk4", t_max=0.02)
    assert climb.train_loss[-1] > climb.train_loss[0]
    assert (climb.attrs["n_loss_increases"], climb.attrs["n_rejected_steps"]) == (0, 0)

    class Descent(gradflow.Flow):
        name = "descent"
        raises_loss = False

        def velocity(self, point):
            return point.gradient

    down = gradflow.integrate(valley, START, flow=Descent(), method="rk4", max_steps=3)
    assert down.attrs["n_loss_increases"] > 0


def test_the_flow_is_in_the_record_and_in_the_runs_identity(tmp_path):
    out = tmp_path / "run.nc"
    run = gradflow.integrate(valley, START, flow="modified", lr=η, method="rk4", t_max=0.1, out=out)
    assert run.attrs["flow"] == "modified"
    assert '"flow_options": {"lr": 0.02}' in run.attrs["gradflow_config"]
    with pytest.raises(gradflow.errors.ResumeError, match="flow_options was"):
        gradflow.integrate(
            valley, START, flow="modified", lr=0.1, method="rk4", t_max=0.1, out=out, resume="auto"
        )


def test_a_flow_of_ones_own_is_called_as_its_class():
    class Descent(gradflow.Flow):
        def velocity(self, point):
            return -point.gradient

    assert (
        gradflow.integrate(valley, START, flow=Descent(), method="rk4", t_max=0.1).attrs["flow"] == "Descent"
    )


def test_a_rate_of_another_flow_is_not_called_the_sharpness():
    bowl, start = (lambda x: (x**2).sum()), torch.ones(3, dtype=double)
    runs = [
        gradflow.integrate(bowl, start, flow=flow, method="rk4", t_max=1.0, **options)
        for flow, options in (
            ("gradient", {}),
            ("modified", {"lr": 0.1}),
            ("modified", {"lr": 0.1, "n_eigs": 1}),
        )
    ]
    found = [gradflow.summary(run).get("sharpness") for run in runs]
    assert found[1] is None
    assert (found[0], found[2]) == (pytest.approx(2.0), pytest.approx(2.0))
    drawn = [np.isfinite(gradflow.plot.sharpness(run).lines[0].get_ydata()).any() for run in runs]
    assert drawn == [True, False, True]


def test_every_flow_has_a_name_and_a_source():
    for name, cls in FLOWS.items():
        assert cls.name == name
        assert len(cls.__doc__) > 100


def test_a_velocity_of_its_own_has_no_jacobian_of_another():
    with pytest.raises(
        InvalidTypeError, match=r"would inherit the jacobian of another\. Define jacobian too"
    ):

        class Faster(WeightDecay):
            def velocity(self, point):
                return -2 * point.gradient


def test_a_jacobian_that_is_none_is_refused():
    class Nothing(gradflow.Flow):
        symmetric = True

        def velocity(self, point):
            return -point.gradient

        def jacobian(self, point):
            return None

    with pytest.raises(InvalidInputError, match=r"Nothing\.jacobian returned None\. Return an operator"):
        end(flow=Nothing(), method="exprb43")
