"""Networks whose derivatives go wrong in torch, or that couple samples or lose digits."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

double = torch.float64


class Tanh(torch.autograd.Function):
    """Tanh; each below has a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()


class Once(Tanh):
    """Tanh whose backward can't be differentiated, and says so."""

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Kernel(Tanh):
    """Tanh whose backward leaves torch, as kernels in CUDA or Triton do."""

    @staticmethod
    def backward(ctx, grad):
        y = ctx.saved_tensors[0].detach().tanh().numpy()
        return torch.from_numpy(grad.detach().numpy() * (1 - y**2))


class Half(torch.autograd.Function):
    """Tanh whose backward is in torch, and can't be differentiated with respect to its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().tanh()
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.y**2)


class Mistaken(Tanh):
    """Tanh with a mistake in its backward."""

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - 0.99 * ctx.saved_tensors[0].tanh() ** 2)


class Reversed(torch.autograd.Function):
    """The identity with a gradient of the other sign, as in adversarial training of domains."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def straight_through(x):
    return x + (torch.round(4 * x) / 4 - x).detach()


def sandwich(middle, width=4):
    """A linear layer on either side of a module."""
    return nn.Sequential(nn.Linear(3, width), middle, nn.Linear(width, 2))


class Frequencies(nn.Module):
    """A linear map of complex numbers whose parameters are real pairs, after an odd number of others."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(3))
        self.weight = nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x):
        y = (x + self.shift).to(torch.complex128) @ torch.view_as_complex(self.weight)
        return torch.view_as_real(y).sum(-1).tanh()


class Rounding(nn.Module):
    """Root mean square normalisation in float32, whatever comes in."""

    def forward(self, x):
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Bfloat(nn.Module):
    """A linear layer inside autocast, in forward."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x).to(x.dtype)


class Sequence(nn.Module):
    """A module for sequences, and the mean over time of what it gives for (batch, time, 4)."""

    def __init__(self, module, times=1):
        super().__init__()
        self.module, self.times, self.head = module, times, nn.Linear(4, 2)

    def forward(self, x):
        y = self.module(*[x] * self.times)
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


class Pooled(nn.Module):
    """The mean of word vectors over padded sequences, with or without a mask."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.embed, self.head = masked, nn.Embedding(6, 4, padding_idx=0), nn.Linear(4, 2)

    def forward(self, tokens):
        y = self.embed(tokens)
        return self.head(y.sum(1) / (tokens != 0).sum(1, keepdim=True) if self.masked else y.mean(1)).tanh()


class ZeroResidual(nn.Module):
    """ReLU after a residual branch that starts at zero, so that many inputs lie exactly on its kink."""

    def __init__(self, width):
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.branch.bias)

    def forward(self, x):
        y = self.first(x).relu()
        return self.last((y + self.branch(y)).relu())


class Experts(nn.Module):
    """The two best of three experts, by a gate."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(3, 3), nn.Linear(3, 6)

    def forward(self, x):
        weights, which = self.gate(x).softmax(-1).topk(2)
        y = self.experts(x).view(-1, 3, 2).tanh()
        return (weights[..., None] * y.gather(1, which[..., None].expand(-1, -1, 2))).sum(1)
