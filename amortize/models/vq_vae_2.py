r"""VQ-VAE-2: grids of codes from coarse to fine, each given those above it, and an image of all of them.

.. math:: k_1 \sim p(k_1), \quad k_l \sim p(k_l | k_1, \dots, k_{l-1}), \quad x \sim p(x | k_1, \dots, k_L); \qquad
          q(k | x) = \prod_l [k_l = k_l^*(x, k_1^*, \dots, k_{l-1}^*)]

The guide rounds the top first; what it was rounded to is told to the level below before that is rounded. As a guide
that is sure of its codes it has density 1 there, and the ELBO of this discrete model is exact,

.. math:: \log p(x | k^*) + \log p(k_1^*) + \sum_{l > 1} \log p(k_l^* | k_1^*, \dots, k_{l-1}^*) \le \log p(x)

in nats. Letters: N datapoints, X = side * side pixels, L levels of P_l positions, K codes of D numbers. Source: Razavi
et al. (2019), "Generating diverse high-fidelity images with VQ-VAE-2", https://arxiv.org/abs/1906.00446.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from amortize.errors import check_count
from amortize.models.code_priors import CodePriorKind, code_prior
from amortize.models.codebook import Codebook
from amortize.models.quantised import Level, Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vae import log_odds_of_means, matrix_of
from amortize.models.vq_vae_2_parts import ConditionalCodes, Features, Head, Images, Layout, Regardless, Said
from amortize.random import generator

__all__ = ["VQVAE2", "start_codebooks"]

SMALL = 16
"""Side below which an image is halved once to the finest grid, not twice."""
START_ROWS = 1024
"""Datapoints whose vectors the codebooks begin at."""


@final
class VQVAE2(Quantised):
    """Binary images from codes on two grids or more.

    Examples
    --------
    >>> import amortize as am
    >>> model = VQVAE2.from_data(torch.eye(64), num_codes=4, code_dim=2, channels=((4,), (4,)))
    >>> [level.prior().event_shape for level in model.levels[:1]], model.sites
    ([torch.Size([4])], ('codes_1', 'codes_2'))
    >>> fitted = am.fit(model.program(), torch.eye(64), num_steps=10)
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        code_dim: int = 16,
        channels: Sequence[Sequence[int]] | None = None,
        prior: CodePriorKind = "pixelcnn",
        seed: int = 0,
    ) -> VQVAE2:
        """A model for square binary images whose pixels begin at their means, and its codebooks at the data's vectors.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        num_codes, code_dim
            K and D, of each level.
        channels
            Of each step that halves the side, a group for each level from the image up: ((32, 32), (32,)) has a grid
            of a quarter of the image's side and, above it, one of an eighth; a third group is a third level. None
            takes that, or ((32,), (32,)) for images of less than 16 x 16.
        prior
            "uniform", "pixelcnn" or "transformer", of each level; all but the first hear the codes above.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        data = matrix_of(x, binary=True).float()
        check_count("code_dim", code_dim)
        layout = Layout.of(data.shape[1], _steps(data.shape[1]) if channels is None else channels)
        books = [Codebook(num_codes, code_dim) for _ in layout.sides]
        decoder = Images(layout, code_dim, generator=generator(seed, "decoder"))
        with torch.no_grad():
            decoder.bias.copy_(log_odds_of_means(data))
        priors = _priors(layout, prior, num_codes, code_dim, seed)
        heads = _heads(layout, code_dim, seed)
        model = cls(
            encoder=Features(layout, generator=generator(seed, "encoder")),
            levels=[Level(*parts) for parts in zip(books, priors, heads, strict=True)],
            decoder=decoder,
            objective=QuantisedELBO(),
        )
        start_codebooks(model, data[:START_ROWS], generator=generator(seed, "codebooks"))
        return model


@torch.no_grad()
def start_codebooks(model: Quantised, x: Tensor, *, generator: torch.Generator) -> None:
    """Take each level's codes from the vectors that the network, as it is, makes of data (N, X), from the top down."""
    features = model.encoder(x)
    above: list[Tensor] = []
    for level in model.levels:
        vectors = level.head(features, *above)
        level.codebook.start(vectors, generator=generator)
        above.append(level.codebook.quantise(vectors).vectors)


def _steps(data_dim: int) -> tuple[tuple[int, ...], ...]:
    return ((32,), (32,)) if data_dim < SMALL**2 else ((32, 32), (32,))


def _heads(layout: Layout, code_dim: int, seed: int) -> list[nn.Module]:
    gen = generator(seed, "heads")
    heads: list[nn.Module] = []
    for level, (side, channels) in enumerate(zip(layout.sides, layout.channels, strict=True)):
        above = layout.sides[:level]
        said = Said(code_dim, above, side=side, channels=channels, generator=gen) if above else None
        heads.append(Head(level, channels, code_dim, said=said, generator=gen))
    return heads


def _priors(layout: Layout, kind: str, num_codes: int, code_dim: int, seed: int) -> list[nn.Module]:
    priors: list[nn.Module] = [code_prior(kind, (layout.sides[0],) * 2, num_codes, seed=seed)]
    gen = generator(seed, "conditions")
    for level, side in enumerate(layout.sides[1:], start=1):
        channels = layout.channels[level]
        if kind == "uniform":
            priors.append(Regardless(code_prior(kind, (side, side), num_codes)))
            continue
        said = Said(code_dim, layout.sides[:level], side=side, channels=channels, generator=gen)
        given = code_prior(kind, (side, side), num_codes, condition_dim=channels, seed=seed + level)
        priors.append(ConditionalCodes(said, given))
    return priors
