"""How much memory the graph of a derivative holds, measured on a few samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Bytes of a twice differentiable graph over the bytes that the forward pass saves: the backward pass saves
# about as much again, and each differentiation needs room for its own temporaries.
_GRAPH_OVER_FORWARD = 4.0
# The same over the bytes that forward and backward pass save together.
_GRAPH_OVER_SAVED = 1.5


def graph_bytes(value: Callable[[], Tensor], leaves: Sequence[Tensor], *, recomputes: bool) -> int:
    """Estimate the bytes that a value's twice differentiable graph takes.

    Parameters
    ----------
    value : callable
        Evaluates a scalar of the leaves.
    leaves : sequence of Tensor
    recomputes : bool
        The backward pass runs parts of the forward pass again, which then saves little. What the backward pass saves
        is measured too.
    """
    sizes: dict[tuple[int, int], int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr(), tensor.numel()] = tensor.numel() * tensor.element_size()
        return tensor

    # In one thread, because these hooks are those of a thread.
    with torch.enable_grad(), torch.autograd.set_multithreading_enabled(False):
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                result = value()
                if recomputes:  # until they are counted, the gradients keep alive what they saved
                    _gradients = torch.autograd.grad(result, leaves, create_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):  # torch.func in the forward pass forbids them
                raise
            with _Results() as results:
                value()
            return int(_GRAPH_OVER_FORWARD * results.n_bytes)
    return int((_GRAPH_OVER_SAVED if recomputes else _GRAPH_OVER_FORWARD) * sum(sizes.values()))


class _Results(TorchDispatchMode):
    """The bytes of all results of all operations: no fewer than are saved."""

    n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        self.n_bytes += sum(t.nbytes for t in tree_leaves(results) if isinstance(t, Tensor))
        return results
