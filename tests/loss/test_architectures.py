"""The networks of Cohen et al. (2021): their sizes, their structure, and exact derivatives of the deep ones."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.utils.data import TensorDataset

import gradflow
from gradflow import problems
from gradflow.problems.datasets import load_data
from gradflow.problems.deep_networks import resnet32, vgg11
from gradflow.problems.networks import make_network

double = torch.float64
ON_CIFAR = {
    **dict.fromkeys([f"fc-{a}" for a in ("relu", "gelu", "elu", "tanh", "hardtanh", "softplus")], 656_810),
    "fc-tanh-depth1": 616_610,
    "fc-tanh-depth3": 697_010,
    "fc-tanh-depth4": 737_210,
    **dict.fromkeys(
        [f"cnn{p}-{a}" for p in ("", "-avgpool") for a in ("relu", "gelu", "elu", "tanh")], 30_634
    ),
    **dict.fromkeys([f"cnn-bn-{a}" for a in ("relu", "elu", "tanh")], 30_762),
    "vgg11": 9_750_922,
    "vgg11-bn": 9_756_426,
    "resnet32": 464_250,
}


def kinds(net, *wanted):
    return [type(m).__name__ for m in net.modules() if isinstance(m, wanted)]


@pytest.mark.parametrize("arch", ON_CIFAR)
def test_parameter_counts_on_cifar(arch, global_generator_untouched):
    with torch.random.fork_rng():
        net = make_network(arch, (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == ON_CIFAR[arch]
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert not kinds(net, nn.Dropout)


def test_order_of_layers():
    layers = (nn.Conv2d, nn.Tanh, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear)
    with torch.random.fork_rng():
        nets = {a: make_network(a, (3, 32, 32), 10) for a in ("cnn-tanh", "cnn-avgpool-tanh", "cnn-bn-tanh")}
    assert kinds(nets["cnn-tanh"], *layers) == ["Conv2d", "Tanh", "MaxPool2d"] * 2 + ["Linear"]
    assert kinds(nets["cnn-avgpool-tanh"], *layers) == ["Conv2d", "Tanh", "AvgPool2d"] * 2 + ["Linear"]
    assert kinds(nets["cnn-bn-tanh"], *layers) == ["Conv2d", "Tanh", "BatchNorm2d", "MaxPool2d"] * 2 + [
        "Linear"
    ]


def test_resnet_blocks_start_as_their_shortcuts():
    with torch.random.fork_rng():
        net = resnet32((3, 32, 32), 10)
    blocks = [m for m in net if type(m).__name__ == "ResidualBlock"]
    assert len(blocks) == 15
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 31  # and the last, linear layer: 32
    x = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0)).relu()
    with torch.no_grad():
        assert torch.equal(blocks[0](x), x)
        y = blocks[5](x)  # into the second stage
    assert y.shape == (2, 32, 16, 16)
    assert bool((y[:, 16:] == 0).all())
    x = x[:, :, ::2, ::2]
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(y[:, :16], ((x - mean) / (var + 1e-5).sqrt()).relu(), atol=1e-5)


def test_deep_linear_on_the_linear_task():
    data = load_data("linear-50-50")
    X, Y = data.train_inputs, data.train_targets
    assert torch.allclose(X.T @ X / 50, torch.eye(50, dtype=double), atol=1e-13)
    A = torch.linalg.solve(X, Y).T
    assert torch.allclose(X @ A.T, Y, atol=1e-12)
    assert float(A.std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(X, data.test_inputs)
    assert torch.equal(Y, load_data("linear-50-50").test_targets)
    train, test, theta = problems.load("linear-50-50", "deeplinear", "mse", dtype=double)
    assert theta.shape == (50_000,)
    assert float(theta.std()) == pytest.approx((2 / 100) ** 0.5, rel=0.02)
    product = torch.linalg.multi_dot([W for W in theta.reshape(20, 50, 50).flip(0)])
    expected = 0.5 * (X @ product.T - Y).square().sum() / 50
    assert float(train(theta)) == pytest.approx(float(expected), rel=1e-12)
    assert float(test(theta)) == float(train(theta))


@pytest.mark.parametrize(
    ("dataset", "arch", "loss", "text"),
    [
        ("digits", "vgg11", "ce", r"VGG-11 is for images of 32×32 pixels; the data have shape \(1, 8, 8\)"),
        ("digits", "resnet32", "ce", "ResNet-32 is for images of 32×32"),
        ("digits", "deeplinear", "mse", "as many outputs as inputs, the data have 64 and 10"),
        ("chebyshev-3-20", "cnn-tanh", "mse", "needs images of at least 4×4 pixels"),
        ("digits", "cnn-sigmoid", "ce", "did you mean 'cnn-softplus'|No architecture"),
        ("digits", "cnn-bn", "ce", "No architecture 'cnn-bn'"),
        ("digits", "regression", "mse", "one input and one output, the data 64 and 10"),
    ],
)
def test_networks_that_do_not_fit_are_refused(dataset, arch, loss, text):
    with pytest.raises((ValueError, KeyError), match=text):
        problems.load(dataset, arch, loss)


# ---------------------------------------------------------------------- batch-norm


@pytest.mark.parametrize("batch_size", [1437, 500])
def test_the_physical_batch_is_the_ghost_batch(batch_size):
    """With batch-norm the loss is the mean over fixed batches, each normalised by itself, as the plain net does."""
    train, test, theta = problems.load("digits", "cnn-bn-tanh", "mse", dtype=double, batch_size=batch_size)
    for loss, n in ((train, 1437), (test, 360)):
        inputs, targets = loss.data.dataset.tensors
        with torch.random.fork_rng():
            net = make_network("cnn-bn-tanh", (1, 8, 8), 10).double().train()
        nn.utils.vector_to_parameters(theta, net.parameters())
        total = sum(
            0.5 * (net(x) - y).square().sum()
            for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
        )
        assert float(loss(theta)) == pytest.approx(total.item() / n, rel=1e-12)
        assert loss.evaluate(theta)[0] == pytest.approx(total.item() / n, rel=1e-12)
    assert train.describe()["batch_size"] == batch_size
    buffers = dict(train.net.named_buffers())
    assert float(buffers["2.running_mean"].abs().max()) == 0  # its running statistics stay as they were


def test_the_ghost_batch_changes_the_loss_of_batch_norm_networks_alone():
    values = {}
    for arch in ("cnn-bn-tanh", "cnn-tanh"):
        for n in (1437, 300):
            train, _, theta = problems.load("digits", arch, "mse", dtype=double, batch_size=n)
            values[arch, n] = float(train(theta))
    assert values["cnn-tanh", 1437] == pytest.approx(values["cnn-tanh", 300], rel=1e-12)
    assert abs(values["cnn-bn-tanh", 1437] / values["cnn-bn-tanh", 300] - 1) > 1e-6


# ---------------------------------------------------------------------- deep networks


def images(n=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 3, 32, 32, generator=generator, dtype=double)
    return TensorDataset(x, torch.arange(n) % 10)


def deep(name, *, smooth=False):
    activation = nn.Softplus if smooth else nn.ReLU
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "resnet32":
            net = resnet32((3, 32, 32), 10, activation=activation)
        else:
            pool = nn.AvgPool2d if smooth else nn.MaxPool2d
            net = vgg11((3, 32, 32), 10, normalized=True, activation=activation, pool=pool)
    return net.double()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet32", "vgg11-bn"])
def test_deep_networks_have_exact_derivatives_and_descend(name):
    net, data = deep(name), images()
    loss = gradflow.LossFunction(data, nn.CrossEntropyLoss(), net, check=None)
    theta = loss.parameters()
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=double)
    value, gradient = loss.gradient(theta)
    Hv = loss.hvp(theta, v)

    names = [n for n, _ in net.named_parameters()]
    buffers = dict(net.named_buffers())
    shapes = [p.shape for p in net.parameters()]

    def cut(flat):
        parts = torch.split(flat, [s.numel() for s in shapes])
        return dict(zip(names, (p.reshape(s) for p, s in zip(parts, shapes, strict=True)), strict=True))

    def plain(flat):
        copies = {k: b.clone() for k, b in buffers.items()}
        return nn.functional.cross_entropy(
            functional_call(net, cut(flat) | copies, data.tensors[0]), data.tensors[1]
        )

    leaf = theta.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(plain(leaf), leaf)
    assert float(value) == pytest.approx(float(plain(theta)), rel=1e-13)
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))
    # a second mode of differentiation: the derivative of the gradient along v, forward
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False  # forward mode can't write them
    _, forward = jvp(torch.func.grad(plain), (theta,), (v,))
    assert float((Hv - forward).norm() / Hv.norm()) < 1e-12

    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = True
    run = gradflow.integrate(loss, theta, method="gd", lr=1e-3, max_steps=2, params_every=gradflow.steps(2))
    losses = run.train_loss.values
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet32", "vgg11-bn"])
def test_derivatives_of_smooth_twins_against_finite_differences(name):
    loss = gradflow.LossFunction(images(), nn.CrossEntropyLoss(), deep(name, smooth=True), check=None)
    theta = loss.parameters()
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=double)
    v /= v.norm()
    _, gradient = loss.gradient(theta)
    Hv = loss.hvp(theta, v)
    ε = 1e-4
    up, down = loss.gradient(theta + ε * v), loss.gradient(theta - ε * v)
    assert float(gradient @ v) == pytest.approx(float(up[0] - down[0]) / (2 * ε), rel=1e-5)
    assert float((Hv - (up[1] - down[1]) / (2 * ε)).norm() / Hv.norm()) < 1e-5
