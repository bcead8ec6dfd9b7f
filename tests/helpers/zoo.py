"""One network of every kind, with data, small enough for a dense Hessian.

A case is made by a function of a generator; everything is drawn from that.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import TensorDataset


@dataclass
class Case:
    net: nn.Module
    criterion: object
    dataset: TensorDataset
    chunkable: bool = True  # chunks don't change the loss
    normalizes: bool = False  # by statistics of the data that it is given

    @property
    def tensors(self):
        return self.dataset.tensors


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))).mean(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x, y):
        return self.out(torch.tanh(self.a(x)) * torch.tanh(self.b(y)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def make(name, *, seed=0, n=11, dtype=torch.float64):
    """Make a case by name; n is odd so that chunks are ragged."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=g, dtype=dtype)

    def labels(c, *shape):
        return torch.randint(0, c, (n, *shape), generator=g)

    def build(factory):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return factory().to(dtype)

    def seq(*layers):
        return lambda: nn.Sequential(*[layer() for layer in layers])

    mlp = seq(lambda: nn.Linear(3, 5), nn.Tanh, lambda: nn.Linear(5, 3))
    conv = [lambda: nn.Conv2d(2, 3, 3), nn.Tanh, nn.Flatten, lambda: nn.Linear(12, 3)]
    if name == "mlp-mse":
        return Case(build(mlp), nn.MSELoss(), TensorDataset(rand(n, 3), rand(n, 3)))
    if name == "mlp-ce":
        return Case(build(mlp), nn.CrossEntropyLoss(), TensorDataset(rand(n, 3), labels(3)))
    if name == "weighted-ce":
        weight = torch.tensor([1.0, 2.0, 5.0], dtype=dtype)
        return Case(build(mlp), nn.CrossEntropyLoss(weight=weight), TensorDataset(rand(n, 3), labels(3)))
    if name == "ignore-index":
        y = labels(3)
        y[[0, 1, 2, 3, 7]] = 1  # with chunks of four, a chunk of which nothing counts
        return Case(build(mlp), nn.CrossEntropyLoss(ignore_index=1), TensorDataset(rand(n, 3), y))
    if name == "label-smoothing":
        criterion = nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 2.0, 5.0], dtype=dtype), label_smoothing=0.1
        )
        return Case(build(mlp), criterion, TensorDataset(rand(n, 3), labels(3)))
    if name == "unreduced":
        return Case(build(mlp), nn.MSELoss(reduction="none"), TensorDataset(rand(n, 3), rand(n, 3)))
    if name == "bce":
        net = build(seq(lambda: nn.Linear(3, 4), nn.Softplus, lambda: nn.Linear(4, 1)))
        return Case(net, nn.BCEWithLogitsLoss(), TensorDataset(rand(n, 3), labels(2, 1).to(dtype)))
    if name == "conv":
        return Case(build(seq(*conv)), nn.CrossEntropyLoss(), TensorDataset(rand(n, 2, 4, 4), labels(3)))
    if name in {"batch-norm-eval", "batch-norm-train"}:
        net = build(seq(conv[0], lambda: nn.BatchNorm2d(3), nn.Tanh, nn.Flatten, lambda: nn.Linear(12, 3)))
        net[1].running_mean += 0.3
        net[1].running_var *= 1.7
        return Case(
            net.train(name.endswith("train")),
            nn.CrossEntropyLoss(),
            TensorDataset(rand(n, 2, 4, 4), labels(3)),
            chunkable=not name.endswith("train"),
            normalizes=name.endswith("train"),
        )
    if name == "layer-norm":
        net = build(seq(lambda: nn.Linear(3, 5), lambda: nn.LayerNorm(5), nn.Tanh, lambda: nn.Linear(5, 3)))
        return Case(net, nn.CrossEntropyLoss(), TensorDataset(rand(n, 3), labels(3)), normalizes=True)
    if name == "attention":
        return Case(build(Attention), nn.CrossEntropyLoss(), TensorDataset(rand(n, 5, 4), labels(3)))
    if name == "tied":
        return Case(build(Tied), nn.CrossEntropyLoss(), TensorDataset(labels(5, 4), labels(5)))
    if name == "frozen":
        net = build(mlp)
        net[0].weight.requires_grad_(False)
        return Case(net, nn.MSELoss(), TensorDataset(rand(n, 3), rand(n, 3)))
    if name == "two-inputs":
        return Case(build(TwoInputs), nn.MSELoss(), TensorDataset(rand(n, 3), rand(n, 2), rand(n, 2)))
    if name == "recurrent":
        return Case(build(Recurrent), nn.MSELoss(), TensorDataset(rand(n, 4, 2), rand(n, 2)))
    if name == "linear-output":  # the loss doesn't depend on the last bias to second order
        net = build(seq(lambda: nn.Linear(3, 1)))
        return Case(net, lambda o, y: o.squeeze(1), TensorDataset(rand(n, 3), rand(n)))
    raise KeyError(name)


NAMES = [
    "mlp-mse",
    "mlp-ce",
    "weighted-ce",
    "ignore-index",
    "label-smoothing",
    "unreduced",
    "bce",
    "conv",
    "batch-norm-eval",
    "batch-norm-train",
    "layer-norm",
    "attention",
    "tied",
    "frozen",
    "two-inputs",
    "recurrent",
    "linear-output",
]


def whole_value(case, output, target):
    """The loss that a case stands for, by its definition on the whole data set."""
    value = case.criterion(output, target)
    return value if value.dim() == 0 else value.sum() / len(output)


def dense_reference(case, theta):
    """Loss, gradient and Hessian by torch.func, from definitions, all samples at once."""
    names = [name for name, p in case.net.named_parameters() if p.requires_grad]
    shapes = [dict(case.net.named_parameters())[name].shape for name in names]
    for module in case.net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
    *inputs, target = case.tensors

    def f(flat):
        parts = torch.split(flat, [s.numel() for s in shapes])
        state = {name: part.view(s) for name, part, s in zip(names, parts, shapes, strict=True)}
        return whole_value(case, torch.func.functional_call(case.net, state, tuple(inputs)), target)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradient = torch.func.grad(f)(theta)
        # Forward over reverse: another mode than the package's reverse over reverse.
        if case.normalizes:
            # torch.func.hessian is wrong by 5 % here (torch 2.13; finite differences say so), column by column not.
            unit = torch.eye(len(theta), dtype=theta.dtype)
            H = torch.stack([torch.func.jvp(torch.func.grad(f), (theta,), (e,))[1] for e in unit], 1)
        else:
            H = torch.func.hessian(f)(theta)
    return f(theta), gradient, H
