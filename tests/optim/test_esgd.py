"""ESGD-M: its trajectories, its probes, the scales that it doesn't see, and where it becomes unstable."""

import copy
import gc
import io
import json
import warnings
import weakref
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from gradflow.errors import GradflowError, InvalidInputError, InvalidTypeError
from gradflow.optim import ESGD

double = torch.float64
FILE = json.loads((Path(__file__).parents[1] / "data" / "esgd.json").read_text())
REFERENCE = {
    accumulator: next(v for k, v in FILE.items() if k.startswith(entry))
    for accumulator, entry in (("ema", "esgd_v1"), ("max", "esgd_v2"))
}
SETTINGS = {
    "default": {},
    "momentum v=1": {"v": 1.0},
    "qhm betas(.999,.999) v=.7": {"betas": (0.999, 0.999), "v": 0.7},
    "wd0.1": {"weight_decay": 0.1},
    "every3 dwarm2": {"update_d_every": 3, "d_warmup": 2},
    "no lr warmup": {"lr_warmup": 0.0},
}
TRAJECTORIES = [
    (accumulator, setting)
    for accumulator, settings in REFERENCE.items()
    for setting in settings
    if not setting.startswith("hvp_schedule")
]
PLAIN = {"betas": (0.0, 0.0), "v": 0.0, "lr_warmup": 0.0, "eps": 0.0}
BOTH = pytest.mark.parametrize("accumulator", ["ema", "max"])
POWERS = [2.0**10, 2.0**-10]


def parameter(*values):
    return torch.tensor(values, dtype=double, requires_grad=True)


def backward(loss, create_graph):
    """As loss.backward(), without torch's warning of a cycle, which step() breaks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True")
        loss.backward(create_graph=create_graph)


def by_backward(optimizer, f, params):
    optimizer.zero_grad()
    backward(f(params), optimizer.should_create_graph())
    optimizer.step()


def by_backward_with_every_graph(optimizer, f, params):
    optimizer.zero_grad()
    backward(f(params), True)
    optimizer.step()


def by_closure_that_calls_backward(optimizer, f, params):
    def closure():
        optimizer.zero_grad()
        loss = f(params)
        backward(loss, optimizer.should_create_graph())
        return loss

    optimizer.step(closure)


def by_closure(optimizer, f, params):
    optimizer.step(lambda: f(params))


def by_supplied_derivatives(optimizer, f, params):
    def hvp(z):
        assert optimizer.should_create_graph()
        grads = torch.autograd.grad(f(params), params, create_graph=True)
        return torch.autograd.grad(grads, params, z)

    optimizer.step(gradients=torch.autograd.grad(f(params), params), hvp=hvp)


FORMS = [
    by_backward,
    by_backward_with_every_graph,
    by_closure_that_calls_backward,
    by_closure,
    by_supplied_derivatives,
]


def trajectory(make, f, start, n, step=by_closure):
    """θ after every one of n steps, from the values of `start`, shape (n, P)."""
    params = [torch.nn.Parameter(each.clone()) for each in start]
    optimizer = make(params)
    rows = []
    for _ in range(n):
        step(optimizer, f, params)
        rows.append(torch.cat([p.detach().reshape(-1) for p in params]).clone())
    return torch.stack(rows)


def make(**options):
    return lambda params: ESGD(params, **({"seed": 3} | options))


START = [
    torch.tensor([[0.9, -0.4], [0.3, 1.1]], dtype=double),
    torch.tensor([-0.7, 0.2], dtype=double),
    torch.tensor(0.5, dtype=double),
]


def coupled(params):
    """Of a dense, indefinite Hessian, with blocks between all three parameters."""
    θ = torch.cat([p.reshape(-1) for p in params])
    i = torch.arange(1, 8, dtype=double)
    A = 1 / (i[:, None] + i - 1) + torch.diag(
        torch.tensor([3.0, 1.0, -0.5, 2.0, 0.3, 1.0, 0.7], dtype=double)
    )
    return 0.5 * θ @ A @ θ + 0.1 * (θ**4).sum() + 0.2 * (θ[0] * θ[4] * θ[6]).cos()


# Trajectories


@pytest.mark.parametrize("step", FORMS)
@pytest.mark.parametrize(("accumulator", "setting"), TRAJECTORIES)
def test_trajectories_are_the_references(accumulator, setting, step):
    rows = REFERENCE[accumulator][setting]
    assert len(rows) == 10
    a = torch.tensor([100.0, 10.0, 1.0, -1.0, 0.1], dtype=double)

    def f(params):
        θ = torch.cat(params)
        return (0.5 * a * θ**2).sum() + 0.05 * (θ**4).sum() + 5

    start = torch.tensor([1.0, -1.0, 0.5, 0.25, 2.0], dtype=double).split([2, 3])
    options = {"accumulator": accumulator, **SETTINGS[setting]}
    got = trajectory(make(**options), f, start, 60, step)
    for calls, expected in rows.items():
        assert np.abs(got[int(calls) - 1].numpy() - expected).max() < 1e-10


def test_the_reference_holds_what_is_compared():
    assert [setting for _, setting in TRAJECTORIES] == [
        "default", "momentum v=1", "qhm betas(.999,.999) v=.7", "default", "wd0.1", "every3 dwarm2", "no lr warmup"
    ]  # fmt: skip


@BOTH
@pytest.mark.parametrize("step", FORMS[1:])
def test_all_forms_of_a_step_take_the_same(step, accumulator):
    options = {"accumulator": accumulator, "lr": 0.3, "d_warmup": 3, "update_d_every": 4}
    first, other = (trajectory(make(**options), coupled, START, 25, each) for each in (by_backward, step))
    assert torch.equal(first, other)


def test_one_step_worked_by_hand():
    θ = parameter(2.0)
    optimizer = ESGD([θ], lr=0.5, betas=(0.9, 0.99), v=0.6, lr_warmup=0.8, eps=0.1, weight_decay=0.3, seed=0)
    optimizer.step(gradients=[torch.tensor([4.0], dtype=double)], hvp=lambda z: [3 * z[0]])
    optimizer.step(gradients=[torch.tensor([-1.0], dtype=double)], hvp=lambda z: [5 * z[0]])
    one = 2.0 * (1 - 0.3 * 0.1) - 0.1 * 4.0 / 3.1
    m = 0.9 * 0.1 * 4.0 + 0.1 * -1.0
    S = ((0.99 * 0.01 * 9 + 0.01 * 25) / (1 - 0.99**2)) ** 0.5 + 0.1
    η = 0.5 * (1 - 0.8**2)
    two = one * (1 - 0.3 * η) - η * (0.4 * -1.0 + 0.6 * m) / ((1 - 0.6 * 0.9**2) * S)
    assert θ.item() == pytest.approx(two, abs=1e-14)
    assert optimizer.preconditioner()[0].item() == pytest.approx(S, abs=1e-14)


@pytest.mark.parametrize("β1", [0.0, 0.5, 0.99])
@BOTH
def test_the_first_step_is_g_over_S(accumulator, β1):
    start = torch.tensor([1.0, -2.0], dtype=double)
    a = torch.tensor([4.0, -0.1], dtype=double)
    got = trajectory(
        make(betas=(β1, 0.999), accumulator=accumulator, lr=0.7), lambda p: 0.5 * (a * p[0] ** 2).sum(), [start], 1
    )  # fmt: skip
    torch.testing.assert_close(got[0], start - 0.7 * 0.01 * a * start / (a.abs() + 1e-4), rtol=1e-14, atol=0)


# Curvature


@pytest.mark.parametrize(
    ("every", "warmup", "expected"),
    [
        (10, 20, REFERENCE["ema"]["hvp_schedule_calls(1-based)"]),
        (3, 2, [1, 2, *range(5, 61, 3)]),
        (1, 1, list(range(1, 61))),
        (7, 1, list(range(1, 61, 7))),
    ],
)
def test_probes_are_on_schedule(every, warmup, expected):
    θ = parameter(1.0)
    optimizer = ESGD([θ], lr=0.1, update_d_every=every, d_warmup=warmup, seed=0)
    announced, measured = [], []
    for call in range(1, 61):
        if optimizer.should_create_graph():
            announced.append(call)
        optimizer.step(gradients=[θ.detach()], hvp=lambda z, call=call: measured.append(call) or z)
    assert announced == measured == expected
    assert optimizer.n == 60


def test_probes_are_signs_and_unbiased_for_the_squared_row_norms(generator):
    """E[(Hz)²] = diag(H²), with the variance that signs have: 2[(Σ H_ij²)² − Σ H_ij⁴]."""
    A = torch.randn(6, 6, dtype=double, generator=generator)
    H, n = A + A.T, 4000
    params = [torch.zeros(2, 2, dtype=double), torch.zeros(2, dtype=double)]
    probes, products = [], []

    def hvp(z):
        flat = torch.cat([z[0].reshape(-1), z[1]])
        probes.append(flat)
        products.append(H @ flat)
        return [products[-1][:4].reshape(2, 2), products[-1][4:]]

    optimizer = ESGD(params, lr=0.0, betas=(0.0, 0.999), update_d_every=1, generator=generator)
    for _ in range(n):
        optimizer.step(gradients=params, hvp=hvp)
    z, squares = torch.stack(probes), torch.stack(products) ** 2
    assert torch.equal(z.abs(), torch.ones(n, 6, dtype=double))
    correlation = z.T @ z / n - torch.eye(6, dtype=double)
    assert correlation.abs().max() < 5 / n**0.5
    expected = (H @ H).diagonal()
    error = (2 * (expected**2 - (H**4).sum(1)) / n).sqrt()
    assert ((squares.mean(0) - expected).abs() < 5 * error).all()
    eigenvalues, Q = torch.linalg.eigh(H)
    for other in (H.diagonal(), ((Q * eigenvalues.abs()) @ Q.T).diagonal()):  # diag H and diag|H|
        assert ((squares.mean(0) - other**2).abs() > 20 * error).any()
    weights = 0.999 ** torch.arange(n - 1, -1, -1, dtype=double)
    S = (weights @ squares / weights.sum()).sqrt() + 1e-4
    got = torch.cat([each.reshape(-1) for each in optimizer.preconditioner()])
    torch.testing.assert_close(got, S, rtol=1e-11, atol=0)


@BOTH
def test_a_diagonal_hessian_is_measured_exactly(accumulator):
    a = torch.tensor([3.0, -2.0, 0.01], dtype=double)
    for seed in range(5):
        θ = parameter(1.0, 1.0, 1.0)
        optimizer = ESGD([θ], lr=0.0, accumulator=accumulator, eps=0.0, betas=(0.9, 0.5), seed=seed)
        for _ in range(3):
            optimizer.step(lambda: 0.5 * (a * θ**2).sum())  # noqa: B023
            torch.testing.assert_close(optimizer.preconditioner()[0], a.abs(), rtol=1e-14, atol=0)


def test_the_average_forgets_a_curvature_and_the_maximum_keeps_it():
    """After one probe of 10 and nine of 0."""

    def S(accumulator, β2):
        curvature = iter([10.0] + [0.0] * 9)
        θ = parameter(1.0)
        optimizer = ESGD([θ], betas=(0.9, β2), accumulator=accumulator, eps=0.0, seed=0)
        for _ in range(10):
            optimizer.step(gradients=[θ.detach() * 0], hvp=lambda z: [next(curvature) * z[0]])
        return optimizer.preconditioner()[0].item()

    assert S("ema", 0.5) == pytest.approx(10 * (0.5**9 * 0.5 / (1 - 0.5**10)) ** 0.5, rel=1e-12)
    assert S("max", 0.5) == pytest.approx(10 * 0.5**4.5, rel=1e-12)
    assert S("max", 1.0) == 10.0


def test_newton_steps():
    """One step to the minimum, away from the maximum, in any units."""
    a = torch.tensor([100.0, 1.0, 1e-3, -5.0], dtype=double)
    start = torch.tensor([1.0, -2.0, 3.0, 4.0], dtype=double)
    got = trajectory(make(**PLAIN), lambda p: 0.5 * (a * p[0] ** 2).sum(), [start], 1)[0]
    torch.testing.assert_close(got, torch.tensor([0.0, 0.0, 0.0, 8.0], dtype=double), rtol=0, atol=1e-15)


def test_a_saddle_repels():
    a = torch.tensor([2.0, -0.1], dtype=double)
    start = torch.tensor([1.0, 1e-6], dtype=double)
    got = trajectory(make(lr=0.1, lr_warmup=0.0), lambda p: 0.5 * (a * p[0] ** 2).sum(), [start], 300)
    assert got[-1, 0].abs() < 1e-6
    assert got[-1, 1] > 1


def test_a_rotation_is_seen():
    """The preconditioner is diagonal: on a rotated quadratic the Newton step misses."""
    a = torch.tensor([100.0, 1.0], dtype=double)
    Q = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=double)
    start = torch.tensor([1.0, 1.0], dtype=double)
    got = trajectory(make(**PLAIN), lambda p: 0.5 * (a * (Q @ p[0]) ** 2).sum(), [start], 1)[0]
    assert got.norm() > 0.1


# Scales: f(θ) against c f(θ), and against f(θ/c) from cθ. A rule is the power of c that lr needs.


def sgd(lr):
    return lambda params: torch.optim.SGD(params, lr=0.02 * lr, momentum=0.9)


def adam(lr):
    return lambda params: torch.optim.Adam(params, lr=0.02 * lr, eps=0.0)


def esgd(lr, **options):
    return make(**({"lr": 0.3 * lr, "eps": 0.0, "weight_decay": 0.1, "d_warmup": 5} | options))


def esgd_max(lr):
    return esgd(lr, accumulator="max")


def by_torchs_convention(optimizer, f, params):
    if isinstance(optimizer, ESGD):
        return by_closure(optimizer, f, params)
    return by_backward_without_graph(optimizer, f, params)


def by_backward_without_graph(optimizer, f, params):
    optimizer.zero_grad()
    f(params).backward()
    optimizer.step()


RULES = {"esgd": (esgd, 0, 0), "esgd-max": (esgd_max, 0, 0), "adam": (adam, 0, 1), "sgd": (sgd, -1, 2)}


def scaled(kind, c, maker):
    """The trajectory in scaled units, brought back to the old ones."""
    if kind == "loss":
        return trajectory(maker, lambda p: c * coupled(p), START, 60, by_torchs_convention)
    start = [c * each for each in START]
    return trajectory(maker, lambda p: coupled([each / c for each in p]), start, 60, by_torchs_convention) / c


@pytest.mark.parametrize("kind", ["loss", "params"])
@pytest.mark.parametrize("name", RULES)
def test_scales_change_the_trajectory_as_each_optimiser_rules(name, kind):
    optimizer, of_loss, of_params = RULES[name]
    power = of_loss if kind == "loss" else of_params
    plain = trajectory(optimizer(1.0), coupled, START, 60, by_torchs_convention)
    assert (plain[-1] - plain[0]).norm() > 0.3
    for c in POWERS:
        assert torch.equal(scaled(kind, c, optimizer(c**power)), plain)
    assert (scaled(kind, 10.0, optimizer(10.0**power)) - plain).abs().max() < 1e-13
    for wrong in {-1, 0, 1, 2} - {power}:
        assert not (scaled(kind, 10.0, optimizer(10.0**wrong)) - plain).abs().max() < 0.05


def test_eps_sees_scales():
    """ε is a curvature: in smaller units of θ it is far above the Hessian, and the steps vanish."""
    maker = esgd(1.0, eps=1e-4, weight_decay=0.0)
    plain = trajectory(maker, coupled, START, 60)
    travelled = (plain[-1] - plain[0]).norm()
    assert (scaled("params", 2.0**10, maker) - plain)[-1].norm() > 0.5 * travelled
    deviation = (scaled("loss", 2.0**10, maker) - plain).abs().max()
    assert 1e-9 < deviation < 0.01  # ε/H: small, but not rounding


# Momentum


@pytest.mark.parametrize(("β1", "v"), [(0.9, None), (0.9, 0.0), (0.9, 1.0), (0.999, 0.7), (0.0, 0.5)])
def test_momentum_is_quasi_hyperbolic(β1, v):
    """After t steps, gradient s has the weight [v(1−β)βᵗ⁻ˢ + (1−v)δ_st]/(1 − vβᵗ); these sum to one."""
    gradients = torch.sin(torch.arange(1, 31, dtype=double) ** 2)
    θ = parameter(0.0)
    optimizer = ESGD([θ], lr=0.5, betas=(β1, 0.999), v=v, lr_warmup=0.0, eps=0.0, seed=0)
    ν = β1 if v is None else v
    for t in range(1, 31):
        before = θ.item()
        optimizer.step(gradients=[gradients[t - 1 : t]], hvp=lambda z: [2.0 * z[0]])
        weights = ν * (1 - β1) * β1 ** torch.arange(t - 1, -1, -1, dtype=double)
        weights[-1] += 1 - ν
        weights /= 1 - ν * β1**t
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
        assert θ.item() - before == pytest.approx(-0.5 * (weights @ gradients[:t]).item() / 2, abs=1e-12)


def spectral_radius(μ, η, β, v):
    """Of (θ, m) ↦ (θ', m') on ½λθ² with λ/S = μ, when the bias has died out."""
    m = np.array([(1 - β) * μ, β])
    θ = np.array([1.0, 0.0]) - η * ((1 - v) * np.array([μ, 0.0]) + v * m)
    return np.abs(np.linalg.eigvals(np.stack([θ, m]))).max()


@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize(("β", "v"), [(0.0, 0.0), (0.5, 0.5), (0.9, 0.9), (0.9, 1.0), (0.9, 0.0), (0.8, 0.3)])
def test_stable_up_to_the_threshold(β, v, damping):
    λ = 3.0
    μ = 1 / (1 + damping)  # λ/S with S = λ + ε, ε = λ·damping
    threshold = 2 * (1 + β) / ((1 + β - 2 * v * β) * μ)
    assert spectral_radius(μ, threshold, β, v) == pytest.approx(1.0, abs=1e-12)
    assert spectral_radius(μ, 0.99 * threshold, β, v) < 1
    assert spectral_radius(μ, 1.01 * threshold, β, v) > 1
    ends = []
    for lr in (0.98 * threshold, 1.02 * threshold):
        θ = parameter(1.0)
        optimizer = ESGD([θ], lr=lr, betas=(β, 0.999), v=v, lr_warmup=0.0, eps=λ * damping, seed=0)
        sizes = []
        for _ in range(800):
            optimizer.step(gradients=[λ * θ.detach()], hvp=lambda z: [λ * z[0]])
            sizes.append(abs(θ.item()))
        assert optimizer.preconditioner()[0].item() == pytest.approx(λ / μ, rel=1e-12)
        ends.append(max(sizes[-50:]) / max(sizes[100:150]))
    assert ends[0] < 0.1
    assert ends[1] > 10


# Hazards


def test_an_affine_parameter_has_no_curvature():
    """The last bias under a mean of outputs, whose gradient has no graph though one was asked for."""
    x = torch.linspace(-1, 2, 15, dtype=double).reshape(5, 3)
    params = [
        nn.Parameter(torch.linspace(-1, 1, n, dtype=double).reshape(shape) + 0.1)
        for n, shape in ((12, (3, 4)), (4, (4,)), (8, (4, 2)), (2, (2,)))
    ]
    optimizer = ESGD(params, lr=1e-3, seed=0)
    before = [p.detach().clone() for p in params]
    W, b, V, c = params
    backward(((x @ W + b).tanh() @ V + c).mean(), True)
    assert not params[-1].grad.requires_grad
    optimizer.step()
    S = optimizer.preconditioner()
    assert torch.equal(S[-1], torch.full((2,), 1e-4, dtype=double))
    assert S[0].min() > 1.1e-4
    torch.testing.assert_close(before[-1] - params[-1], torch.full((2,), 0.05, dtype=double))


def test_a_gradient_without_curvature_moves_far():
    start = torch.tensor([1.0, 1.0], dtype=double)
    got = trajectory(make(), lambda p: p[0][0] + p[0][1] ** 2, [start], 1)[0]
    assert got[0].item() == pytest.approx(-99.0, abs=1e-10)


@BOTH
def test_nothing_over_nothing_is_nothing(accumulator):
    start = torch.tensor([1.0, 2.0], dtype=double)
    got = trajectory(make(eps=0.0, accumulator=accumulator), lambda p: p[0][0] ** 2, [start], 30)
    assert torch.equal(got[:, 1], torch.full((30,), 2.0, dtype=double))
    assert not torch.equal(got[0, 0], got[-1, 0])
    θ = parameter(1.0)
    optimizer = ESGD([θ], eps=0.0, accumulator=accumulator, seed=0)
    optimizer.step(gradients=[torch.ones(1, dtype=double)], hvp=lambda z: [None])
    assert torch.isinf(θ)  # but a gradient over nothing isn't


def test_a_loss_without_any_curvature_is_refused():
    θ = parameter(1.0, 2.0)
    optimizer = ESGD([θ], d_warmup=1, update_d_every=100, seed=0)
    θ.sum().backward()
    with pytest.raises(GradflowError, match=r"create_graph=optimizer.should_create_graph\(\)"):
        optimizer.step()
    with pytest.raises(InvalidInputError, match="affine in every parameter"):
        optimizer.step(lambda: θ.sum())
    with pytest.raises(InvalidInputError, match="or give step\\(\\) hvp"):
        optimizer.step(gradients=[torch.ones(2, dtype=double)])
    assert (optimizer.n, optimizer.u, len(optimizer.state)) == (0, 0, 0)
    assert torch.equal(θ, torch.tensor([1.0, 2.0], dtype=double))
    optimizer.step(lambda: (θ**2).sum())
    optimizer.step(lambda: θ.sum())  # no probe, no complaint
    assert optimizer.n == 2


def test_a_parameter_without_gradient_is_left_alone():
    def f(params):
        return (params[0] ** 2).sum() + (params[0].sum() * params[2]).sin()

    used, unused = START[:2], torch.tensor([7.0], dtype=double)
    options = {"weight_decay": 0.1, "lr": 0.1, "seed": 1}
    alone = trajectory(
        lambda params: ESGD(params, **options), lambda p: f([p[0], None, p[1]]), [used[0], START[2]], 25
    )
    among = trajectory(lambda params: ESGD(params, **options), f, [used[0], unused, START[2]], 25)
    assert torch.equal(among[:, 4], torch.full((25,), 7.0, dtype=double))
    assert torch.equal(among[:, [0, 1, 2, 3, 5]], alone)


def test_supplied_derivatives_of_a_part_of_the_parameters():
    a, b = parameter(1.0), parameter(2.0, 3.0)
    optimizer = ESGD([a, b], lr_warmup=0.0, seed=0)
    seen = []
    optimizer.step(gradients=[None, b.detach()], hvp=lambda z: seen.append(z) or z)
    assert torch.equal(seen[0][0], torch.zeros(1, dtype=double))
    assert torch.equal(seen[0][1].abs(), torch.ones(2, dtype=double))
    assert a.item() == 1.0
    assert b.detach().abs().max() < 1e-3
    assert optimizer.preconditioner()[0] is None


@BOTH
def test_a_parameter_that_comes_late_waits_for_its_first_probe(accumulator):
    a, b = parameter(1.0), parameter(1.0)
    optimizer = ESGD([a], d_warmup=1, update_d_every=4, accumulator=accumulator, weight_decay=0.1, seed=0)
    optimizer.step(lambda: (a**2).sum())
    optimizer.add_param_group({"params": [b]})
    values = []
    for _ in range(5):
        optimizer.step(lambda: (a**2).sum() + (b**2).sum())
        values.append(b.item())
    assert values[:3] == [1.0, 1.0, 1.0]
    assert values[4] < values[3] < 1.0


def test_weight_decay_is_of_the_warmed_up_rate():
    start = [torch.tensor([2.0], dtype=double)]
    got = trajectory(make(lr=0.5, weight_decay=0.2, lr_warmup=0.9), lambda p: 0 * p[0].sum() ** 2, start, 3)
    rates = 0.5 * (1 - 0.9 ** torch.arange(1, 4, dtype=double))
    torch.testing.assert_close(got[:, 0], 2 * (1 - 0.2 * rates).cumprod(0), rtol=1e-14, atol=0)


def test_groups_have_options_of_their_own():
    a, b, c = parameter(1.0), parameter(1.0), parameter(1.0)
    groups = [
        {"params": [a]},
        {"params": [b], "lr": 0.1, "nu": 0.25, "eps": 1.0},
        {"params": [c], "betas": (0.5, 0.9)},
    ]
    optimizer = ESGD(groups, lr=1.0, v=0.5, lr_warmup=0.0, seed=0)
    assert [group["v"] for group in optimizer.param_groups] == [0.5, 0.25, 0.5]
    optimizer.step(lambda: (a**2 + b**2 + c**2).sum())
    assert a.item() == pytest.approx(1e-4 / 2, rel=1e-3)
    assert b.item() == pytest.approx(1 - 0.1 * 2 / 3, rel=1e-12)
    assert [round(S.item(), 10) for S in optimizer.preconditioner()] == [2.0001, 3.0, 2.0001]


def test_without_v_momentum_is_nesterovs_whatever_becomes_of_beta():
    default, nesterov, nu = (
        trajectory(make(lr=0.3, **options), coupled, START, 20)
        for options in ({}, {"v": 0.9}, {"nu": 0.9})
    )  # fmt: skip
    assert torch.equal(default, nesterov)
    assert torch.equal(default, nu)

    def later(params):  # as torch's OneCycleLR does
        optimizer = ESGD(params, lr=0.3, seed=3)
        optimizer.param_groups[0]["betas"] = (0.5, 0.999)
        return optimizer

    expected = trajectory(make(lr=0.3, betas=(0.5, 0.999), v=0.5), coupled, START, 20)
    assert torch.equal(trajectory(later, coupled, START, 20), expected)
    assert not torch.equal(default, expected)


def test_schedulers_multiply_in():
    start = [torch.tensor([1.0], dtype=double)]
    θ = parameter(1.0)
    optimizer = ESGD([θ], seed=0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    optimizer.step(lambda: (θ**2).sum())
    scheduler.step()
    first = trajectory(make(), lambda p: (p[0] ** 2).sum(), start, 1)[0]
    optimizer.step(lambda: (θ**2).sum())
    assert torch.equal(θ.detach(), first)
    assert first.item() < 1


# Memory


class Token:
    """Something that lives as long as the graph that holds it."""


class Mark(torch.autograd.Function):
    """The identity, with a token in its node of the graph."""

    tokens: ClassVar[list[weakref.ref]] = []

    @staticmethod
    def forward(ctx, x):
        ctx.token = Token()
        Mark.tokens.append(weakref.ref(ctx.token))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.fixture
def collector_off():
    gc.collect()
    gc.disable()
    Mark.tokens.clear()
    yield
    gc.enable()
    Mark.tokens.clear()


def cubes(params):
    return (Mark.apply(params[0]) ** 3).sum()


def alive():
    return sum(token() is not None for token in Mark.tokens)


@pytest.mark.parametrize("step", FORMS)
@pytest.mark.usefixtures("collector_off")
def test_no_graph_outlives_its_step(step):
    params = [parameter(1.0, 2.0)]
    optimizer = ESGD(params, lr=0.01, update_d_every=2, seed=0)
    counts = []
    for call in range(1, 41):
        step(optimizer, cubes, params)
        assert alive() == 0
        if call % 20 == 0:
            counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    assert len(Mark.tokens) >= 40
    assert counts[0] == counts[1]
    assert params[0].grad is None or not params[0].grad.requires_grad


class Watch(torch.autograd.Function):
    """The identity, which notes whether its derivative is being recorded."""

    recorded: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Watch.recorded.append(torch.is_grad_enabled())
        return grad


def test_a_closures_loss_gets_a_graph_only_where_one_is_needed():
    θ = parameter(1.0)
    for hvp, expected in ((None, [True, True, False, False, True, False]), (lambda z: z, [False] * 6)):
        optimizer = ESGD([θ], d_warmup=2, update_d_every=3, seed=0)
        for each in expected:
            Watch.recorded.clear()
            optimizer.step(lambda: (Watch.apply(θ) ** 2).sum(), hvp=hvp)
            assert Watch.recorded[0] is each


@pytest.mark.usefixtures("collector_off")
def test_a_graph_without_a_step_outlives_it():
    """What the test above would see if step() didn't break the cycle."""
    θ = parameter(1.0, 2.0)
    backward(cubes([θ]), True)
    gc.collect()
    assert alive() == 1
    θ.grad = None
    assert alive() == 0


def test_a_returned_loss_has_no_graph():
    θ = parameter(3.0)
    loss = ESGD([θ], seed=0).step(lambda: (θ**2).sum())
    assert loss.item() == 9.0
    assert not loss.requires_grad
    assert ESGD([θ], seed=0).step(gradients=[θ.detach()], hvp=lambda z: z) is None


def test_a_stale_gradient_isnt_taken_for_the_closures():
    """The rule for the two kinds of closure: what it leaves in grad counts, what was there before doesn't."""
    plain, stale = parameter(1.0), parameter(1.0)
    stale.grad = torch.full((1,), 1e6, dtype=double)
    for θ in (plain, stale):
        ESGD([θ], seed=0).step(lambda θ=θ: (θ**2).sum())
        assert θ.grad is None
    assert torch.equal(plain, stale)


# Saved and loaded


@BOTH
@pytest.mark.parametrize("at", [3, 22, 25])
def test_a_run_continues_from_its_state(accumulator, at):
    options = {"accumulator": accumulator, "lr": 0.2}
    expected = trajectory(make(**options), coupled, START, 45)
    params = [nn.Parameter(each.clone()) for each in START]
    optimizer = ESGD(params, seed=3, **options)
    for _ in range(at):
        by_closure(optimizer, coupled, params)
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    for _ in range(5):  # the state that was saved is a copy
        by_closure(optimizer, coupled, params)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    params = [nn.Parameter(each.detach().clone()) for each in saved["params"]]
    optimizer = ESGD(params, accumulator=accumulator, update_d_every=99, d_warmup=99)
    optimizer.load_state_dict(saved["optimizer"])
    assert (optimizer.n, optimizer.update_d_every, optimizer.d_warmup) == (at, 10, 20)
    for row in expected[at:]:
        by_closure(optimizer, coupled, params)
        assert torch.equal(torch.cat([p.detach().reshape(-1) for p in params]), row)


def test_a_copy_continues_too():
    params = [nn.Parameter(each.clone()) for each in START]
    optimizer = ESGD(params, seed=3, d_warmup=4, update_d_every=3)
    for _ in range(5):
        by_closure(optimizer, coupled, params)
    twins, twin = copy.deepcopy((params, optimizer))
    for _ in range(6):
        by_closure(optimizer, coupled, params)
    for _ in range(6):
        by_closure(twin, coupled, twins)
    assert all(torch.equal(a, b) for a, b in zip(params, twins, strict=True))
    assert not any(a is b for a, b in zip(params, twins, strict=True))


def test_states_of_others_are_refused():
    θ = parameter(1.0)
    optimizer = ESGD([θ], seed=0)
    with pytest.raises(InvalidInputError, match="Expected a state of ESGD"):
        optimizer.load_state_dict(torch.optim.SGD([θ], lr=0.1).state_dict())
    with pytest.raises(InvalidInputError, match="accumulator='ema', got 'max'"):
        optimizer.load_state_dict(ESGD([θ], accumulator="max").state_dict())


def test_without_a_seed_probes_come_from_torchs_generator():
    def go(seed):
        torch.manual_seed(seed)
        return trajectory(lambda params: ESGD(params), coupled, START, 5)

    with torch.random.fork_rng():
        one, same, other = go(1), go(1), go(2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert "generator" not in ESGD([parameter(1.0)]).state_dict()["esgd"]
    seeded = [
        trajectory(maker, coupled, START, 5)
        for maker in (make(seed=5), make(seed=None, generator=torch.Generator().manual_seed(5)), make(seed=6))
    ]
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])


# Mistakes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": -1.0}, "Expected lr ≥ 0, got -1.0"),
        ({"lr": float("nan")}, "Expected lr to be finite, got nan"),
        ({"lr": float("inf")}, "Expected lr to be finite, got inf"),
        ({"betas": (1.0, 0.9)}, "Expected β₁ of betas < 1, got 1.0"),
        ({"betas": (-0.1, 0.9)}, "Expected β₁ of betas ≥ 0, got -0.1"),
        ({"betas": (0.9, 1.0)}, "Expected β₂ of betas < 1, got 1.0"),
        ({"betas": (0.9, -0.1)}, "Expected β₂ of betas ≥ 0, got -0.1"),
        ({"betas": (0.9, 1.01), "accumulator": "max"}, "Expected β₂ of betas ≤ 1, got 1.01"),
        ({"betas": (0.9, -0.01), "accumulator": "max"}, "Expected β₂ of betas ≥ 0, got -0.01"),
        ({"v": 1.5}, "Expected v ≤ 1, got 1.5"),
        ({"v": -0.5}, "Expected v ≥ 0, got -0.5"),
        ({"nu": 1.5}, "Expected v ≤ 1, got 1.5"),
        ({"v": 0.5, "nu": 0.5}, "one option"),
        ({"v": 0.9, "accumulator": "max"}, "no v with accumulator='max'"),
        ({"lr_warmup": 1.0}, "Expected lr_warmup < 1, got 1.0"),
        ({"lr_warmup": -0.1}, "Expected lr_warmup ≥ 0, got -0.1"),
        ({"eps": -1e-9}, "Expected eps ≥ 0, got -1e-09"),
        ({"weight_decay": -0.1}, "Expected weight_decay ≥ 0, got -0.1"),
        ({"update_d_every": 0}, "update_d_every ≥ 1, got 0"),
        ({"d_warmup": 0}, "d_warmup ≥ 1, got 0"),
        ({"accumulator": "mean"}, "'ema' or 'max', got 'mean'"),
        ({"seed": 1, "generator": torch.Generator()}, "seed or generator, got both"),
    ],
)
def test_values_out_of_range(options, text):
    with pytest.raises(InvalidInputError, match=text):
        ESGD([parameter(1.0)], **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": "1"}, "lr to be a number, got str '1'"),
        ({"lr": True}, "lr to be a number, got bool"),
        ({"lr": torch.tensor(1.0)}, "lr to be a number, got Tensor"),
        ({"betas": 0.9}, "pair of numbers"),
        ({"betas": (0.9,)}, "pair of numbers"),
        ({"betas": (0.9, "x")}, "β₂ of betas to be a number"),
        ({"v": "x"}, "v to be a number"),
        ({"update_d_every": 1.5}, "update_d_every to be an int, got float"),
        ({"d_warmup": True}, "d_warmup to be an int, got bool"),
        ({"seed": 1.5}, "seed to be an int"),
        ({"generator": 7}, "torch.Generator, got int"),
    ],
)
def test_values_of_a_wrong_type(options, text):
    with pytest.raises(InvalidTypeError, match=text):
        ESGD([parameter(1.0)], **options)


def test_the_ends_of_the_ranges_are_taken():
    θ = [parameter(1.0)]
    ESGD(θ, lr=0, betas=(0, 0), v=0, lr_warmup=0, eps=0, weight_decay=0, update_d_every=1, d_warmup=1)
    ESGD(θ, v=1)
    assert ESGD(θ, betas=(0.9, 1), accumulator="max").param_groups[0]["betas"] == (0.9, 1.0)


def test_groups_are_checked():
    optimizer = ESGD([parameter(1.0)], accumulator="max")
    with pytest.raises(InvalidInputError, match="Expected lr ≥ 0"):
        optimizer.add_param_group({"params": [parameter(1.0)], "lr": -1})
    with pytest.raises(InvalidInputError, match="no v with"):
        optimizer.add_param_group({"params": [parameter(1.0)], "nu": 0.5})
    with pytest.raises(InvalidTypeError, match="complex64"):
        optimizer.add_param_group({"params": [torch.ones(1, dtype=torch.complex64)]})
    assert len(optimizer.param_groups) == 1


def one(dtype=double):
    return torch.ones(1, dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({}, InvalidInputError, "got None for every parameter"),
        ({"gradients": [None]}, InvalidInputError, "got None for every parameter"),
        ({"gradients": []}, InvalidInputError, "gradients for 1 parameters, got 0"),
        ({"gradients": one()}, InvalidTypeError, "gradients as a list of tensors, got Tensor"),
        ({"gradients": [1.0]}, InvalidTypeError, "gradients as tensors, got float at 0"),
        ({"gradients": [torch.ones(2, dtype=double)]}, InvalidInputError, r"\(\(1,\), torch.float64, 'cpu'\) at 0"),
        ({"gradients": [one(torch.float32)]}, InvalidInputError, r"got \(\(1,\), torch.float32"),
        ({"gradients": [one().to_sparse()]}, InvalidInputError, "dense gradients, got torch.sparse_coo"),
        ({"gradients": [one()], "hvp": lambda z: z[0]}, InvalidTypeError, "hvp's products as a list"),
        ({"gradients": [one()], "hvp": lambda z: [*z, *z]}, InvalidInputError, "for 1 parameters, got 2"),
        ({"gradients": [one()], "hvp": lambda z: [z[0].float()]}, InvalidInputError, "hvp's products of its"),
        ({"gradients": [one()], "closure": lambda: 0}, InvalidInputError, "a closure or gradients, got both"),
        ({"closure": lambda: 1.0}, InvalidTypeError, "got 1.0 and no gradient"),
        ({"closure": lambda: torch.ones(())}, InvalidTypeError, "Don't detach"),
    ],
)  # fmt: skip
def test_steps_that_cant_be_taken(arguments, kind, text):
    θ = parameter(1.0)
    optimizer = ESGD([θ], seed=0)
    with pytest.raises(kind, match=text):
        optimizer.step(**arguments)
    assert (optimizer.n, θ.item(), len(optimizer.state)) == (0, 1.0, 0)


def test_sparse_gradients_are_refused_on_every_step():
    table = nn.Embedding.from_pretrained(torch.ones(3, 2, dtype=double), freeze=False, sparse=True)
    optimizer = ESGD(table.parameters(), d_warmup=1, seed=0)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InvalidInputError, match="dense gradients"):
        optimizer.step()
    optimizer.step(gradients=[torch.ones(3, 2, dtype=double)], hvp=lambda z: z)
    assert not optimizer.should_create_graph()
    with pytest.raises(InvalidInputError, match="dense gradients"):
        optimizer.step()
