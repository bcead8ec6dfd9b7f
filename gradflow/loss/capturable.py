"""Which losses can be captured: those of which a capture can't miss anything."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from gradflow.loss.modes import normalizes_batches
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
        and not torch.is_anomaly_enabled()
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
    with torch.enable_grad():
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
    if isinstance(part, BuiltinFunctionType):
        return f"{part.__module__}.".startswith("torch.")
    home = part.__module__ if isinstance(part, FunctionType) else type(part).__module__
    own = getattr(part, "__dict__", {})
    is_whole = "forward" not in own and all(map(_is_known, filter(_is_function, own.values())))
    return f"{home}.".startswith(_KNOWN) and is_whole


def _is_function(attribute: object) -> bool:
    """Whether an attribute (an activation, a distance) is code of its own; modules are looked at one by one."""
    return callable(attribute) and not isinstance(attribute, nn.Module | Tensor | type)


def _modules(loss: NetworkLoss) -> list[nn.Module]:
    criterion = loss.criterion
    return [*loss.net.modules(), *(criterion.modules() if isinstance(criterion, nn.Module) else ())]


class Surroundings:
    """What net and criterion are made of, to see whether a part of it is replaced.

    That is their classes, their attributes, and where the tensors among these have their numbers, which may be
    written to: a capture reads them anew.
    """

    def __init__(self, loss: NetworkLoss) -> None:
        self._modules = _modules(loss)
        own = [vars(module) for module in self._modules]
        values = [value for attributes in own for value in attributes.values()]
        dicts = own + [value for value in values if isinstance(value, dict)]
        self._empty: list[dict[str, Any] | list[Any]] = [each for each in dicts if not each]
        self._dicts = [each for each in dicts if each]
        self._lists = [value for value in values if isinstance(value, list)]
        inside = [value for each in dicts for value in each.values()]
        replaced = {id(p) for name, p in loss.net.named_parameters() if name in set(loss.names)}
        self._tensors = [
            value
            for value in inside
            if isinstance(value, Tensor) and value.layout == torch.strided and id(value) not in replaced
        ]
        # The values are kept, so that no other object gets the identity of one.
        self._values = [*map(list, self._lists), inside]
        self._known = self._now()

    def changed(self) -> bool:
        """Whether a class, an attribute, or where a tensor lies is another one now, or there are more or less."""
        return any(self._empty) or self._now() != self._known

    def _now(self) -> tuple[list[Any], ...]:
        return (
            [list(map(id, each.values())) for each in self._dicts],
            [list(map(id, each)) for each in self._lists],
            [(type(module), type(module).forward) for module in self._modules],
            [(each.data_ptr(), each.dtype, each.shape, each.stride()) for each in self._tensors],
        )
