"""Networks for sequences: transformers, recurrent ones, a scan; and the vision transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gradflow.errors import InvalidInputError

_WIDTH, _HEADS, _BLOCKS = 64, 4, 2
_PATCH = 4
_STATES = 8


class Block(nn.Module):
    """Attention and a two-layer network with GELU, each of the normalised stream and added to it (pre-norm).

    Parameters
    ----------
    width, n_heads : int
    causal : bool
        A place sees itself and those before it.
    """

    def __init__(self, width: int, n_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.n_heads, self.causal = n_heads, causal
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, T, width) to the same shape."""
        b, T, width = x.shape
        q, k, v = self.qkv(self.before(x)).view(b, T, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        x = x + self.join((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, T, width))
        out: Tensor = x + self.net(self.between(x))
        return out


class Transformer(nn.Module):
    """Two blocks of width 64 with four heads between an embedding with learned places and a linear map.

    Parameters
    ----------
    n_symbols, length, n_outputs : int
    causal : bool
        As in a language model (Radford et al. 2019).
    """

    def __init__(self, n_symbols: int, length: int, n_outputs: int, *, causal: bool) -> None:
        super().__init__()
        self.symbols = nn.Embedding(n_symbols, _WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(length, _WIDTH))
        self.blocks = nn.Sequential(*(Block(_WIDTH, _HEADS, causal=causal) for _ in range(_BLOCKS)))
        self.norm, self.out = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, n_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map symbols (b, T) to outputs (b, T, n_outputs)."""
        outputs: Tensor = self.out(self.norm(self.blocks(self.symbols(sequence) + self.places)))
        return outputs


class Recurrent(nn.Module):
    """One LSTM layer of 64 units between an embedding and a linear map."""

    def __init__(self, n_symbols: int, n_outputs: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(n_symbols, _WIDTH)
        self.lstm, self.out = nn.LSTM(_WIDTH, _WIDTH, batch_first=True), nn.Linear(_WIDTH, n_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map symbols (b, T) to outputs (b, T, n_outputs)."""
        outputs: Tensor = self.out(self.lstm(self.symbols(sequence))[0])
        return outputs


class Scan(nn.Module):
    """A selective state-space layer, as in Mamba (Gu & Dao 2023), without convolution and gate.

    hₜ = exp(−Δₜ A) hₜ₋₁ + Δₜ Bₜ xₜ, yₜ = Cₜ·hₜ + D xₜ, with Δₜ, Bₜ and Cₜ linear in xₜ, eight states for each of
    the 64 channels.
    """

    def __init__(self, n_symbols: int, n_outputs: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(n_symbols, _WIDTH)
        self.step, self.select = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 2 * _STATES)
        self.log_rates = nn.Parameter(torch.arange(1.0, _STATES + 1).log().repeat(_WIDTH, 1))
        self.through = nn.Parameter(torch.ones(_WIDTH))
        self.norm, self.out = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, n_outputs)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map symbols (b, T) to outputs (b, T, n_outputs)."""
        x = self.symbols(sequence)
        sizes = nn.functional.softplus(self.step(x))
        B, C = self.select(x).chunk(2, -1)
        decays = torch.exp(-sizes[..., None] * self.log_rates.exp())
        inputs = (sizes * x)[..., None] * B[:, :, None]
        h, seen = torch.zeros_like(inputs[:, 0]), []
        for t in range(x.shape[1]):
            h = decays[:, t] * h + inputs[:, t]
            seen.append((h * C[:, t, None]).sum(-1))
        y = torch.stack(seen, 1) + self.through * x
        outputs: Tensor = self.out(self.norm(x + y))
        return outputs


class VisionTransformer(nn.Module):
    """Two blocks of width 64 on patches of 4 × 4 pixels, averaged over the patches (Dosovitskiy et al. 2021).

    Parameters
    ----------
    shape : sequence of int
        Of an image, (channels, height, width).
    n_outputs : int
    """

    def __init__(self, shape: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        channels, height, width = shape
        n_patches = (height // _PATCH) * (width // _PATCH)
        self.patches = nn.Conv2d(channels, _WIDTH, _PATCH, stride=_PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(n_patches, _WIDTH))
        self.blocks = nn.Sequential(*(Block(_WIDTH, _HEADS, causal=False) for _ in range(_BLOCKS)))
        self.norm, self.out = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, n_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (b, channels, height, width) to outputs (b, n_outputs)."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        outputs: Tensor = self.out(self.norm(self.blocks(x)).mean(1))
        return outputs


class Factors(nn.Module):
    """A matrix as a product of two with as many columns as rows, (U Vᵀ)ᵢⱼ, from small Gaussian entries.

    Deep matrix factorisation of depth 2 (Arora et al. 2019), full rank, entries of standard deviation 0.1/√n.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.rows, self.columns = (nn.Parameter(0.1 / math.sqrt(n) * torch.randn(n, n)) for _ in range(2))

    def forward(self, cells: Tensor) -> Tensor:
        """Map pairs (i, j), shape (b, 2), to entries, shape (b, 1)."""
        i, j = cells.T
        return (self.rows[i] * self.columns[j]).sum(1, keepdim=True)


#: Networks for tokens, of the number of symbols, the length and the number of outputs.
FOR_TOKENS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "transformer": partial(Transformer, causal=False),
    "gpt": partial(Transformer, causal=True),
    "lstm": lambda n_symbols, length, n_outputs: Recurrent(n_symbols, n_outputs),
    "scan": lambda n_symbols, length, n_outputs: Scan(n_symbols, n_outputs),
}


def vision_transformer(shape: Sequence[int], n_outputs: int) -> nn.Module:
    """Make ``vit-tiny``."""
    if len(shape) != 3 or any(n % _PATCH for n in shape[1:]):
        raise InvalidInputError(
            f"vit-tiny is for images of multiples of {_PATCH} pixels; the data have shape {tuple(shape)}. Use fc-tanh."
        )
    return VisionTransformer(shape, n_outputs)
