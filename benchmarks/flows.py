"""The flows that methods are compared on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import cifar, cnn_tanh, fc_tanh
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import gradflow

#: Loss and θ₀, from the directory of CIFAR-10.
Make = Callable[[str | None], tuple[gradflow.LossFunction, Tensor]]


@dataclass(frozen=True)
class Flow:
    """A flow to integrate.

    Attributes
    ----------
    make : callable
    t_max : float
    reference : str
        The method of another library that gives θ*.
    reference_rtol : float
    small : bool
        P ≤ 400, so that a dense Hessian is at hand.
    long : bool
        An explicit method takes minutes.
    """

    make: Make
    t_max: float
    reference: str = "torchdiffeq:dopri8"
    reference_rtol: float = 1e-9
    small: bool = False
    long: bool = False


def named(dataset: str, net: str, criterion: str, dtype: torch.dtype) -> Make:
    """Take one of gradflow's problems."""

    def make(directory: str | None) -> tuple[gradflow.LossFunction, Tensor]:
        train, _, theta = gradflow.problems.load(dataset, net, criterion, dtype=dtype)
        return train, theta

    return make


def images(net: Callable[[], nn.Module], n: int, criterion: str) -> Make:
    """Take a net on CIFAR-10."""

    def make(directory: str | None) -> tuple[gradflow.LossFunction, Tensor]:
        loss = cifar(net, n, criterion, directory)
        return loss, loss.parameters()

    return make


class Sorter(nn.Module):
    """A transformer of two blocks with four heads that says each place of the sorted sequence; logits (b, V, T)."""

    def __init__(self, n_symbols: int = 16, length: int = 8, width: int = 64) -> None:
        super().__init__()
        self.symbols = nn.Embedding(n_symbols, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, n_symbols)

    def forward(self, sequence: Tensor) -> Tensor:
        """Read sequences of symbols, shape (b, T)."""
        x = self.symbols(sequence) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.out(self.norm(x))
        return logits.transpose(1, 2)


class Block(nn.Module):
    """Attention and a two-layer net, each on the normalised stream."""

    def __init__(self, width: int, n_heads: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and transform each place."""
        b, T, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        x = x + self.join((weights @ v).transpose(1, 2).reshape(b, T, width))
        out: Tensor = x + self.net(self.between(x))
        return out


def transformer(directory: str | None) -> tuple[gradflow.LossFunction, Tensor]:
    """Sort 128 sequences of 8 of 16 symbols, cross-entropy over all places; P of about 10⁵."""
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(16, (128, 8), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Sorter()
    data = TensorDataset(sequences, sequences.sort(1).values)
    loss = gradflow.LossFunction(data, nn.CrossEntropyLoss(), net)
    return loss, loss.parameters()


class Residual(nn.Module):
    """Two convolutions with group-norm, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(4, width), nn.GELU()),
            *(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(4, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch computes."""
        out: Tensor = nn.functional.gelu(x + self.branch(x))
        return out


def resnet() -> nn.Module:
    """Two residual blocks of 16 channels on 16 × 16 places."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.GroupNorm(4, 16), nn.GELU()),
        *(Residual(16), Residual(16), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)),
    )


def deep_linear(directory: str | None) -> tuple[gradflow.LossFunction, Tensor]:
    """Learn a 20 × 20 map of rank 3 with three linear layers from weights of size 0.03: from saddle to saddle."""
    generator = torch.Generator().manual_seed(0)

    def orthonormal(k: int) -> Tensor:
        return torch.linalg.qr(torch.randn(20, k, generator=generator, dtype=torch.float64))[0]

    target = (
        orthonormal(3) @ torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)) @ orthonormal(3).T
    )
    inputs = torch.eye(20, dtype=torch.float64) * 20**0.5
    net = nn.Sequential(*(nn.Linear(20, 20, bias=False, dtype=torch.float64) for _ in range(3)))
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(0.03 * torch.randn(20, 20, generator=generator, dtype=torch.float64))
    loss = gradflow.LossFunction(TensorDataset(inputs, inputs @ target.T), gradflow.HalfSquaredError(), net)
    return loss, loss.parameters()


def relu(directory: str | None) -> tuple[gradflow.LossFunction, Tensor]:
    """Take a net with kinks: two hidden layers of 50 ReLUs on the first 500 digits, squared error."""
    train, _, _ = gradflow.problems.load("digits", "fc-tanh", "mse", dtype=torch.float64)
    inputs, targets = (each[:500] for each in train.data.dataset.tensors)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
        ).double()
    loss = gradflow.LossFunction(TensorDataset(inputs, targets), gradflow.HalfSquaredError(), net)
    return loss, loss.parameters()


double, single = torch.float64, torch.float32
FLOWS = {
    "chebyshev-3 short": Flow(
        named("chebyshev-3-20", "regression", "mse", double), 20.0, "scipy:DOP853", small=True
    ),
    "chebyshev-3 long": Flow(
        named("chebyshev-3-20", "regression", "mse", double), 2990.0, "scipy:Radau", small=True, long=True
    ),
    "chebyshev-5 long": Flow(
        named("chebyshev-5-20", "regression", "mse", double), 2990.0, "scipy:Radau", small=True, long=True
    ),
    "deep linear": Flow(deep_linear, 12.0, "scipy:DOP853"),
    "digits relu mse": Flow(relu, 20.0, "scipy:RK45", reference_rtol=1e-7),
    "digits fc-tanh ce": Flow(named("digits", "fc-tanh", "ce", single), 150.0),
    "digits fc-tanh mse": Flow(named("digits", "fc-tanh", "mse", single), 150.0),
    "transformer ce": Flow(transformer, 20.0),
    "cifar cnn-tanh mse": Flow(images(cnn_tanh, 100, "mse"), 10.0),
    "cifar cnn-tanh ce": Flow(images(cnn_tanh, 100, "ce"), 10.0),
    "cifar resnet-gn ce": Flow(images(resnet, 100, "ce"), 10.0),
    "cifar fc-tanh mse short": Flow(images(lambda: fc_tanh(100), 500, "mse"), 8.0),
    "cifar fc-tanh mse 20": Flow(images(lambda: fc_tanh(100), 500, "mse"), 20.0),
    "cifar fc-tanh ce short": Flow(images(lambda: fc_tanh(100), 500, "ce"), 8.0),
    "cifar fc-tanh ce": Flow(images(lambda: fc_tanh(100), 500, "ce"), 20.0),
    "cifar fc-tanh mse long": Flow(images(lambda: fc_tanh(100), 500, "mse"), 100.0, long=True),
}
