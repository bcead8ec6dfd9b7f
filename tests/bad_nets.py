"""Networks whose derivatives go wrong in torch, or that couple samples or lose digits."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

double = torch.float64


class Once(torch.autograd.Function):
    """Tanh whose backward can't be differentiated, and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Kernel(torch.autograd.Function):
    """Tanh whose backward leaves torch, as kernels in CUDA or Triton do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        y = ctx.saved_tensors[0].detach().tanh().numpy()
        return torch.from_numpy(grad.detach().numpy() * (1 - y**2))


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
