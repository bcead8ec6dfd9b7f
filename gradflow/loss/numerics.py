"""The settings of torch under which a loss and its first two derivatives are exact.

Process-wide switches are put back as they were when the block ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradflow.autocast import without_autocast
from gradflow.loss.written_out import WrittenOutWeightNorm


@contextmanager
def exact_derivatives(
    device: torch.device, *, allow_tf32: bool = False, recurrent: bool = False, weight_norm: bool = False
) -> Iterator[None]:
    """Evaluate with kernels that can be differentiated twice, in full precision.

    - Autocast and inference mode are off.
    - Attention runs under the MATH backend and without the inference fast path: the fused kernels have no
      second derivative.
    - On CUDA, TF32 is off unless asked for, and cuDNN is deterministic; recurrent nets run without cuDNN,
      which can't differentiate them twice.
    - ``weight_norm`` is evaluated by its formula: the second derivative of torch's kernel is wrong.

    Parameters
    ----------
    device : torch.device
        Where θ lives.
    allow_tf32 : bool
        Keep TF32 matrix products, with about 3 decimal digits.
    recurrent : bool
        The net has recurrent layers.
    weight_norm : bool
        The net has weights in weight normalisation.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(without_autocast())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        if weight_norm:
            stack.enter_context(WrittenOutWeightNorm())
        if device.type == "cuda":
            matmul = torch.backends.cuda.matmul.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = allow_tf32
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", matmul)
            stack.enter_context(
                torch.backends.cudnn.flags(
                    enabled=not recurrent, benchmark=False, deterministic=True, allow_tf32=allow_tf32
                )
            )
        yield
