r"""The variational lossy autoencoder: what a decoder with limited sight can't see, the code must carry.

.. math:: z \sim \mathrm{flow}, \qquad x | z \sim \prod_i p(x_i | x_{W(i)}, z), \qquad
          q(z | x) = N(\mathrm{loc}(x), \mathrm{diag}(\mathrm{scale}(x)^2))

The decoder is a PixelCNN whose window W(i) reaches ``sight`` pixels. Bits that neighbours tell are cheaper to say pixel
by pixel than through the code, which pays for the guide's inexactness; so the code keeps what the window can't see, and
nothing where it sees all. Letters: N datapoints, X = S * S pixels, D latents. Source: Chen et al. (2017), "Variational
lossy autoencoder", https://arxiv.org/abs/1611.02731.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from amortize.errors import ArgumentError, shown
from amortize.inference.beta import BetaELBO
from amortize.models.autoregressive_prior import AutoregressiveFlow
from amortize.models.convolutions import side_of
from amortize.models.networks import MLP
from amortize.models.pixelcnn import PixelCNN
from amortize.models.vae import VAE, DiagonalNormal, StandardNormal, log_odds_of_means, matrix_of
from amortize.random import generator

__all__ = ["VLAE"]

WARMUP = 0.2
"""Share of the steps over which the price of the code rises: without it a code that is not yet good is given up."""


class VLAE(VAE):
    """Binary images with a PixelCNN decoder, a Gaussian encoder and a prior that is a flow.

    Examples
    --------
    >>> import amortize as am
    >>> vlae = VLAE.from_data(torch.eye(16), latent_dim=2, sight=1, hidden=(8,))
    >>> fitted = am.fit(vlae.program(), torch.eye(16), objective=vlae.objective, num_steps=10)
    >>> vlae.decoder.sight
    1
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        latent_dim: int = 8,
        *,
        sight: int = 2,
        prior: Literal["flow", "normal"] = "flow",
        hidden: Sequence[int] = (64,),
        seed: int = 0,
    ) -> VLAE:
        """A model for square binary images whose pixels begin at their means.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim
            D.
        sight
            How many pixels above and beside it a pixel's window reaches; 0 makes them independent given z, as in a
            Bernoulli VAE, S - 1 sees every pixel before.
        prior
            "flow" (autoregressive) or "normal", N(0, I).
        hidden
            Widths of the encoder's hidden layers, from the data on; mirrored from the code to the image.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Images that are not square, or settings that make no sense.
        """
        data = matrix_of(x, binary=True)
        sizes = (data.shape[1], *hidden, 2 * latent_dim)
        decoder = PixelCNN(latent_dim, side_of(data.shape[1]), sight=sight, hidden=tuple(reversed(hidden)), seed=seed)
        with torch.no_grad():
            decoder.bias.copy_(log_odds_of_means(data))
        return cls(
            prior=_prior(prior, latent_dim, seed),
            decoder=decoder,
            encoder=DiagonalNormal(MLP(sizes, generator=generator(seed, "encoder"))),
            objective=BetaELBO(warmup=WARMUP),
        )


def _prior(name: str, latent_dim: int, seed: int) -> nn.Module:
    if name not in {"flow", "normal"}:
        raise ArgumentError(f"prior: expected 'flow' or 'normal', got {shown(name)}")
    return AutoregressiveFlow(latent_dim, seed=seed) if name == "flow" else StandardNormal(latent_dim)
