"""Other tensors in the places of a network's parameters, for as long as it is evaluated and differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError, InvalidTypeError
from gradflow.loss.data import cast
from gradflow.loss.parameters import like

#: A dictionary of a module, a name in it, and the tensor that was there.
Place = tuple[dict[str, Tensor | None], str, Tensor]


class Placement:
    """The leaves of θ in the places of a network's parameters, until they are taken out again.

    ``torch.func.functional_call`` does the same for one forward pass. That isn't enough where a backward pass
    runs the net again (activation checkpointing), nor where the criterion reads the net's parameters. Placements of
    one net can be nested; the last one is taken out first.

    Frozen parameters are cast to the leaves' device and dtype. Buffers are replaced by copies, so that the net's
    own stay as they are. Tied tensors stay tied.

    Parameters
    ----------
    net : torch.nn.Module
    names : sequence of str
        Of the parameters that the leaves stand for, as in ``net.named_parameters()``.
    leaves : sequence of Tensor
        In the order of the names.
    recomputes : bool
        Differentiation runs the net again, so that it needs copies of the buffers; else only forward passes do.

    Attributes
    ----------
    leaves

    Raises
    ------
    InvalidInputError
        If the net has no trainable parameter of one of the names any more.
    """

    def __init__(
        self, net: nn.Module, names: Sequence[str], leaves: Sequence[Tensor], *, recomputes: bool
    ) -> None:
        self.leaves = leaves
        self._device, self._dtype = leaves[0].device, leaves[0].dtype
        by_name = dict(zip(names, leaves, strict=True))
        new: dict[int, Tensor] = {}  # by the id of what is replaced: tied parameters have one
        self._parameters: list[Place] = []
        self._buffers: list[Place] = []
        self._attributes: list[tuple[nn.Module, dict[str, object]]] = []
        for prefix, module in net.named_modules():
            for key, old in module._parameters.items():
                if old is None:
                    continue
                if id(old) not in new:
                    leaf = by_name.pop(f"{prefix}.{key}" if prefix else key, None)
                    new[id(old)] = self._frozen(old) if leaf is None else like(leaf, old)
                self._parameters.append((module._parameters, key, old))
            self._buffers += [(module._buffers, k, b) for k, b in module._buffers.items() if b is not None]
            if module._forward_pre_hooks or isinstance(module, nn.RNNBase):
                self._attributes.append((module, _derived(module)))
        if by_name:
            raise InvalidInputError(
                f"The net has no parameter {next(iter(by_name))!r} any more: it was changed after the LossFunction was "
                "made. Make a new LossFunction of it."
            )
        self._buffers_are_new = False
        buffers = self._copies() if recomputes else {}
        for slots, key, old in self._parameters:
            slots[key] = new[id(old)]
        self._put(buffers)

    def _frozen(self, parameter: Tensor) -> Tensor:
        if not parameter.is_complex() and (parameter.device, parameter.dtype) == (self._device, self._dtype):
            return parameter
        return cast(parameter, self._device, self._dtype)

    def renew_buffers(self) -> None:
        """Let the buffers have the net's own values again, before another forward pass writes to them."""
        if not self._buffers_are_new:
            self._put(self._copies())
        self._buffers_are_new = False

    def _copies(self) -> dict[int, Tensor]:
        return {id(b): cast(b, self._device, self._dtype).clone() for _, _, b in self._buffers}

    def _put(self, buffers: dict[int, Tensor]) -> None:
        for slots, key, old in self._buffers if buffers else ():
            slots[key] = buffers[id(old)]
        self._buffers_are_new = bool(buffers)

    def take_out(self) -> None:
        """Put back what was in the net before."""
        for slots, key, old in (*self._parameters, *self._buffers):
            slots[key] = old
        for module, attributes in self._attributes:
            module.__dict__.update(attributes)


def _derived(module: nn.Module) -> dict[str, object]:
    """Return the attributes that a module makes of its parameters: in hooks (the old weight_norm), or for cuDNN."""
    return {
        name: value
        for name, value in module.__dict__.items()
        if isinstance(value, Tensor) or name in {"_flat_weights", "_flat_weight_refs"}
    }


def unwrapped(net: Any) -> Any:
    """Return the module inside of what only runs it: DataParallel, DistributedDataParallel, torch.compile."""
    while isinstance(net, nn.Module):
        if isinstance(net, nn.DataParallel | nn.parallel.DistributedDataParallel):
            net = net.module
        elif type(net).__name__ == "OptimizedModule" and isinstance(
            getattr(net, "_orig_mod", None), nn.Module
        ):
            net = net._orig_mod
        else:
            break
    return net


def check_replaceable(net: object) -> None:
    """Refuse what isn't a net, or whose parameters can't be replaced: of TorchScript, or copied to several devices."""
    if not isinstance(net, nn.Module):
        raise InvalidTypeError(f"Expected net to be a torch.nn.Module, got {type(net).__name__}.")
    if any(isinstance(m, nn.DataParallel) for m in net.modules()):
        raise InvalidTypeError(
            "Expected a net without DataParallel inside, which copies parameters. Pass one that has the module itself."
        )
    if any(isinstance(m, torch.jit.ScriptModule) for m in net.modules()):
        raise InvalidTypeError(
            "Expected a plain torch.nn.Module, got one with TorchScript inside, whose parameters can't be replaced. "
            "Pass the module that was scripted or traced."
        )
