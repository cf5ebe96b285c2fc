r"""Convolutional networks between square images, as rows of pixels, and vectors.

Each step of an encoder halves the side, :math:`s \to \lceil s / 2 \rceil`, by a convolution of stride 2; a decoder
goes the same way back. With ``residual=True`` a residual block, :math:`h + f(h)`, follows each step. Non-linearities
(SiLU) have a continuous derivative, for samplers that follow gradients. Letters: N images, X = side * side pixels.
Sources: He et al. (2016), "Identity mappings in deep residual networks", https://arxiv.org/abs/1603.05027; He et al.
(2015), "Delving deep into rectifiers", https://arxiv.org/abs/1502.01852, for the rule of the first weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.networks import seeded_linear

__all__ = ["ConvDecoder", "ConvEncoder", "ResidualBlock", "seeded_convolution", "side_of", "sides_of"]

KERNEL = 3
_Convolution = TypeVar("_Convolution", nn.Conv2d, nn.ConvTranspose2d)


class ResidualBlock(nn.Module):
    """The input plus two convolutions of what a non-linearity makes of it; it begins as the identity.

    Parameters
    ----------
    channels
        Of input and output.
    generator
        Where the initial weights come from.

    Examples
    --------
    >>> block = ResidualBlock(4, generator=torch.Generator().manual_seed(0))
    >>> block(torch.ones(2, 4, 5, 5)).shape
    torch.Size([2, 4, 5, 5])
    """

    def __init__(self, channels: int, *, generator: torch.Generator) -> None:
        super().__init__()
        first = seeded_convolution(nn.Conv2d(channels, channels, KERNEL, padding=1, device="meta"), generator)
        second = seeded_convolution(nn.Conv2d(channels, channels, KERNEL, padding=1, device="meta"), generator)
        nn.init.zeros_(second.weight)
        self.layers = nn.Sequential(nn.SiLU(), first, nn.SiLU(), second)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, s, s) to the same shape."""
        change: Tensor = self.layers(images)
        return images + change


class ConvEncoder(nn.Module):
    """Square images to a vector.

    Parameters
    ----------
    data_dim, num_outputs
        Numbers of pixels X, a square, and of outputs.
    channels
        Of each step that halves the side, from the image on.
    generator
        Where the initial weights come from.
    residual
        Whether a residual block follows each step.

    Raises
    ------
    ArgumentError
        X is no square, or a size is not positive.

    Examples
    --------
    >>> encoder = ConvEncoder(64, 10, channels=(4, 8), generator=torch.Generator().manual_seed(0))
    >>> encoder(torch.zeros(3, 64)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        data_dim: int,
        num_outputs: int,
        *,
        channels: Sequence[int],
        generator: torch.Generator,
        residual: bool = False,
    ) -> None:
        super().__init__()
        sides = sides_of(data_dim, channels)
        self.side = sides[0]
        layers: list[nn.Module] = []
        for num_inputs, num in pairwise((1, *channels)):
            step = nn.Conv2d(num_inputs, num, KERNEL, stride=2, padding=1, device="meta")
            layers += [seeded_convolution(step, generator), *_block(num, residual, generator), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.last = seeded_linear(channels[-1] * sides[-1] ** 2, num_outputs, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., X) to (..., num_outputs)."""
        outputs: Tensor = self.last(self.layers(x.reshape(-1, 1, self.side, self.side)))
        return outputs.reshape(*x.shape[:-1], -1)


class ConvDecoder(nn.Module):
    """A vector to square images, by transposed convolutions; each pixel has a bias of its own.

    Parameters
    ----------
    num_inputs, data_dim
        Numbers of inputs and of pixels X, a square.
    channels
        Of each step that doubles the side, from the vector on.
    generator, residual
        As for `ConvEncoder`.

    Raises
    ------
    ArgumentError
        X is no square, or a size is not positive.

    Examples
    --------
    >>> decoder = ConvDecoder(10, 49, channels=(8, 4), generator=torch.Generator().manual_seed(0))
    >>> decoder(torch.zeros(2, 3, 10)).shape
    torch.Size([2, 3, 49])
    """

    def __init__(
        self,
        num_inputs: int,
        data_dim: int,
        *,
        channels: Sequence[int],
        generator: torch.Generator,
        residual: bool = False,
    ) -> None:
        super().__init__()
        sides = sides_of(data_dim, channels)
        self.start = (channels[0], sides[-1], sides[-1])
        num_first = math.prod(self.start)
        self.first = seeded_linear(num_inputs, num_first, generator=generator)
        with torch.no_grad():  # its outputs begin as large as its inputs, however many they are
            self.first.weight.mul_(math.sqrt((num_inputs + num_first) / (2 * num_inputs)))
        layers: list[nn.Module] = []
        for (num, num_outputs), side in zip(pairwise((*channels, 1)), reversed(sides[:-1]), strict=True):
            step = nn.ConvTranspose2d(
                num, num_outputs, KERNEL, stride=2, padding=1, output_padding=1 - side % 2, bias=False, device="meta"
            )
            layers += [nn.SiLU(), *_block(num, residual, generator), seeded_convolution(step, generator)]
        self.layers = nn.Sequential(*layers)
        self.last_bias = nn.Parameter(torch.zeros(data_dim))

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., num_inputs) to (..., X)."""
        images: Tensor = self.layers(self.first(z).reshape(-1, *self.start))
        return images.reshape(*z.shape[:-1], -1) + self.last_bias


def side_of(data_dim: int) -> int:
    """Side of a square image of ``data_dim`` pixels.

    Raises
    ------
    ArgumentError
        It is no square.

    Examples
    --------
    >>> side_of(784)
    28
    """
    side = math.isqrt(max(0, data_dim))
    if side < 1 or side * side != data_dim:
        raise ArgumentError(
            f"x: expected square images, rows of side * side pixels (64, 784), got {data_dim} columns. Take a model "
            "of any columns (network='mlp' where it has one; `amortize models` lists them)"
        )
    return side


def sides_of(data_dim: int, channels: Sequence[int]) -> list[int]:
    """The side of an image of ``data_dim`` pixels and that after each step that halves it.

    Raises
    ------
    ArgumentError
        No square, or channels that are none.
    """
    if not channels:
        raise ArgumentError(f"channels: expected one number a step or more, as (16, 32), got {shown(channels)}.")
    sides = [side_of(data_dim)]
    for num in channels:
        check_count("channels", num)
        sides.append((sides[-1] + 1) // 2)
    return sides


def _block(channels: int, residual: bool, generator: torch.Generator) -> list[nn.Module]:
    return [nn.SiLU(), ResidualBlock(channels, generator=generator)] if residual else []


def seeded_convolution(empty: _Convolution, generator: torch.Generator) -> _Convolution:
    """A convolution made on "meta", with He-uniform weights and a zero bias.

    Of a transposed kernel an output sees what its stride leaves.
    """
    layer = empty.to_empty(device="cpu")
    seen = math.prod(layer.kernel_size) * layer.in_channels / (layer.stride[0] ** 2 if layer.transposed else 1)
    bound = math.sqrt(6.0 / seen)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
