r"""The VQ-VAE: an image from a grid of codes, each the number of a vector, under a prior that is learned afterwards.

.. math:: k \sim p(k), \qquad x \sim p(x | e_{k_1}, \dots, e_{k_P}); \qquad
          q(k | x) = \prod_p [k_p = \arg\min_j \|z_p(x) - e_j\|^2]

The guide is sure of its codes, so that it has density 1 there and the ELBO of this discrete model is exact,

.. math:: \mathrm{ELBO} = \log p(x | e_{k^*}) + \log p(k^*) = \log p(x, k^*) \le \log p(x)

in nats. Letters: N datapoints, X = side * side pixels, P = s * s positions, K codes of D numbers. Source: van den Oord
et al. (2017), "Neural discrete representation learning", https://arxiv.org/abs/1711.00937.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, shown
from amortize.models.code_priors import CodePriorKind, code_prior
from amortize.models.codebook import Codebook
from amortize.models.gaussian_vae import ScaledNormal, Standardised, moments
from amortize.models.pixelcnn import PixelCNN
from amortize.models.quantised import Level, Quantised
from amortize.models.quantised_elbo import QuantisedELBO
from amortize.models.quantised_networks import GridReader, GridWriter, PixelByPixel
from amortize.models.vae import Bernoulli, log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = ["VQVAE", "PixelKind", "codebook_of", "images_of", "pixels_of"]

PixelKind = Literal["bernoulli", "normal", "pixelcnn"]
"""Independent binary pixels; numbers, with a scale that is learned; binary pixels, each given all those before it."""

DIM = 16
START_ROWS = 1024
"""Datapoints at whose vectors the codebook begins."""


@final
class VQVAE(Quantised):
    """Square images from one grid of codes.

    Examples
    --------
    >>> import amortize as am
    >>> model = VQVAE.from_data(torch.eye(64), num_codes=4, channels=(4, 4))
    >>> fitted = am.fit(model.program(), torch.eye(64), num_steps=10)
    >>> am.code_usage(model.program(), torch.eye(64))["codes"].counts.shape
    (4, 4)
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (codebook, prior and decoder, each with a setting of its own)
        cls,
        x: Any,
        num_codes: int = 64,
        *,
        codebook: Mapping[str, Any] | None = None,
        channels: Sequence[int] = (32, 32),
        prior: CodePriorKind = "pixelcnn",
        decoder: PixelKind = "bernoulli",
        seed: int = 0,
    ) -> VQVAE:
        """A model whose pixels begin at the data's means, and its codebook at vectors of data.

        Parameters
        ----------
        x
            Training data (N, X): zeros and ones, or any numbers for the decoder "normal".
        num_codes
            K.
        codebook
            What is not as `Codebook` has it: ``dim`` (16 here), ``ema``, ``restarts``, ``normalised``.
        channels
            Of each step that halves the side: two make a grid of a quarter of the image's side.
        prior
            "uniform", "pixelcnn" or "transformer".
        decoder
            "bernoulli", "normal" or "pixelcnn".
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
        book = codebook_of(num_codes, codebook)
        reader = GridReader(data.shape[1], book.dim, channels=channels, generator=generator(seed, "encoder"))
        encoder = Standardised(reader, *moments(data)) if decoder == "normal" else reader
        _start(book, encoder, data[:START_ROWS], seed)
        over = code_prior(prior, (reader.side, reader.side), num_codes, seed=seed)
        return cls(
            encoder=encoder,
            levels=[Level(book, over, nn.Identity())],
            decoder=pixels_of(decoder, data, reader.side, book.dim, channels=channels, seed=seed),
            objective=QuantisedELBO(),
        )


def images_of(x: Any, kind: str) -> Tensor:
    """Training data (N, X), zeros and ones where pixels of this kind are.

    Raises
    ------
    DataError
        They are anything else.
    ArgumentError
        There is no such kind.
    """
    if kind not in get_args(PixelKind):
        raise ArgumentError(f"decoder: expected one of {get_args(PixelKind)}, got {shown(kind)}")
    return matrix_of(x, binary=kind != "normal").float()


def codebook_of(num_codes: int, settings: Mapping[str, Any] | None) -> Codebook:
    """A codebook with what is not as `Codebook` has it, by name.

    Raises
    ------
    ArgumentError
        An unknown name, or a setting that makes no sense.
    """
    given = {"dim": DIM, **(settings or {})}
    known = {"dim", "ema", "restarts", "normalised"}
    if not set(given) <= known:
        raise ArgumentError(f"codebook: expected some of {sorted(known)}, got {sorted(set(given) - known)}")
    return Codebook(num_codes, given.pop("dim"), **given)


@torch.no_grad()
def _start(book: Codebook, encoder: nn.Module, data: Tensor, seed: int) -> None:
    book.start(encoder(data), generator=generator(seed, "codebook"))


def pixels_of(kind: str, data: Tensor, side: int, dim: int, *, channels: Sequence[int], seed: int) -> nn.Module:
    """A distribution of pixels, of vectors (..., P, ``dim``) on a grid of ``side``, that begins at the data's means."""
    gen, data_dim = generator(seed, "decoder"), data.shape[1]
    if kind == "pixelcnn":
        across = round(data_dim**0.5)
        pixels = PixelCNN(side * side * dim, across, sight=across - 1, seed=seed)
        with torch.no_grad():
            pixels.bias.copy_(log_odds_of_means(data))
        return PixelByPixel(pixels)
    writer = GridWriter(data_dim, dim, channels=channels, generator=gen)
    if kind == "normal":
        return ScaledNormal(writer, *moments(data))
    with torch.no_grad():
        writer.last_bias.copy_(log_odds_of_means(data))
    return Bernoulli(writer)
