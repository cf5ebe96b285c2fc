"""A variational autoencoder for binary data.

    z ~ N(0, I_D),    x | z ~ Bernoulli(logits = decoder(z)),    q(z | x) = N(loc(x), diag(scale(x)^2))

Letters: N datapoints, X features, D latents. Source: Kingma and Welling (2014), "Auto-encoding variational
Bayes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from amortize.errors import check_count
from amortize.inference.objective import Objective
from amortize.models.networks import GaussianEncoder, register
from amortize.models.vae import log_odds_of_means, matrix_of
from amortize.models.vae_parts import NetworkKind, reading, writing
from amortize.models.zoo import ZooModel
from amortize.random import generator

__all__ = ["BernoulliVAE"]


class BernoulliVAE(ZooModel):
    """Bernoulli decoder and mean-field Gaussian encoder, perceptrons with tanh or convolutional networks.

    Parameters
    ----------
    data_dim, latent_dim
        Numbers of features X and of latents D.
    hidden
        Widths of the encoder's hidden layers, or channels of its convolutions, from the data on; the decoder mirrors
        them. None is (64,) for perceptrons and (16, 32) for convolutions.
    network
        "mlp"; or "conv" and "residual", for square images.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        A size that is not positive, an unknown network, or convolutions of what is no square image.

    Examples
    --------
    >>> import amortize as am
    >>> vae = am.models.BernoulliVAE(data_dim=64, latent_dim=4, hidden=(32,))
    >>> program = vae.program()
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 8,
        *,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_dim, self.latent_dim = check_count("data_dim", data_dim), check_count("latent_dim", latent_dim)
        self.encoder = GaussianEncoder(
            reading(data_dim, 2 * latent_dim, network=network, hidden=hidden, generator=generator(seed, "encoder"))
        )
        self.decoder = writing(
            latent_dim, data_dim, network=network, hidden=hidden, generator=generator(seed, "decoder")
        )

    @classmethod
    def from_data(
        cls,
        x: Any,
        latent_dim: int = 8,
        *,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        seed: int = 0,
    ) -> BernoulliVAE:
        """A VAE for ``x`` whose decoder starts at the data's mean, through its output bias.

        The means are smoothed by half a pseudo-count on either side, so that a pixel that never changes has a
        finite logit. Source: Burda et al. (2016), "Importance weighted autoencoders", who start from the
        train mean.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network, seed
            As for `BernoulliVAE`.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        """
        data = matrix_of(x, binary=True)
        vae = cls(data.shape[1], latent_dim, hidden=hidden, network=network, seed=seed)
        with torch.no_grad():
            vae.decoder.last_bias.copy_(log_odds_of_means(data))
        return vae

    @property
    def objective(self) -> str | Objective:
        """The ELBO."""
        return "elbo"

    def model(self, x: Tensor) -> None:
        """The generative model: site ``z`` (N, D), observed site ``x`` (N, X)."""
        register("decoder", self.decoder)
        zero = next(self.parameters()).new_zeros(self.latent_dim)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Independent(dist.Normal(zero, torch.ones_like(zero)), 1))
            pyro.sample("x", dist.Independent(dist.Bernoulli(logits=self.decoder(z)), 1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: site ``z`` (N, D), a diagonal Gaussian."""
        register("encoder", self.encoder)
        loc, scale = self.encoder(x)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Independent(dist.Normal(loc, scale), 1))
