r"""A transformer over codes whose attention looks back: each position reads those before it, wherever they are.

.. math:: t_i = e(k_{i-1}) + \mathrm{place}_i + \mathrm{condition}_i, \qquad
          t \leftarrow t + \mathrm{attention}_{j \le i}(\mathrm{norm}(t)), \qquad
          t \leftarrow t + \mathrm{MLP}(\mathrm{norm}(t))

A draw keeps the keys and values of the positions that are drawn, so that each takes one token's work. Letters as in
`amortize.models.code_distribution`, with W = C the width of a token. Sources: Vaswani et al. (2017), "Attention is all
you need", https://arxiv.org/abs/1706.03762; Esser et al. (2021), "Taming transformers for high-resolution image
synthesis", https://arxiv.org/abs/2012.09841, for a transformer as the prior of codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from amortize.errors import check_count
from amortize.models.code_distribution import CausalCodes
from amortize.models.networks import seeded_linear
from amortize.random import generator

__all__ = ["TransformerCodes"]

_HEAD = 16  # numbers of a head at most
_WIDER = 4  # the perceptron's hidden layer, in widths

Past = tuple[Tensor, Tensor]
"""Keys and values of the tokens so far, (B, heads, tokens, W / heads) each."""


class TransformerCodes(CausalCodes):
    """A prior of P codes in a row, by attention that looks back.

    Parameters
    ----------
    num_positions, num_codes
        P and K.
    width
        W.
    depth
        How many blocks.
    condition_dim
        H, numbers of the condition at each position; 0 for a prior without one. A position sees its own condition and
        those before it.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        A size that is not positive.

    Examples
    --------
    >>> prior = TransformerCodes(6, num_codes=5, width=16, depth=1)
    >>> prior().log_prob(torch.zeros(4, 6)).shape, prior().sample((4,)).shape
    (torch.Size([4]), torch.Size([4, 6]))
    """

    def __init__(
        self,
        num_positions: int,
        num_codes: int,
        *,
        width: int = 64,
        depth: int = 2,
        condition_dim: int = 0,
        seed: int = 0,
    ) -> None:
        gen = generator(seed, "transformer-codes")
        super().__init__(num_positions, num_codes, condition_dim, width, generator=gen)
        num_heads = next(num for num in range(-(-width // _HEAD), width + 1) if width % num == 0)
        self.blocks = nn.ModuleList(_Block(width, num_heads, gen) for _ in range(check_count("depth", depth)))
        self.norm = nn.LayerNorm(width)
        self.exit = seeded_linear(width, num_codes, generator=gen)
        nn.init.zeros_(self.exit.weight)

    def logits(self, codes: Tensor, entered: Tensor) -> Tensor:
        """Logits (B, P, K): the code before enters each position, none the first."""
        tokens = entered + pad(self.vectors(codes), (0, 0, 1, -1))
        for block in self.blocks:
            tokens, _ = block(tokens)
        logits: Tensor = self.exit(self.norm(tokens))
        return logits

    def draw(self, entered: Tensor) -> Tensor:
        """Codes (B, P), a token for each."""
        codes: list[Tensor] = []
        pasts: list[Past | None] = [None for _ in self.blocks]
        for position in range(self.num_positions):
            token = entered[:, position : position + 1]
            token = token + self.vectors(codes[-1]) if codes else token
            for number, block in enumerate(self.blocks):
                token, pasts[number] = block(token, pasts[number])
            logits = self.exit(self.norm(token)).squeeze(1)
            codes.append(logits.softmax(-1).multinomial(1))
        return torch.cat(codes, 1)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, gen: torch.Generator) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs = seeded_linear(width, 3 * width, generator=gen)
        self.outputs = seeded_linear(width, width, generator=gen)
        self.perceptron = nn.Sequential(
            seeded_linear(width, _WIDER * width, generator=gen),
            nn.GELU(),
            seeded_linear(_WIDER * width, width, generator=gen),
        )

    def forward(self, tokens: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """Tokens (B, tokens, W) a block on, and all keys and values: those of a ``past`` come before them.

        With a past, there is but one token, which sees everything.
        """
        heads = self.inputs(self.before(tokens)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if past is not None:
            key, value = torch.cat((past[0], key), 2), torch.cat((past[1], value), 2)
        found = scaled_dot_product_attention(query, key, value, is_causal=past is None)
        tokens = tokens + self.outputs(found.transpose(1, 2).flatten(2))
        return tokens + self.perceptron(self.between(tokens)), (key, value)
