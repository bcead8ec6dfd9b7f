"""VGG-11 and ResNets in their versions for 32×32 images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError

#: Channels of VGG-11's convolutions, by the pooling that follows them (Simonyan & Zisserman 2015, configuration A).
_VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))
#: Channels of ResNet's three stages, and blocks in each: 6·5 + 2 = 32 layers (He et al. 2016, section 4.2).
_RESNET_CHANNELS, _RESNET_BLOCKS = (16, 32, 64), 5
_GROUPS = 4


def vgg11(
    shape: Sequence[int],
    n_outputs: int,
    *,
    normalized: bool,
    activation: Callable[[], nn.Module] = nn.ReLU,
    pool: Callable[[int], nn.Module] = nn.MaxPool2d,
) -> nn.Module:
    """Make VGG-11 with two hidden linear layers of 512 and no dropout (Simonyan & Zisserman 2015).

    Convolutions start from He's normal distribution by fan-out, with zero biases.

    Parameters
    ----------
    shape : sequence of int
        Shape of one image, (channels, 32, 32).
    n_outputs : int
    normalized : bool
        Batch-norm after each convolution.
    activation, pool : callable
        ReLU and max pooling, which have kinks, are the network's own.
    """
    layers: list[nn.Module] = []
    fan_in = _channels("VGG-11", shape)
    for block in _VGG11:
        for fan_out in block:
            layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1)]
            layers += [nn.BatchNorm2d(fan_out)] if normalized else []
            layers += [activation()]
            fan_in = fan_out
        layers += [pool(2)]
    layers += [nn.Flatten(), nn.Linear(512, 512), activation(), nn.Linear(512, 512), activation()]
    return _initialized(nn.Sequential(*layers, nn.Linear(512, n_outputs)))


def resnet32(
    shape: Sequence[int], n_outputs: int, *, activation: Callable[[], nn.Module] = nn.ReLU
) -> nn.Module:
    """Make the ResNet of 32 layers for CIFAR (He et al. 2016).

    Three stages of five blocks with 16, 32 and 64 channels, shortcuts without weights, and global average
    pooling. A shortcut into the next stage takes every second pixel, normalises, and pads the channels with
    zeros. Convolutions start from He's normal distribution by fan-out; the last batch-norm of each block
    starts at γ = 0, so each block starts as its shortcut.

    Parameters
    ----------
    shape : sequence of int
        Shape of one image, (channels, 32, 32).
    n_outputs : int
    activation : callable
        ReLU, which has a kink, is the network's own.
    """
    widths = (_RESNET_CHANNELS[0], *_RESNET_CHANNELS)
    blocks = [
        ResidualBlock(before if first else after, after, activation)
        for before, after in pairwise(widths)
        for first in [True] + [False] * (_RESNET_BLOCKS - 1)
    ]
    net = nn.Sequential(
        nn.Conv2d(_channels("ResNet-32", shape), widths[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(widths[0]),
        activation(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], n_outputs),
    )
    _initialized(net)
    for block in blocks:
        nn.init.zeros_(block.last.weight)
    return net


def resnet20(shape: Sequence[int], n_outputs: int) -> nn.Module:
    """Make the ResNet of 20 layers for CIFAR with group-norm (He et al. 2016; Wu & He 2018), smooth but for ReLU.

    Three stages of three blocks with 16, 32 and 64 channels; shortcuts into the next stage are convolutions of one
    pixel; group-norm of four groups in the place of batch-norm, so that samples don't touch each other. Initialised as
    torch does, and the last norm of each block starts at γ = 0.

    Parameters
    ----------
    shape : sequence of int
        Shape of one image, (channels, 32, 32).
    n_outputs : int
    """
    widths = (_RESNET_CHANNELS[0], *_RESNET_CHANNELS)
    blocks = [
        GroupNormBlock(before if first else after, after)
        for before, after in pairwise(widths)
        for first in (True, False, False)
    ]
    for block in blocks:
        nn.init.zeros_(block.last.weight)
    return nn.Sequential(
        nn.Conv2d(_channels("ResNet-20", shape), widths[0], 3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, widths[0]),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(widths[-1], n_outputs),
    )


class GroupNormBlock(nn.Module):
    """ReLU(x + F(x)), F being convolution, group-norm, ReLU, convolution, group-norm.

    Parameters
    ----------
    n_in, n_out : int
        Channels. Where they differ, the resolution is halved.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.residual = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.GroupNorm(_GROUPS, n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
        )
        self.last = nn.GroupNorm(_GROUPS, n_out)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, h, w), or to half the resolution."""
        out: Tensor = torch.relu(self.shortcut(x) + self.last(self.residual(x)))
        return out


class ResidualBlock(nn.Module):
    """φ(x + F(x)), F being convolution, batch-norm, φ, convolution, batch-norm.

    Parameters
    ----------
    n_in, n_out : int
        Channels. Where they differ, the resolution is halved.
    activation : callable
        Makes φ.
    """

    def __init__(self, n_in: int, n_out: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        stride = 1 if n_in == n_out else 2
        self.residual = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            activation(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
        )
        self.last = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if stride == 1 else Subsampling(n_in)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, h, w), or to half the resolution."""
        out: Tensor = self.activation(self.shortcut(x) + self.last(self.residual(x)))
        return out


class Subsampling(nn.Module):
    """Every second pixel, normalised, with as many channels of zeros behind."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, 2c, ⌈h/2⌉, ⌈w/2⌉)."""
        x = self.norm(x[:, :, ::2, ::2])
        return torch.cat([x, torch.zeros_like(x)], 1)


def _channels(name: str, shape: Sequence[int]) -> int:
    if len(shape) != 3 or tuple(shape[1:]) != (32, 32):
        raise InvalidInputError(
            f"{name} is for images of 32×32 pixels; the data have shape {tuple(shape)}. Use CIFAR-10, or cnn-tanh."
        )
    return shape[0]


def _initialized(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net
