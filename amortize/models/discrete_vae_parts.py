"""Networks between square images and grids of codes, shared by the discrete variational autoencoders.

Letters: N images, X = side * side pixels, P positions of the grid, K codes, D numbers of a code vector; leading
dimensions of what a decoder is given are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypedDict

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import check_count
from amortize.models.convolutions import KERNEL, ResidualBlock, seeded_convolution, sides_of
from amortize.models.networks import seeded_linear
from amortize.models.quantised_networks import GridWriter
from amortize.models.vae import log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = ["CodeDecoder", "GridEncoder", "GridParts", "grid_parts"]


class GridEncoder(nn.Module):
    """Square images to numbers at each position of a grid; each step halves the side.

    Parameters
    ----------
    data_dim, num_outputs
        X, and how many numbers each position gets.
    channels
        Of each step, from the image on; a residual block follows the last.
    generator
        Where the initial weights come from.

    Raises
    ------
    ArgumentError
        X is no square, or a size is not positive.

    Examples
    --------
    >>> encoder = GridEncoder(64, 5, channels=(4, 8), generator=torch.Generator().manual_seed(0))
    >>> encoder(torch.zeros(3, 64)).shape
    torch.Size([3, 4, 5])
    """

    def __init__(self, data_dim: int, num_outputs: int, *, channels: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        sides = sides_of(data_dim, channels)
        self.side, self.num_positions = sides[0], sides[-1] ** 2
        layers: list[nn.Module] = []
        for num_inputs, num in pairwise((1, *channels)):
            step = nn.Conv2d(num_inputs, num, KERNEL, stride=2, padding=1, device="meta")
            layers += [seeded_convolution(step, generator), nn.SiLU()]
        self.layers = nn.Sequential(*layers, ResidualBlock(channels[-1], generator=generator), nn.SiLU())
        self.last = seeded_linear(channels[-1], num_outputs, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., X) to (..., P, num_outputs)."""
        features: Tensor = self.layers(x.reshape(-1, 1, self.side, self.side))
        outputs: Tensor = self.last(features.flatten(2).mT)
        return outputs.reshape(*x.shape[:-1], *outputs.shape[1:])


class CodeDecoder(nn.Module):
    """Codes, one-hot or soft, to a distribution of binary images: a codebook and a network of its vectors.

    Parameters
    ----------
    num_codes, code_dim
        K and D.
    network
        From vectors (..., P, D) to logits (..., X).
    generator
        Where the vectors, standard normal, begin.
    """

    def __init__(self, num_codes: int, code_dim: int, *, network: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(num_codes, code_dim, generator=generator))
        self.network = network

    def forward(self, codes: Tensor) -> dist.Distribution:
        """Of x given codes (..., P, K); soft ones give the mean of the vectors."""
        return dist.Independent(dist.Bernoulli(logits=self.network(codes @ self.vectors)), 1)


class GridParts(TypedDict):
    """What the discrete variational autoencoders are made of."""

    encoder: GridEncoder
    decoder: CodeDecoder


def grid_parts(x: Any, *, num_codes: int, code_dim: int, channels: Sequence[int], seed: int) -> GridParts:
    """Encoder to K numbers a position and decoder for binary ``x`` (N, X), which begins at the data's means.

    Raises
    ------
    DataError
        ``x`` is not a matrix of zeros and ones.
    ArgumentError
        Images that are not square, or settings that make no sense.
    """
    data = matrix_of(x, binary=True)
    check_count("num_codes", num_codes, 2)
    check_count("code_dim", code_dim)
    num, gen = data.shape[1], generator(seed, "decoder")
    encoder = GridEncoder(num, num_codes, channels=channels, generator=generator(seed, "encoder"))
    network = GridWriter(num, code_dim, channels=channels, generator=gen)
    with torch.no_grad():
        network.last_bias.copy_(log_odds_of_means(data))
    return {"encoder": encoder, "decoder": CodeDecoder(num_codes, code_dim, network=network, generator=gen)}
