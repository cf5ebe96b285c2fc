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

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from amortize.models.code_priors import CodePriorKind, code_prior
from amortize.models.gaussian_vae import Standardised, moments
from amortize.models.quantised import Level, Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.vq_vae import START_ROWS, PixelKind, codebook_of, images_of, pixels_of
from amortize.models.vq_vae_2_parts import ConditionalCodes, Features, Head, Layout, Regardless, Said, Together
from amortize.random import generator

__all__ = ["VQVAE2", "start_codebooks"]

SMALL = 16
"""Side below which an image is halved once to the finest grid, not twice."""


@final
class VQVAE2(Quantised):
    """Square images from codes on two grids or more.

    Examples
    --------
    >>> import amortize as am
    >>> model = VQVAE2.from_data(torch.eye(64), num_codes=4, channels=((4,), (4,)))
    >>> [level.prior().event_shape for level in model.levels[:1]], model.sites
    ([torch.Size([4])], ('codes_1', 'codes_2'))
    >>> fitted = am.fit(model.program(), torch.eye(64), num_steps=10)
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (codebooks, grids, priors and decoder, each with a setting of its own)
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        codebook: Mapping[str, Any] | None = None,
        channels: Sequence[Sequence[int]] | None = None,
        prior: CodePriorKind = "pixelcnn",
        decoder: PixelKind = "bernoulli",
        seed: int = 0,
    ) -> VQVAE2:
        """A model whose pixels begin at the data's means, and its codebooks at vectors of data.

        Parameters
        ----------
        x
            Training data (N, X): zeros and ones, or any numbers for the decoder "normal".
        num_codes
            K, of each level.
        codebook
            What is not as `amortize.models.codebook.Codebook` has it, of each level: ``dim`` (16 here), ``ema``,
            ``restarts``, ``normalised``.
        channels
            Of each step that halves the side, a group for each level from the image up: ((32, 32), (32,)) has a grid
            of a quarter of the image's side and, above it, one of an eighth; a third group is a third level. None
            takes that, or ((32,), (32,)) for images of less than 16 x 16.
        prior
            "uniform", "pixelcnn" or "transformer", of each level; all but the first hear the codes above.
        decoder
            "bernoulli", "normal" (with a scale that is learned) or "pixelcnn".
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones, or of numbers that vary.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        data = images_of(x, decoder)
        layout = Layout.of(data.shape[1], _steps(data.shape[1]) if channels is None else channels)
        books = [codebook_of(num_codes, codebook) for _ in layout.sides]
        dim, num = books[0].dim, data.shape[1]
        reader = Features(num, layout, generator=generator(seed, "encoder"))
        priors, heads = _priors(layout, prior, num_codes, dim, seed), _heads(layout, dim, seed)
        model = cls(
            encoder=Standardised(reader, *moments(data)) if decoder == "normal" else reader,
            levels=[Level(*parts) for parts in zip(books, priors, heads, strict=True)],
            decoder=_decoder(decoder, data, layout, dim, seed),
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


def _decoder(kind: str, data: Tensor, layout: Layout, dim: int, seed: int) -> Together:
    side, channels = layout.sides[-1], layout.channels[-1]
    said = Said(dim, layout.sides, side=side, channels=channels, generator=generator(seed, "together"))
    return Together(said, pixels_of(kind, data, side, channels, channels=layout.steps[0], seed=seed))


def _heads(layout: Layout, dim: int, seed: int) -> list[nn.Module]:
    gen = generator(seed, "heads")
    heads: list[nn.Module] = []
    for level, (side, channels) in enumerate(zip(layout.sides, layout.channels, strict=True)):
        above = layout.sides[:level]
        said = Said(dim, above, side=side, channels=channels, generator=gen) if above else None
        heads.append(Head(level, channels, dim, said=said, generator=gen))
    return heads


def _priors(layout: Layout, kind: str, num_codes: int, dim: int, seed: int) -> list[nn.Module]:
    priors: list[nn.Module] = [code_prior(kind, (layout.sides[0],) * 2, num_codes, seed=seed)]
    gen = generator(seed, "conditions")
    for level, side in enumerate(layout.sides[1:], start=1):
        channels = layout.channels[level]
        if kind == "uniform":
            priors.append(Regardless(code_prior(kind, (side, side), num_codes)))
            continue
        said = Said(dim, layout.sides[:level], side=side, channels=channels, generator=gen)
        given = code_prior(kind, (side, side), num_codes, condition_dim=channels, seed=seed + level)
        priors.append(ConditionalCodes(said, given))
    return priors
