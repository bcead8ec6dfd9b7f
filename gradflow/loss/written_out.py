"""Operations by their formulas, where higher derivatives of torch's own kernels are wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class _Replacing(TorchFunctionMode):
    """Evaluate some functions of torch by others."""

    replacements: ClassVar[dict[Any, Callable[..., Any]]]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace a function, or pass it on."""
        return self.replacements.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


class WrittenOutWeightNorm(_Replacing):
    """Evaluate ``torch._weight_norm`` by its formula, g·v/‖v‖.

    The second derivative of torch's fused kernel is wrong (torch 2.13), by 4–17 % of a product with the Hessian.
    """

    replacements: ClassVar = {torch._weight_norm: _weight_norm}


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    y = _standardize(x, list(range(-len(normalized_shape), 0)), eps)
    return _affine(y, weight, bias)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps), weight, None)


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:  # the running statistics are constants
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    y = _standardize(x, [0, *range(2, x.dim())], eps)
    return _affine(y, *_by_channel(x, weight, bias))


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.instance_norm(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    y = _standardize(x, list(range(2, x.dim())), eps)
    return _affine(y, *_by_channel(x, weight, bias))


def _standardize(x: Tensor, dims: list[int], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _by_channel(x: Tensor, *parameters: Tensor | None) -> list[Tensor | None]:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return [None if p is None else p.reshape(shape) for p in parameters]


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


class WrittenOutNorms(_Replacing):
    """Evaluate layer- and RMS-norm, and batch- and instance-norm with the statistics of the batch, by their formulas.

    Third derivatives of torch's kernels are wrong (torch 2.13), by 5–50 % of a product, because the second derivative
    takes the mean and variance that the kernel saved for constants. Running statistics aren't updated.
    """

    replacements: ClassVar = {
        F.layer_norm: _layer_norm,
        torch.layer_norm: _layer_norm,
        F.rms_norm: _rms_norm,
        F.batch_norm: _batch_norm,
        F.instance_norm: _instance_norm,
    }
