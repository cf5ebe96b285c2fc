"""Networks that an objective trains along: what they read of each datapoint, and how they begin.

Letters: N datapoints, F numbers of a datapoint.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, shown
from amortize.program.data import Data

__all__ = ["Inputs", "check_widths", "quiet_network"]


class Inputs(nn.Module):
    """What a network of an objective reads of each datapoint, (N, F): every argument with an entry a datapoint.

    Parameters
    ----------
    data
        All datapoints: numbers are centred and scaled by their moments, and missing ones become 0.
    like
        Of the dtype and device that they get.

    Attributes
    ----------
    width
        F; 1, a zero, where all datapoints share every argument.
    """

    def __init__(self, data: Data, like: Tensor) -> None:
        super().__init__()
        raw = _numbers(data, like)
        known = torch.isfinite(raw)
        count = known.sum(0).clamp(min=1)
        loc = torch.where(known, raw, 0.0).sum(0) / count
        scale = (torch.where(known, raw - loc, 0.0).square().sum(0) / count).sqrt()
        self.loc: Tensor
        self.scale: Tensor
        self.register_buffer("loc", loc)
        self.register_buffer("scale", torch.where(scale > 1e-6 * (1 + loc.abs()), scale, 1.0))
        self.width = raw.shape[1]

    def forward(self, batch: Data) -> Tensor:
        """Of a batch."""
        return ((_numbers(batch, self.loc) - self.loc) / self.scale).nan_to_num(0.0, 0.0, 0.0)


def check_widths(name: str, widths: object) -> None:
    """Refuse what is no tuple of layer widths.

    Raises
    ------
    ArgumentError
        Naming the argument, what was expected and what came.
    """
    if not isinstance(widths, tuple):
        raise ArgumentError(f"{name}: expected a tuple of widths, as (100,), got {shown(widths)}")
    for width in widths:
        check_count(name, width)


def quiet_network(sizes: tuple[int, ...], like: Tensor) -> nn.Sequential:
    """Linear layers of these sizes with tanh between them, which say 0 at first; begun from the global generator."""
    linear = [nn.Linear(num_inputs, num_outputs) for num_inputs, num_outputs in pairwise(sizes)]
    nn.init.zeros_(linear[-1].weight)
    nn.init.zeros_(linear[-1].bias)
    layers = [part for layer in linear for part in (nn.Tanh(), layer)]
    return nn.Sequential(*layers[1:]).to(like)


def _numbers(data: Data, like: Tensor) -> Tensor:
    """Each datapoint's own arguments in a row, (N, F); a column of ones where there are none."""
    parts = [
        leaf.reshape(data.num_datapoints, -1).to(like)
        for leaf, own in zip(data.leaves, data.per_datapoint, strict=True)
        if own and isinstance(leaf, Tensor) and leaf.shape[0] == data.num_datapoints
    ]
    return torch.cat(parts, -1) if parts else like.new_ones(data.num_datapoints, 1)
