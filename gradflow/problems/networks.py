"""Named architectures."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from gradflow.errors import InvalidInputError, UnknownNameError, suggest

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "softplus": nn.Softplus,
}

_WIDTH = 200
_DEPTH = 2


def make_network(name: str, n_inputs: int, n_outputs: int) -> nn.Module:
    """Make a network by name, initialised by torch's global generator.

    Parameters
    ----------
    name : str
        ``fc-ACTIVATION`` (hidden layers 200-200, torch's default initialisation), with ``-depthN`` for N
        hidden layers; or ``regression`` (1-100-1, tanh). These are the networks of Cohen et al. (2021).
    n_inputs, n_outputs : int

    Raises
    ------
    UnknownNameError
        The message lists what exists.
    """
    if name == "regression":
        return regression(n_inputs, n_outputs)
    if match := re.fullmatch(rf"fc-({'|'.join(ACTIVATIONS)})(?:-depth([1-9]\d*))?", name):
        return fully_connected(n_inputs, n_outputs, ACTIVATIONS[match[1]], int(match[2] or _DEPTH))
    valid = [f"fc-{a}" for a in ACTIVATIONS] + [f"fc-{a}-depthN" for a in ACTIVATIONS] + ["regression"]
    raise UnknownNameError(f"No architecture {name!r}; {suggest(name, valid)}")


def fully_connected(
    n_inputs: int, n_outputs: int, activation: Callable[[], nn.Module], depth: int
) -> nn.Module:
    """Make a multilayer perceptron with `depth` hidden layers of width 200."""
    widths = [n_inputs] + [_WIDTH] * depth
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_outputs))


def regression(n_inputs: int, n_outputs: int) -> nn.Module:
    """Make the 1-100-1 tanh network for one-dimensional regression, 300 parameters.

    Weights Xavier normal, with gain 1.9 in the first layer; zero bias; no bias at the output.
    """
    if (n_inputs, n_outputs) != (1, 1):
        raise InvalidInputError(
            f"The regression network has one input and one output, the data {n_inputs} and {n_outputs}. Use fc-tanh."
        )
    hidden, output = nn.Linear(1, 100), nn.Linear(100, 1, bias=False)
    nn.init.xavier_normal_(hidden.weight, gain=1.9)
    nn.init.zeros_(hidden.bias)
    nn.init.xavier_normal_(output.weight)
    return nn.Sequential(hidden, nn.Tanh(), output)
