r"""Transformers between square images and vectors at the places of their patches: the two halves of a ViT-VQ.

.. math:: h = \mathrm{transformer}(W x_p + \mathrm{place}_p), \quad v_p = A h_p; \qquad
          g = \mathrm{transformer}(B v_p + \mathrm{place}_p), \quad \mathrm{output}_p = C g_p

A maps tokens to the few numbers of a code, and B back: codes are looked up where there are few dimensions, and the
networks are as wide as they like. Letters: N images of X = P * pixels, P patches, W the width of a token, D numbers of
a code; leading dimensions of codes are free. Source: Yu et al. (2022), "Vector-quantized image modeling with improved
VQGAN", sections 3.1 and 3.2, https://arxiv.org/abs/2110.04627.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from amortize.models.networks import seeded_linear
from amortize.models.transformer import Patches, Transformer, seeded_places

__all__ = ["PatchReader", "PatchWriter"]


class PatchReader(nn.Module):
    """Images to vectors, one a patch.

    Parameters
    ----------
    patches
        How images are cut.
    width, depth
        W, and how many blocks.
    code_dim
        D.
    generator
        Where the initial weights come from.

    Examples
    --------
    >>> reader = PatchReader(Patches(64), width=8, depth=1, code_dim=3, generator=torch.Generator().manual_seed(0))
    >>> reader(torch.zeros(2, 64)).shape
    torch.Size([2, 16, 3])
    """

    def __init__(self, patches: Patches, *, width: int, depth: int, code_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.patches = patches
        self.embed = seeded_linear(patches.pixels, width, generator=generator)
        self.places = seeded_places(patches.num, width, generator=generator)
        self.transformer = Transformer(width, depth=depth, generator=generator)
        self.code = seeded_linear(width, code_dim, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Of images (N, X): vectors (N, P, D)."""
        tokens = self.embed(self.patches.split(x)) + self.places
        vectors: Tensor = self.code(self.transformer(tokens))
        return vectors


class PatchWriter(nn.Module):
    """Vectors of patches to images, each pixel with a bias of its own.

    Parameters are those of `PatchReader`.

    Examples
    --------
    >>> writer = PatchWriter(Patches(64), width=8, depth=1, code_dim=3, generator=torch.Generator().manual_seed(0))
    >>> writer(torch.zeros(5, 2, 16, 3)).shape
    torch.Size([5, 2, 64])
    """

    def __init__(self, patches: Patches, *, width: int, depth: int, code_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.patches = patches
        self.embed = seeded_linear(code_dim, width, generator=generator)
        with torch.no_grad():  # a code of length 1 begins as large as its place, or nothing is learned from it for long
            self.embed.weight.mul_(math.sqrt((code_dim + width) / 2))
        self.places = seeded_places(patches.num, width, generator=generator)
        self.transformer = Transformer(width, depth=depth, generator=generator)
        self.last_bias = nn.Parameter(torch.zeros(patches.num * patches.pixels))
        self.pixels = seeded_linear(width, patches.pixels, generator=generator)

    def forward(self, vectors: Tensor) -> Tensor:
        """Of vectors (..., P, D): images (..., X)."""
        parts: Tensor = self.pixels(self.transformer(self.embed(vectors) + self.places))
        return self.patches.join(parts) + self.last_bias
