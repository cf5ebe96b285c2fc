r"""Transformers over sets of tokens, and square images as tokens: one a patch, with its place.

.. math:: h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad h \leftarrow h + \mathrm{MLP}(\mathrm{norm}(h))

Letters: P patches or tokens, W the width of a token, X = side * side pixels. Leading dimensions are free. Sources:
Vaswani et al. (2017), "Attention is all you need", https://arxiv.org/abs/1706.03762; Dosovitskiy et al. (2021), "An
image is worth 16x16 words", https://arxiv.org/abs/2010.11929.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count
from amortize.models.convolutions import side_of
from amortize.models.networks import seeded_linear

__all__ = ["Attention", "Patches", "Transformer", "seeded_places"]

_WIDER = 2  # the perceptron's hidden layer, in widths
_APART = 0.5  # scale of the codes of places at the start: nearly orthogonal, so that attention can tell them apart


class Attention(nn.Module):
    """Self-attention of several heads: each token takes in from all, by how well keys answer its query.

    Parameters
    ----------
    width, num_heads
        W, and how many heads share it.
    generator
        Where the initial weights come from.
    """

    def __init__(self, width: int, num_heads: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.inputs = seeded_linear(width, 3 * width, generator=generator)
        self.outputs = seeded_linear(width, width, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., P, W) to (..., P, W)."""
        heads = self.inputs(tokens).reshape(*tokens.shape[:-1], 3, self.num_heads, -1)
        query, key, value = heads.movedim(-2, -4).unbind(-2)
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        mixed: Tensor = self.outputs((scores @ value).movedim(-3, -2).flatten(-2))
        return mixed


class Transformer(nn.Module):
    """Blocks of attention and a perceptron, each after a normalisation and beside a shortcut; a last one at the end.

    Parameters
    ----------
    width
        W, a multiple of ``num_heads``.
    depth
        How many blocks.
    num_heads
        Of attention.
    generator
        Where the initial weights come from.

    Raises
    ------
    ArgumentError
        A size that is not positive, or heads that don't divide the width.

    Examples
    --------
    >>> network = Transformer(8, depth=2, num_heads=2, generator=torch.Generator().manual_seed(0))
    >>> network(torch.zeros(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, width: int, *, depth: int, num_heads: int = 4, generator: torch.Generator) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("num_heads", num_heads)):
            check_count(name, value)
        if width % num_heads:
            raise ArgumentError(f"width: expected a multiple of num_heads = {num_heads}, got {width}.")
        self.blocks = nn.ModuleList(_Block(width, num_heads, generator) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (..., P, W) to (..., P, W); the order of the tokens has no part in it."""
        for block in self.blocks:
            tokens = block(tokens)
        normal: Tensor = self.norm(tokens)
        return normal


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = Attention(width, num_heads, generator=generator)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.perceptron = nn.Sequential(
            seeded_linear(width, _WIDER * width, generator=generator),
            nn.GELU(),
            seeded_linear(_WIDER * width, width, generator=generator),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.before(tokens))
        out: Tensor = tokens + self.perceptron(self.between(tokens))
        return out


def seeded_places(num: int, width: int, *, generator: torch.Generator) -> nn.Parameter:
    """Codes of P places, to be learned, (P, W): normal from the generator.

    Waves of the row and the column start closer together, which cost a masked autoencoder of 8 x 8 digits twice the
    steps before it began to learn.
    """
    return nn.Parameter(_APART * torch.randn(num, width, generator=generator))


class Patches(nn.Module):
    """Square images as P square patches, row by row.

    Parameters
    ----------
    data_dim
        X, a square.
    patch
        Side of a patch, a divisor of the image's side; None takes the largest that leaves four or more a side.

    Raises
    ------
    ArgumentError
        If X is no square, or ``patch`` doesn't divide its side into two or more.

    Examples
    --------
    >>> patches = Patches(64)
    >>> patches.num, patches.pixels, patches.split(torch.zeros(3, 64)).shape
    (16, 4, torch.Size([3, 16, 4]))
    """

    order: Tensor

    def __init__(self, data_dim: int, patch: int | None = None) -> None:
        super().__init__()
        side = side_of(data_dim)
        divisors = [size for size in range(1, side // 2 + 1) if side % size == 0]
        if not divisors or (patch is not None and patch not in divisors):
            raise ArgumentError(f"patch: expected a side in {divisors} for images of {side} x {side}, got {patch}.")
        size = max([size for size in divisors if side // size >= 4] or [1]) if patch is None else patch
        self.across = side // size
        self.num, self.pixels = self.across**2, size**2
        blocks = torch.arange(data_dim).reshape(self.across, size, self.across, size).transpose(1, 2)
        self.register_buffer("order", blocks.flatten(), persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """Pixels (..., X) by patch, (..., P, X / P)."""
        return x.index_select(-1, self.order).reshape(*x.shape[:-1], self.num, self.pixels)

    def join(self, parts: Tensor) -> Tensor:
        """The way back: (..., P, X / P) to (..., X)."""
        return parts.flatten(-2).index_select(-1, self.order.argsort())
