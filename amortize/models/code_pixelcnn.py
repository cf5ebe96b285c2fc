r"""A gated PixelCNN over codes: one stack of convolutions looks at the rows above, another along the row.

.. math:: v \leftarrow v + g(W_v * v), \qquad h \leftarrow h + L g(W_h * h + M (W_v * v)), \qquad
          g(a, b) = \tanh(a) \, \sigma(b)

The codes enter shifted, down by a row into v and right by a column into h, so that convolutions which see nothing below
and nothing to the right are causal; together the stacks have no blind spot. A block sees two rows up, two columns to
either side. Letters as in `amortize.models.code_distribution`, with C channels. Source: van den Oord et al. (2016),
"Conditional image generation with PixelCNN decoders", https://arxiv.org/abs/1606.05328.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.code_distribution import CausalCodes
from amortize.models.convolutions import seeded_convolution
from amortize.models.networks import seeded_linear
from amortize.random import generator

__all__ = ["PixelCNNCodes"]

REACH = 2
"""Rows up, and columns to either side, that one block sees."""


class PixelCNNCodes(CausalCodes):
    """A prior of codes on a grid, by gated convolutions.

    A draw takes one pass for each position, over the rows that the position sees.

    Parameters
    ----------
    height, width
        Sides of the grid, P = height * width.
    num_codes
        K.
    channels
        Of each block, one number for each.
    condition_dim
        H, numbers of the condition at each position; 0 for a prior without one.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        A size that is not positive, or no channels.

    Examples
    --------
    >>> prior = PixelCNNCodes(2, 3, num_codes=5, channels=(8,))
    >>> prior().log_prob(torch.zeros(4, 6)).shape, prior().sample((4,)).shape
    (torch.Size([4]), torch.Size([4, 6]))
    """

    def __init__(
        self,
        height: int,
        width: int,
        num_codes: int,
        *,
        channels: Sequence[int] = (32, 32),
        condition_dim: int = 0,
        seed: int = 0,
    ) -> None:
        widths = _checked(channels)
        num_positions = check_count("height", height) * check_count("width", width)
        gen = generator(seed, "pixelcnn-codes")
        super().__init__(num_positions, num_codes, condition_dim, widths[0], generator=gen)
        self.width = width
        pairs = pairwise((widths[0], *widths))
        self.blocks = nn.ModuleList(_Block(before, after, gen) for before, after in pairs)
        self.exit = seeded_linear(widths[-1], num_codes, generator=gen)
        nn.init.zeros_(self.exit.weight)

    @property
    def rows_up(self) -> int:
        """How many rows above its own a position sees: the shift's, and each block's."""
        return 1 + REACH * len(self.blocks)

    def logits(self, codes: Tensor, entered: Tensor) -> Tensor:
        """Logits (B, P, K). Of a part of the grid's rows, the last row's are right if `rows_up` are above it."""
        told = self._grid(entered)
        seen = self._grid(self.vectors(codes))
        above, along = told + pad(seen, (0, 0, 1, -1)), told + pad(seen, (1, -1))
        for block in self.blocks:
            above, along = block(above, along)
        logits: Tensor = self.exit(silu(along).flatten(2).transpose(1, 2))
        return logits

    def draw(self, entered: Tensor) -> Tensor:
        """Codes (B, P), a pass for each."""
        codes = torch.zeros(entered.shape[:-1], dtype=torch.long, device=entered.device)
        for position in range(self.num_positions):
            row, column = divmod(position, self.width)
            seen = slice(max(0, row - self.rows_up) * self.width, (row + 1) * self.width)
            logits = self.logits(codes[:, seen], entered[:, seen])[:, column - self.width]
            codes[:, position] = logits.softmax(-1).multinomial(1).squeeze(-1)
        return codes

    def _grid(self, flat: Tensor) -> Tensor:
        """Positions (B, P, C) as images (B, C, rows, width)."""
        return flat.reshape(len(flat), -1, self.width, flat.shape[-1]).movedim(-1, 1)


class _Block(nn.Module):
    """Both stacks a step on; where the channels change, the shortcut is a 1 x 1 convolution."""

    def __init__(self, before: int, after: int, gen: torch.Generator) -> None:
        super().__init__()
        self.above = _convolution(before, 2 * after, (REACH + 1, 2 * REACH + 1), gen)
        self.along = _convolution(before, 2 * after, (1, REACH + 1), gen)
        self.link = _convolution(2 * after, 2 * after, (1, 1), gen)
        self.mixing = _convolution(after, after, (1, 1), gen)
        same = before == after
        self.shortcuts = nn.ModuleList(
            nn.Identity() if same else _convolution(before, after, (1, 1), gen) for _ in range(2)
        )

    def forward(self, above: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        from_above = self.above(pad(above, (REACH, REACH, REACH, 0)))
        found = self.along(pad(along, (REACH, 0))) + self.link(from_above)
        past_above, past_along = (shortcut(h) for shortcut, h in zip(self.shortcuts, (above, along), strict=True))
        return past_above + _gated(from_above), past_along + self.mixing(_gated(found))


def _gated(h: Tensor) -> Tensor:
    values, gates = h.chunk(2, dim=1)
    return values.tanh() * gates.sigmoid()


def _convolution(num_inputs: int, num_outputs: int, kernel: tuple[int, int], gen: torch.Generator) -> nn.Conv2d:
    return seeded_convolution(nn.Conv2d(num_inputs, num_outputs, kernel, device="meta"), gen)


def _checked(channels: object) -> tuple[int, ...]:
    if not isinstance(channels, Sequence) or isinstance(channels, str) or not channels:
        raise ArgumentError(f"channels: expected one number a block or more, as (32, 32), got {shown(channels)}")
    return tuple(check_count("channels", num) for num in channels)
