"""Where a net computes in fewer digits than its parameters have."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_HERE = os.path.dirname(os.path.abspath(__file__))
_TORCH = os.path.dirname(os.path.abspath(torch.__file__))


class Casts(TorchDispatchMode):
    """Watch for casts of floating-point numbers to fewer digits.

    Parameters
    ----------
    net : torch.nn.Module or None
        Its modules are called by their names in it.
    dtype : torch.dtype
        What is computed in.

    Attributes
    ----------
    dtype : torch.dtype
    found : dict of str to torch.dtype
        Where, and to what.
    """

    def __init__(self, net: nn.Module | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.found: dict[str, torch.dtype] = {}
        self.dtype = dtype
        self._names = {} if net is None else {id(m): name for name, m in net.named_modules()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Save the seconds that importing the compiler takes; nothing is compiled here."""
        return False

    @property
    def eps(self) -> float:
        """Rounding of the coarsest dtype that was seen."""
        return max(torch.finfo(dtype).eps for dtype in (self.dtype, *self.found.values()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at casts; compute what is asked for."""
        kwargs = kwargs or {}
        to = kwargs.get("dtype")
        if func is torch.ops.aten._to_copy.default and to is not None and to.is_floating_point:
            loses = args[0].dtype == self.dtype and torch.finfo(to).eps > torch.finfo(self.dtype).eps
            where = self._where(sys._getframe(1)) if loses else None
            if where is not None:
                self.found.setdefault(where, to)
        return func(*args, **kwargs)

    def _where(self, frame: FrameType | None) -> str | None:
        """Name the innermost module, or the code outside torch, that casts; None where the data are moved."""
        code = None
        while frame is not None:
            path = os.path.abspath(frame.f_code.co_filename)
            if path.startswith(_HERE):
                break
            module = frame.f_locals.get("self")
            if id(module) in self._names and isinstance(module, nn.Module):
                name = self._names[id(module)]
                return f"{name} ({type(module).__name__})" if name else type(module).__name__
            if code is None and not path.startswith(_TORCH):
                code = f"{frame.f_code.co_qualname} ({os.path.basename(path)}:{frame.f_lineno})"
            frame = frame.f_back
        return code
