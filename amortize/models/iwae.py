r"""The importance-weighted autoencoder: a VAE whose encoder proposes K draws that are weighed together.

.. math:: L_K(x_n) = E\left[ \log \frac1K \sum_k \frac{p(x_n, z_k)}{q(z_k | x_n)} \right] \le \log p(x_n)

L_1 is the ELBO, and L_K never falls with K. Letters: N datapoints, X features, D latents, K particles. Source: Burda et
al. (2016), "Importance weighted autoencoders", https://arxiv.org/abs/1509.00519.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.iwae import IWAE
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, bernoulli_parts

__all__ = ["ImportanceWeightedVAE"]


@final
class ImportanceWeightedVAE(VAE):
    """The Bernoulli VAE, trained by the importance-weighted bound.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.ImportanceWeightedVAE.from_data(x, latent_dim=2, hidden=(8,), num_particles=3)
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'importance-weighted bound, 3 particles'
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        num_particles: int = 5,
        seed: int = 0,
    ) -> Self:
        """A VAE that begins as ``BernoulliVAE.from_data`` does.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        num_particles
            K; each costs a pass of the decoder.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        parts = bernoulli_parts(x, latent_dim, network=network, hidden=hidden, seed=seed)
        return cls(**parts, objective=IWAE(num_particles=num_particles))
