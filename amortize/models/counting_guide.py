"""Where the next object of an image is: an attention map over its pixels, drawn from.

Letters: N datapoints, X = H^2 pixels.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.random import generator

__all__ = ["Seeker"]

REACH = 3  # side of the second and third convolution


class Seeker(nn.Module):
    """The guide of one object's place, given the image and what is seen of it already.

    A mixture: a narrow normal at each pixel, weighed by the attention map, and a wide one, for an object that isn't
    there. Drawing from the map covers every object that could come next.

    Parameters
    ----------
    side
        H.
    object_size
        Pixels along a side of an object: how far the first convolution sees, and how much of the image is seen.
    channels
        Of the convolutions.
    seed
        Of the weights.
    """

    cells: Tensor

    def __init__(self, side: int, object_size: int, channels: int, *, seed: int) -> None:
        super().__init__()
        self.side, self.object_size = side, object_size
        stream = generator(seed, "seeker")
        self.first = _convolution(2, channels, object_size + 1 - object_size % 2, stream)
        self.second = _convolution(channels, channels, REACH, stream)
        self.attention = _convolution(channels, 1, REACH, stream)
        self.offset = _convolution(channels, 2, REACH, stream)
        self.absent = nn.Parameter(torch.tensor(0.0))
        self.log_narrow = nn.Parameter(torch.tensor(0.5).log())
        self.middle = nn.Parameter(torch.zeros(2))
        self.log_wide = nn.Parameter(torch.full((2,), math.log(side / 4)))
        lines = torch.arange(side) - (side - 1) / 2
        self.register_buffer("cells", torch.cartesian_prod(lines, lines), persistent=False)

    def forward(self, x: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Of a place, event shape (2,), for images (N, X) and how much of each pixel is seen, (N, X)."""
        planes = torch.stack([x, seen], 1).reshape(-1, 2, self.side, self.side)
        features = torch.tanh(self.second(torch.tanh(self.first(planes))))
        logits = self.attention(features).flatten(1)
        shift = self.offset(features).flatten(2).transpose(1, 2)
        num = len(x)
        weights = torch.cat([logits, self.absent.expand(num, 1)], 1)
        loc = torch.cat([self.cells + shift, self.middle.expand(num, 1, 2)], 1)
        narrow = self.log_narrow.exp().expand(len(self.cells), 2)
        scale = torch.cat([narrow, self.log_wide.exp()[None]]).expand(num, -1, -1)
        each = dist.Independent(dist.Normal(loc, scale), 1)
        mixture: dist.TorchDistribution = dist.MixtureSameFamily(dist.Categorical(logits=weights), each)
        return mixture

    def window(self, where: Tensor) -> Tensor:
        """Which pixels an object at ``where`` (N, 2) covers, softly, (N, X)."""
        away = (self.cells - where[:, None]).abs().amax(-1)
        return torch.sigmoid(4 * (self.object_size / 2 - away))


def _convolution(num_inputs: int, num_outputs: int, size: int, stream: torch.Generator) -> nn.Conv2d:
    """One that keeps the image's size, Glorot-uniform."""
    empty = nn.Conv2d(num_inputs, num_outputs, size, padding=size // 2, device="meta")
    layer = empty.to_empty(device="cpu")
    bound = math.sqrt(6.0 / (size * size * (num_inputs + num_outputs)))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=stream)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer
