"""Activation checkpointing: what it does to derivatives, and what can't be done with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from gradflow.errors import InvalidInputError
from gradflow.loss.second_derivatives import graph_nodes

DIFFERENTIATED_LATER = (
    "The loss can't be differentiated outside of the LossFunction: differentiation runs parts of the net again "
    "(activation checkpointing), with the weights that are in the net by then. Use loss.gradient(θ), or "
    "loss.linearize(θ) for Hessian–vector products; or turn checkpointing off."
)
_REENTRANT = (
    "The net uses reentrant activation checkpointing, which loses gradients in torch.autograd.grad. Pass "
    "use_reentrant=False to torch.utils.checkpoint; for Hugging Face, "
    'net.gradient_checkpointing_enable({"use_reentrant": False}).'
)
# What torch says where a reentrant checkpoint cuts the graph.
_CUT = "None of the inputs have requires_grad=True"


@contextmanager
def refusing_reentrant() -> Iterator[None]:
    """Refuse a net whose forward pass, within, cuts the graph by a reentrant checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=_CUT, category=UserWarning)
        try:
            yield
        except UserWarning as warning:
            if _CUT in str(warning):
                raise InvalidInputError(_REENTRANT) from None
            raise


def refuse_reentrant(value: Tensor) -> None:
    """Refuse a value whose graph has a reentrant checkpoint: its parameters would get no gradient."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in graph_nodes([value])):
        raise InvalidInputError(_REENTRANT)
