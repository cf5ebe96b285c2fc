r"""Networks between square images and a grid of vectors, one a position, in raster order.

Each step of a reader halves the side, :math:`s \to \lceil s / 2 \rceil`; a writer goes the same way back. Letters: N
images of X = side * side pixels, P = s * s positions, D numbers of a vector, C channels; leading dimensions are free.
Source: van den Oord et al. (2017), "Neural discrete representation learning", section 4.1,
https://arxiv.org/abs/1711.00937, for strided convolutions and residual blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from amortize.models.convolutions import KERNEL, ResidualBlock, seeded_convolution, sides_of
from amortize.models.networks import seeded_linear
from amortize.models.pixelcnn import PixelCNN

__all__ = ["GridReader", "GridWriter", "PixelByPixel"]


class GridReader(nn.Module):
    """Images to vectors.

    Parameters
    ----------
    data_dim, dim
        X and D.
    channels
        Of each step that halves the side, from the image on.
    generator
        Where the initial weights come from.

    Attributes
    ----------
    side
        s of the grid.

    Raises
    ------
    ArgumentError
        X is no square, or a size is not positive.

    Examples
    --------
    >>> reader = GridReader(64, 3, channels=(4, 8), generator=torch.Generator().manual_seed(0))
    >>> reader(torch.zeros(5, 64)).shape
    torch.Size([5, 4, 3])
    """

    def __init__(self, data_dim: int, dim: int, *, channels: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sides = sides_of(data_dim, channels)
        self.image_side, self.side = sides[0], sides[-1]
        layers: list[nn.Module] = []
        for num_inputs, num in pairwise((1, *channels)):
            step = nn.Conv2d(num_inputs, num, KERNEL, stride=2, padding=1, device="meta")
            layers += [seeded_convolution(step, generator), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1], ResidualBlock(channels[-1], generator=generator))
        self.last = seeded_linear(channels[-1], dim, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., X) to (..., P, D)."""
        features = self.layers(x.reshape(-1, 1, self.image_side, self.image_side)).flatten(2).mT
        vectors: Tensor = self.last(silu(features))
        return vectors.reshape(*x.shape[:-1], *vectors.shape[1:])


class GridWriter(nn.Module):
    """Vectors to images, by transposed convolutions; each pixel has a bias of its own.

    Parameters are those of `GridReader`, ``channels`` from the image on too.

    Attributes
    ----------
    last_bias
        (X,), added to the pixels.

    Examples
    --------
    >>> writer = GridWriter(64, 3, channels=(4, 8), generator=torch.Generator().manual_seed(0))
    >>> writer(torch.zeros(2, 5, 4, 3)).shape
    torch.Size([2, 5, 64])
    """

    def __init__(self, data_dim: int, dim: int, *, channels: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sides = sides_of(data_dim, channels)
        self.side, upwards = sides[-1], tuple(reversed(channels))
        self.first = seeded_linear(dim, upwards[0], generator=generator)
        layers: list[nn.Module] = [ResidualBlock(upwards[0], generator=generator)]
        for (num, num_outputs), side in zip(pairwise((*upwards, 1)), reversed(sides[:-1]), strict=True):
            step = nn.ConvTranspose2d(
                num, num_outputs, KERNEL, stride=2, padding=1, output_padding=1 - side % 2, bias=False, device="meta"
            )
            layers += [nn.SiLU(), seeded_convolution(step, generator)]
        self.layers = nn.Sequential(*layers)
        self.last_bias = nn.Parameter(torch.zeros(data_dim))

    def forward(self, vectors: Tensor) -> Tensor:
        """Map (..., P, D) to (..., X)."""
        entered = self.first(vectors).mT.reshape(-1, self.first.out_features, self.side, self.side)
        images: Tensor = self.layers(entered)
        return images.reshape(*vectors.shape[:-2], -1) + self.last_bias


class PixelByPixel(nn.Module):
    """Binary images drawn pixel by pixel, each given those before it and all the vectors.

    Parameters
    ----------
    pixels
        Of a code of P D numbers.
    """

    def __init__(self, pixels: PixelCNN) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, vectors: Tensor) -> dist.Distribution:
        """Of x (..., X), given vectors (..., P, D)."""
        drawn: dist.Distribution = self.pixels(vectors.flatten(-2))
        return drawn
