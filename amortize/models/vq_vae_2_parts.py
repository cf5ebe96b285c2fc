r"""Networks of a VQ-VAE-2: an image's features at several sides, and what the levels above say to a finer grid.

Letters: N images, X = side * side pixels, L levels from the top, the coarsest, down: level l has P_l = s_l * s_l
positions in raster order; D numbers of a code vector, C channels. Leading dimensions of vectors are free. Source:
Razavi et al. (2019), "Generating diverse high-fidelity images with VQ-VAE-2", https://arxiv.org/abs/1906.00446,
algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.code_distribution import CodePrior
from amortize.models.convolutions import KERNEL, ResidualBlock, seeded_convolution, side_of, sides_of
from amortize.models.networks import seeded_linear

__all__ = ["ConditionalCodes", "Features", "Head", "Layout", "Regardless", "Said", "Together"]


class Layout(NamedTuple):
    """Sides and channels of the levels' grids, from the top down; ``steps`` are the channels as they were given.

    Examples
    --------
    >>> Layout.of(784, ((16, 32), (32,))).sides
    (4, 7)
    """

    sides: tuple[int, ...]
    channels: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, data_dim: int, channels: Any) -> Layout:
        """For images of X pixels, and channels of each step that halves the side, grouped by level, the finest first.

        Raises
        ------
        ArgumentError
            X is no square, channels that are not so grouped, or a grid that is no coarser than the one below.
        """
        if not isinstance(channels, Sequence) or not channels or not all(isinstance(s, Sequence) for s in channels):
            raise ArgumentError(
                "channels: expected those of each step that halves the side, a group for each level from the image up, "
                f"as ((16, 32), (32,)), got {shown(channels)}"
            )
        steps = tuple(tuple(check_count("channels", num) for num in level) for level in channels)
        sides, grids = [side_of(data_dim)], []
        for level in steps:
            sides += sides_of(sides[-1] ** 2, level)[1:]
            grids.append(sides[-1])
        if any(above >= below for below, above in pairwise(grids)):
            raise ArgumentError(
                f"channels: expected fewer steps, for grids of sides {tuple(grids)} don't get coarser from level to "
                f"level; images of {sides[0]} x {sides[0]} have no more to halve"
            )
        return cls(tuple(reversed(grids)), tuple(level[-1] for level in reversed(steps)), steps)


class Features(nn.Module):
    """Square images to features on each level's grid: convolutions of stride 2, a residual block for each level.

    Parameters
    ----------
    data_dim
        X.
    layout
        Of the levels.
    generator
        Where the initial weights come from.
    """

    def __init__(self, data_dim: int, layout: Layout, *, generator: torch.Generator) -> None:
        super().__init__()
        self.side, before = side_of(data_dim), 1
        self.stages = nn.ModuleList()
        for level in layout.steps:
            layers: list[nn.Module] = []
            for num_inputs, num in pairwise((before, *level)):
                step = nn.Conv2d(num_inputs, num, KERNEL, stride=2, padding=1, device="meta")
                layers += [seeded_convolution(step, generator), nn.SiLU()]
            before = level[-1]
            self.stages.append(nn.Sequential(*layers, ResidualBlock(before, generator=generator)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of x (N, X): features (N, C_l, s_l, s_l), from the top down."""
        found = [x.reshape(-1, 1, self.side, self.side)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return tuple(reversed(found[1:]))


class Said(nn.Module):
    """Vectors of some levels on the grid of a finer one, added up: (..., P_j, D) each to (B, C, s, s).

    Parameters
    ----------
    code_dim
        D.
    sides
        Of the levels whose vectors come, from the top down.
    side, channels
        s and C.
    generator
        Where the initial weights come from.
    """

    def __init__(
        self, code_dim: int, sides: Sequence[int], *, side: int, channels: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.sides, self.side = tuple(sides), side
        self.entries = nn.ModuleList(seeded_linear(code_dim, channels, generator=generator) for _ in sides)
        self.blocks = nn.ModuleList(ResidualBlock(channels, generator=generator) for _ in sides)
        self.last = ResidualBlock(channels, generator=generator)

    def forward(self, *vectors: Tensor) -> Tensor:
        """Leading dimensions are flattened to B rows."""
        found: list[Tensor] = []
        for each, side, entry, block in zip(vectors, self.sides, self.entries, self.blocks, strict=True):
            entered = entry(each).reshape(-1, side, side, entry.out_features).movedim(-1, 1)
            found.append(interpolate(block(entered), size=(self.side, self.side), mode="nearest"))
        out: Tensor = self.last(torch.stack(found).sum(0))
        return out

    def positions(self, *vectors: Tensor) -> Tensor:
        """The same by position, (..., P, C), leading dimensions as they came."""
        found: Tensor = self(*vectors).flatten(2).mT
        return found.reshape(*vectors[0].shape[:-2], *found.shape[1:])


class Head(nn.Module):
    """A level's features, and what the levels above were rounded to, to the vectors that are rounded next.

    Parameters
    ----------
    level
        Its number, 0 the top.
    channels, code_dim
        C and D.
    said
        Of the levels above; None for the top.
    generator
        Where the initial weights come from.
    """

    def __init__(
        self, level: int, channels: int, code_dim: int, *, said: Said | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.level, self.said = level, said
        self.exit = seeded_linear(channels, code_dim, generator=generator)

    def forward(self, features: Sequence[Tensor], *above: Tensor) -> Tensor:
        """Vectors (N, P, D) of features (N, C_l, s_l, s_l) and of vectors (N, P_j, D) above."""
        found = features[self.level] if self.said is None else features[self.level] + self.said(*above)
        vectors: Tensor = self.exit(silu(found).flatten(2).mT)
        return vectors


class ConditionalCodes(nn.Module):
    """A prior of a level's codes that hears those of the levels above, wherever they are on their grids.

    Parameters
    ----------
    said
        Of the levels above, on the level's own grid.
    prior
        Whose condition it becomes: as many numbers for each position as ``said`` has channels.
    """

    def __init__(self, said: Said, prior: CodePrior) -> None:
        super().__init__()
        self.said, self.prior = said, prior

    def forward(self, *above: Tensor) -> dist.Distribution:
        """Of the level's codes, given vectors (..., P_j, D) above."""
        given: dist.Distribution = self.prior(self.said.positions(*above))
        return given


class Regardless(nn.Module):
    """A prior that takes no notice of the levels above."""

    def __init__(self, prior: CodePrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, *above: Tensor) -> dist.Distribution:  # noqa: ARG002 (that is the point)
        """The prior's distribution."""
        given: dist.Distribution = self.prior()
        return given


class Together(nn.Module):
    """A decoder of all levels: their vectors on the finest grid, and pixels of those.

    Parameters
    ----------
    said
        Of all levels, on the finest grid.
    pixels
        Of vectors (..., P, C) on that grid: a distribution of x with event shape (X,).
    """

    def __init__(self, said: Said, pixels: nn.Module) -> None:
        super().__init__()
        self.said, self.pixels = said, pixels

    def forward(self, *vectors: Tensor) -> dist.Distribution:
        """Of x (..., X), given vectors (..., P_l, D) from the top down."""
        found: dist.Distribution = self.pixels(self.said.positions(*vectors))
        return found
