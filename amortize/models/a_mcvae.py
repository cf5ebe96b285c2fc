r"""The annealed Monte Carlo VAE: annealed importance sampling from the encoder, with moves that are accepted or not.

.. math:: L(x_n) = E\left[ \sum_{t=1}^{K+1} (\beta_t - \beta_{t-1})
          \log \frac{p(x_n, z_{t-1})}{q(z_{t-1} | x_n)} \right] \le \log p(x_n)

with z_0 from the encoder and z_t a Metropolis-adjusted Langevin move of z_{t-1} at the temperature beta_t. Letters: N
datapoints, X features, D latents, K moves. Source: Thin et al. (2021), "Monte Carlo variational auto-encoders",
section 4, https://arxiv.org/abs/2106.15921.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.amcvae import AMCVAE
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, bernoulli_parts

__all__ = ["AnnealedVAE"]


@final
class AnnealedVAE(VAE):
    """The Bernoulli VAE, trained by the annealed Monte Carlo bound.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.AnnealedVAE.from_data(x, latent_dim=2, hidden=(8,), num_steps=3)
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'annealed Monte Carlo VAE bound, 3 steps'
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        num_steps: int = 5,
        seed: int = 0,
    ) -> Self:
        """A VAE that begins as ``BernoulliVAE.from_data`` does.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        num_steps
            K; each costs a gradient of the log joint for each of two chains, and training differentiates through it.
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
        return cls(**parts, objective=AMCVAE(num_steps=num_steps))
