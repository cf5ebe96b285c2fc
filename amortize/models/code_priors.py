r"""Priors over a grid of codes, by name: uniform, PixelCNN, transformer; each with an exact density.

.. math:: p(k) = K^{-P}, \qquad p(k) = \prod_i p(k_i | k_1, \ldots, k_{i-1})

Called without arguments a prior gives the distribution of P codes, and with a condition (..., P, H) that of a batch.
Letters as in `amortize.models.code_distribution`.
"""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.code_distribution import AutoregressiveCodes, CodePrior, check_condition
from amortize.models.code_pixelcnn import PixelCNNCodes
from amortize.models.code_transformer import TransformerCodes

__all__ = [
    "AutoregressiveCodes",
    "CodePrior",
    "CodePriorKind",
    "PixelCNNCodes",
    "TransformerCodes",
    "UniformCodes",
    "code_prior",
]

CodePriorKind = Literal["uniform", "pixelcnn", "transformer"]
"""What `code_prior` makes."""

WIDTHS: dict[str, int] = {"uniform": 1, "pixelcnn": 32, "transformer": 64}
"""What ``width=None`` is: channels of a PixelCNN, numbers of a transformer's token; the uniform one has none."""


class UniformCodes(CodePrior):
    """P independent codes, each of K with the same probability; of a condition, only the batch shape is used.

    Examples
    --------
    >>> UniformCodes(2, num_codes=10)().log_prob(torch.tensor([3, 7])).exp()
    tensor(0.0100)
    """

    level: Tensor

    def __init__(self, num_positions: int, num_codes: int, *, condition_dim: int = 0) -> None:
        super().__init__(num_positions, num_codes, condition_dim)
        self.register_buffer("level", torch.zeros(num_positions, num_codes), persistent=False)

    def forward(self, condition: Tensor | None = None) -> dist.Distribution:
        """The distribution."""
        check_condition(self, condition)
        leading = () if condition is None else condition.shape[:-2]
        return dist.Independent(dist.Categorical(logits=self.level.expand(*leading, -1, -1)), 1)


def code_prior(
    kind: str,
    grid: tuple[int, int],
    num_codes: int,
    *,
    width: int | None = None,
    condition_dim: int = 0,
    seed: int = 0,
) -> CodePrior:
    """A prior by its name.

    Parameters
    ----------
    kind
        "uniform", "pixelcnn" or "transformer".
    grid
        Height and width of the grid of codes, in raster order.
    num_codes
        K.
    width
        Channels of the PixelCNN or width of the transformer; None for 32 and 64.
    condition_dim
        H, numbers of the condition at each position; 0 for a prior without one.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        An unknown name, or a size that is not positive.

    Examples
    --------
    >>> code_prior("transformer", (2, 2), 8)().sample((3,)).shape
    torch.Size([3, 4])
    """
    if not isinstance(kind, str) or kind not in WIDTHS:
        raise ArgumentError(f"prior: expected one of {tuple(WIDTHS)}, got {shown(kind)}")
    high, across = (check_count("grid", side) for side in grid)
    size = WIDTHS[kind] if width is None else width
    if kind == "pixelcnn":
        channels = (size, size)
        return PixelCNNCodes(high, across, num_codes, channels=channels, condition_dim=condition_dim, seed=seed)
    if kind == "transformer":
        return TransformerCodes(high * across, num_codes, width=size, condition_dim=condition_dim, seed=seed)
    return UniformCodes(high * across, num_codes, condition_dim=condition_dim)
