"""Which losses can be captured: those of which a capture can't miss anything."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gradflow.loss.probe import normalizes_batches
from gradflow.loss.second_derivatives import custom_functions

if TYPE_CHECKING:
    from gradflow.loss.network import NetworkLoss

# Samples × parameters up to which "auto" captures.
_SMALL = 2**23
# Bytes that recording takes over those of the gradient's graph.
_RECORDING = 6
# Modules and criteria from here read nothing but their own attributes.
_KNOWN = ("torch.nn.", "gradflow.problems.", "gradflow.loss.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def fits(loss: NetworkLoss, theta: Tensor) -> bool:
    """Whether θ, and the state of torch, are such that captures hold."""
    return (
        loss.data.n_chunks == 1
        and type(theta) in {Tensor, nn.Parameter}
        and theta.is_contiguous()
        and theta.storage_offset() == 0
        and loss.is_free
        and not _is_watched()
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled(theta.device.type)
        and not _has_any_global_hook()
    )


def _is_watched() -> bool:
    """Whether operations are looked at, or changed, by a mode or a transform of torch."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def obstacle(loss: NetworkLoss, theta: Tensor, *, any_code: bool) -> str | None:
    """Return why a loss must not be captured; None if it may.

    Parameters
    ----------
    loss : NetworkLoss
    theta : Tensor, shape (P,)
        Where it is evaluated, to look at its graph; then the data are where a capture finds them.
    any_code : bool
        Net and criterion may be code that isn't torch's, and of any size.
    """
    modules = _modules(loss)
    if loss.recomputes:
        return "differentiation runs parts of the net again (activation checkpointing)"
    if normalizes_batches(loss.net):
        return "batch-norm is in train mode"
    if any(getattr(m, name) for m in modules for name in _HOOKS):
        return "a module has hooks"
    if not loss.data.resident:
        return "the data are read at every evaluation, for they don't fit in memory_budget"
    if _RECORDING * loss.kept_bytes(torch.float64) > loss.memory_budget:
        return "recording takes more than memory_budget"
    functions = custom_functions(loss(theta.detach().clone().requires_grad_(True)))
    if functions:
        return f"there are derivatives that aren't torch's ({', '.join(sorted(functions))})"
    if any_code:
        return None
    if loss.data.chunk_size * loss.n_parameters > _SMALL:
        return "arithmetic costs more than calls"
    if not loss.is_plain or not all(_is_known(each) for each in (*modules, loss.criterion)):
        return "there is code that isn't torch's"
    return None


def _is_known(part: object) -> bool:
    """Whether a module or a criterion reads nothing but its own attributes."""
    home = part.__module__ if isinstance(part, FunctionType | BuiltinFunctionType) else type(part).__module__
    return f"{home}.".startswith(_KNOWN) and "forward" not in getattr(part, "__dict__", {})


def _modules(loss: NetworkLoss) -> list[nn.Module]:
    criterion = loss.criterion
    return [*loss.net.modules(), *(criterion.modules() if isinstance(criterion, nn.Module) else ())]


class Surroundings:
    """The attributes of net and criterion, to see whether one is replaced.

    Tensors among them may be written to: a capture reads them anew.
    """

    def __init__(self, loss: NetworkLoss) -> None:
        own = [vars(module) for module in _modules(loss)]
        dicts = own + [
            value for attributes in own for value in attributes.values() if isinstance(value, dict)
        ]
        self._empty = [each for each in dicts if not each]
        self._full = [(each, list(each.values())) for each in dicts if each]
        # The values are kept, so that no other object gets the identity of one.
        self._identities = [list(map(id, values)) for _, values in self._full]

    def changed(self) -> bool:
        """Whether an attribute is another object now, or there are more or less of them."""
        return (
            any(self._empty) or [list(map(id, each.values())) for each, _ in self._full] != self._identities
        )
