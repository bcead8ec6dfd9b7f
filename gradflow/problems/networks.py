"""Named architectures: those of Cohen et al. (2021), and others."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from gradflow.errors import InvalidInputError, UnknownNameError, suggest
from gradflow.problems.deep_networks import resnet20, resnet32, vgg11
from gradflow.problems.sequence_networks import FOR_TOKENS, Factors, vision_transformer

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,
}

_WIDTH = 200
_DEPTH = 2
_CHANNELS = (32, 32)
_LINEAR_LAYERS = 20

_DEEP_LINEAR = re.compile(r"deep-linear-(\d+)-(\d+)(?:-(\d+(?:\.\d+)?(?:e-?\d+)?))?")
_A = "|".join(ACTIVATIONS)
#: Names of architectures, for help and for errors.
NAMES = (
    *(f"fc-{a}" for a in ACTIVATIONS),
    *(f"fc-{a}-depthN" for a in ACTIVATIONS),
    *(f"cnn{kind}-{a}" for kind in ("", "-avgpool", "-bn") for a in ACTIVATIONS),
    *(
        "vgg11",
        "vgg11-bn",
        "resnet32",
        "resnet20-gn",
        "vit-tiny",
        "deeplinear",
        "deep-linear-D-W-S",
        "regression",
    ),
    *(*FOR_TOKENS, "factors"),
)


def make_network(name: str, shape: Sequence[int], n_outputs: int, n_symbols: int | None = None) -> nn.Module:
    """Make a network by name, initialised by torch's global generator.

    Parameters
    ----------
    name : str
        - ``fc-ACTIVATION``: two hidden layers of 200; with ``-depthN`` N of them.
        - ``cnn-ACTIVATION``: two 3×3 convolutions of 32 channels, each followed by the activation and 2×2 max
          pooling; ``cnn-avgpool-ACTIVATION`` with average pooling; ``cnn-bn-ACTIVATION`` with batch-norm between
          activation and max pooling.
        - ``vgg11``, ``vgg11-bn`` (no dropout), ``resnet32`` (the one for CIFAR): see
          :mod:`gradflow.problems.deep_networks`.
        - ``resnet20-gn``: the ResNet of 20 layers with group-norm of 4 groups; ``vit-tiny``: two transformer blocks of
          width 64 on patches of 4 × 4 pixels.
        - ``deeplinear``: 20 linear layers as wide as the input, no biases, Xavier normal; ``deep-linear-D-W-S``: D
          layers of width W, no biases, Gaussian entries of standard deviation S/√fan-in, such as
          ``deep-linear-3-50-0.1``.
        - For symbols: ``transformer``, ``gpt`` (causal), ``lstm``, ``scan`` (a selective state space); ``factors`` for
          matrix completion: see :mod:`gradflow.problems.sequence_networks`.
        - ``regression``: 1-100-1, tanh.

        Activations are tanh, relu, gelu, elu, hardtanh and softplus. Initialised as torch does where nothing is said.
    shape : sequence of int
        Shape of one input.
    n_outputs : int
    n_symbols : int, optional
        Of inputs that are symbols.

    Raises
    ------
    UnknownNameError
        The message lists what exists.
    InvalidInputError
        If the network doesn't fit the data.
    """
    takes_symbols = name in FOR_TOKENS or name == "factors"
    if takes_symbols != (n_symbols is not None) and _exists(name):
        wanted, given = ("values", "symbols") if takes_symbols else ("symbols", "values")
        raise InvalidInputError(
            f"The network {name} is for {given}; the data have {wanted}. "
            + ("Use fc-tanh." if takes_symbols else f"Use {', '.join(FOR_TOKENS)}, or factors for pairs.")
        )
    if name in FOR_TOKENS:
        assert n_symbols is not None
        return FOR_TOKENS[name](n_symbols, shape[0], n_outputs)
    if name == "factors":
        assert n_symbols is not None
        if tuple(shape) != (2,) or n_outputs != 1:
            raise InvalidInputError(
                "The network factors is for pairs of numbers: use it with completion-N-R."
            )
        return Factors(n_symbols)
    if name == "vit-tiny":
        return vision_transformer(shape, n_outputs)
    if name == "resnet20-gn":
        return resnet20(shape, n_outputs)
    if match := _DEEP_LINEAR.fullmatch(name):
        return deep_linear_of(
            math.prod(shape), n_outputs, int(match[1]), int(match[2]), float(match[3] or 1.0)
        )
    if name == "regression":
        return regression(math.prod(shape), n_outputs)
    if name == "deeplinear":
        return deep_linear(math.prod(shape), n_outputs)
    if name == "resnet32":
        return resnet32(shape, n_outputs)
    if name in {"vgg11", "vgg11-bn"}:
        return vgg11(shape, n_outputs, normalized=name == "vgg11-bn")
    if match := re.fullmatch(rf"fc-({_A})(?:-depth([1-9]\d*))?", name):
        return fully_connected(math.prod(shape), n_outputs, ACTIVATIONS[match[1]], int(match[2] or _DEPTH))
    if match := re.fullmatch(rf"cnn(-avgpool|-bn)?-({_A})", name):
        return convolutional(
            shape,
            n_outputs,
            ACTIVATIONS[match[2]],
            pool=nn.AvgPool2d if match[1] == "-avgpool" else nn.MaxPool2d,
            normalized=match[1] == "-bn",
        )
    raise UnknownNameError(f"No architecture {name!r}; {suggest(name, NAMES)}")


def _exists(name: str) -> bool:
    fixed = {n for n in NAMES if not n.endswith(("N", "S"))}
    return name in fixed or bool(_DEEP_LINEAR.fullmatch(name)) or name.startswith("fc-")


def fully_connected(
    n_inputs: int, n_outputs: int, activation: Callable[[], nn.Module], depth: int
) -> nn.Module:
    """Make a multilayer perceptron with `depth` hidden layers of width 200."""
    widths = [n_inputs] + [_WIDTH] * depth
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))


def convolutional(
    shape: Sequence[int],
    n_outputs: int,
    activation: Callable[[], nn.Module],
    *,
    pool: Callable[[int], nn.Module],
    normalized: bool,
) -> nn.Module:
    """Make convolution, activation, batch-norm (where `normalized`) and pooling, twice, and a linear layer."""
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise InvalidInputError(
            f"A convolutional network needs images of at least 4×4 pixels; the data have shape {tuple(shape)}. "
            "Use fc-tanh."
        )
    channels, height, width = shape
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((channels, *_CHANNELS)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), activation()]
        layers += [nn.BatchNorm2d(fan_out)] if normalized else []
        layers += [pool(2)]
        height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(_CHANNELS[-1] * height * width, n_outputs))


def deep_linear(n_inputs: int, n_outputs: int) -> nn.Module:
    """Make 20 linear layers without biases, Xavier normal."""
    if n_inputs != n_outputs:
        raise InvalidInputError(
            f"deeplinear has as many outputs as inputs, the data have {n_inputs} and {n_outputs}. Use linear-50-50."
        )
    layers = [nn.Linear(n_inputs, n_inputs, bias=False) for _ in range(_LINEAR_LAYERS)]
    for layer in layers:
        nn.init.xavier_normal_(layer.weight)
    return nn.Sequential(*layers)


def deep_linear_of(n_inputs: int, n_outputs: int, depth: int, width: int, scale: float) -> nn.Module:
    """Make `depth` linear layers without biases, Gaussian with standard deviation scale/√fan-in.

    From small weights learning goes from saddle to saddle (Saxe et al. 2014; Jacot et al. 2021).
    """
    if depth < 1 or width < 1 or scale <= 0:
        raise InvalidInputError(
            f"deep-linear-D-W-S needs D ≥ 1, W ≥ 1 and S > 0, got {depth}, {width}, {scale}."
        )
    widths = [n_inputs] + [width] * (depth - 1) + [n_outputs]
    layers = [nn.Linear(fan_in, fan_out, bias=False) for fan_in, fan_out in pairwise(widths)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=scale / math.sqrt(layer.in_features))
    return nn.Sequential(nn.Flatten(), *layers)


def regression(n_inputs: int, n_outputs: int, width: int = 100) -> nn.Module:
    """Make the 1-width-1 tanh network for one-dimensional regression, 3 · width parameters.

    Weights Xavier normal, with gain 1.9 in the first layer; zero bias; no bias at the output.
    """
    if (n_inputs, n_outputs) != (1, 1):
        raise InvalidInputError(
            f"The regression network has one input and one output, the data {n_inputs} and {n_outputs}. Use fc-tanh."
        )
    hidden, output = nn.Linear(1, width), nn.Linear(width, 1, bias=False)
    nn.init.xavier_normal_(hidden.weight, gain=1.9)
    nn.init.zeros_(hidden.bias)
    nn.init.xavier_normal_(output.weight)
    return nn.Sequential(hidden, nn.Tanh(), output)
