"""Flat θ ⇄ the named parameters of a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError, InvalidTypeError

_NORM_LAYERS = tuple(
    getattr(nn, name)
    for name in (
        "BatchNorm1d",
        "BatchNorm2d",
        "BatchNorm3d",
        "SyncBatchNorm",
        "InstanceNorm1d",
        "InstanceNorm2d",
        "InstanceNorm3d",
        "LayerNorm",
        "GroupNorm",
        "RMSNorm",
    )
    if hasattr(nn, name)
)


class ParameterLayout:
    """Where each trainable parameter of a network lies in the flat θ.

    Tied parameters appear once; parameters with ``requires_grad=False`` don't appear. A complex parameter appears as
    its real and imaginary parts, along a last dimension of 2.

    Parameters
    ----------
    net : torch.nn.Module
        The network. Read, never written.

    Attributes
    ----------
    names : tuple of str
        Parameter names in the order of ``net.named_parameters()``.
    shapes : tuple of torch.Size
        Of the parts of θ.
    sizes : tuple of int
    n_parameters : int
        P, the length of θ.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        if any(isinstance(p, nn.UninitializedParameter) for p in net.parameters()):
            raise InvalidInputError("The net has lazy parameters without a shape. Run it once on data first.")
        trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
        if not trainable:
            raise InvalidInputError(
                "The net has no trainable parameters: expected at least one with requires_grad=True, got "
                f"{sum(1 for _ in net.parameters())} parameters, all frozen. Unfreeze one."
            )
        self.names = tuple(trainable)
        self.shapes = tuple(as_real(p).shape for p in trainable.values())
        self.sizes = tuple(shape.numel() for shape in self.shapes)
        self.n_parameters = sum(self.sizes)

    def split(self, theta: Tensor) -> list[Tensor]:
        """Cut θ, shape (P,), into tensors of the parameters' shapes: views, or copies where a view isn't aligned."""
        return [
            aligned(part.reshape(shape))
            for part, shape in zip(torch.split(theta, list(self.sizes)), self.shapes, strict=True)
        ]

    def flatten(self) -> Tensor:
        """Copy the net's present weights into a new flat θ, shape (P,)."""
        parameters = dict(self._net.named_parameters())
        _, dtype = device_and_dtype(self._net)
        return torch.cat([as_real(parameters[name].detach()).reshape(-1).to(dtype) for name in self.names])

    def state_dict(self, theta: Tensor) -> dict[str, Tensor]:
        """Copy the net's state dict with θ in the place of its trainable parameters."""
        parameters = dict(self._net.named_parameters())
        new = {
            name: like(part.detach(), parameters[name]).clone()
            for name, part in zip(self.names, self.split(theta), strict=True)
        }
        canonical = {id(p): name for name, p in self._net.named_parameters()}
        state = {
            key: value.detach().clone() if isinstance(value, Tensor) else value
            for key, value in self._net.state_dict().items()
        }
        for alias, parameter in self._net.named_parameters(remove_duplicate=False):
            if canonical[id(parameter)] in new and alias in state:
                state[alias] = new[canonical[id(parameter)]].clone()
        return state

    def initialize(self, gain: float, seed: int | None) -> Tensor:
        """Draw θ, shape (P,), float64 on the CPU: Kaiming normal weights, zero biases.

        The numbers depend on `seed` alone, not on a device or dtype. Norm layers get their own
        initialisation (ones and zeros); a parameter that is neither a weight of two or more dimensions
        nor a bias keeps the value that it has in the net.
        """
        generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
        owners = {
            f"{prefix}.{name}" if prefix else name: module
            for prefix, module in self._net.named_modules()
            for name, _ in module.named_parameters(recurse=False)
        }
        parameters = dict(self._net.named_parameters())
        plain: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            local = name.rsplit(".", 1)[-1]
            if isinstance(owners[name], _NORM_LAYERS):
                part = torch.zeros(shape, **plain) if "bias" in local else torch.ones(shape, **plain)
            elif "bias" in local:
                part = torch.zeros(shape, **plain)
            elif parameters[name].dim() >= 2:
                fan_in = math.prod(
                    shape[1:]
                )  # twice that of a complex weight, whose parts share its variance
                part = torch.randn(shape, generator=generator, **plain) * (gain / math.sqrt(fan_in))
            else:
                part = as_real(parameters[name].detach().cpu())
            parts.append(part.to(torch.float64).reshape(-1))
        return torch.cat(parts)


def as_real(tensor: Tensor) -> Tensor:
    """View a complex tensor as its real and imaginary parts, along a last dimension of 2; return a real one."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def like(part: Tensor, parameter: Tensor) -> Tensor:
    """View a part of θ as what stands for a parameter: complex, if that is."""
    return torch.view_as_complex(part) if parameter.is_complex() else part


def aligned(part: Tensor) -> Tensor:
    """Copy a part of a vector, or of several in rows, where ``torch.view_as_complex`` wouldn't take it as it lies."""
    even = part.storage_offset() % 2 == 0 and (part.is_contiguous() or part.stride(0) % 2 == 0)
    return part if even else part.clone(memory_format=torch.contiguous_format)


def as_flat(parts: Sequence[Tensor]) -> Tensor:
    """Join tensors into one of shape (P,)."""
    return torch.cat([part.reshape(-1) for part in parts])


def device_and_dtype(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return where all of a net's parameters are, and in what; refuse a net of several."""
    devices = sorted({str(p.device) for p in net.parameters()})
    # net.double() leaves complex parameters as they are: those count where there are no others.
    real = [p.dtype for p in net.parameters() if not p.is_complex()]
    real = real or [p.dtype.to_real() for p in net.parameters()]
    dtypes = sorted({str(dtype) for dtype in real})
    if len(devices) != 1 or len(dtypes) != 1:
        raise InvalidInputError(
            f"Expected all of the net's parameters on one device and in one dtype, got {', '.join(devices)} and "
            f"{', '.join(dtypes)}. Call net.to(device, dtype)."
        )
    if real[0] not in {torch.float32, torch.float64}:
        raise InvalidTypeError(f"Expected a net in float32 or float64, got {real[0]}. Call net.float().")
    return next(net.parameters()).device, real[0]
