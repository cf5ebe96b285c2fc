r"""The Langevin Monte Carlo VAE: K unadjusted Langevin steps carry the encoder's draws towards the posterior.

.. math:: z_0 \sim q(z | x_n), \qquad z_t = z_{t-1} + \tfrac{h_t^2}{2} \nabla \log \pi_{\beta_t}(z_{t-1}) + h_t \xi_t,
          \qquad \log \pi_\beta = (1 - \beta) \log q(z | x_n) + \beta \log p(x_n, z)

.. math:: L(x_n) = E\left[ \log \frac{p(x_n, z_K) \prod_t m_t(z_{t-1} | z_t)}
          {q(z_0 | x_n) \prod_t m_t(z_t | z_{t-1})} \right] \le \log p(x_n)

Model, encoder, temperatures and step sizes are trained through the whole path. Letters: N datapoints, X features, D
latents, K steps, m_t the step's density. Source: Thin et al. (2021), "Monte Carlo variational auto-encoders", section
3, https://arxiv.org/abs/2106.15921.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.annealed_objectives import LMCVAE
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, bernoulli_parts

__all__ = ["LangevinVAE"]

STEP_SIZE = 0.3  # of every step at first, in standard deviations of the encoder


@final
class LangevinVAE(VAE):
    """The Bernoulli VAE, trained by the Langevin Monte Carlo bound.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.LangevinVAE.from_data(x, latent_dim=2, hidden=(8,), num_steps=3)
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'Langevin Monte Carlo VAE bound, 3 steps'
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
            K; each costs a gradient of the log joint, and training differentiates through it.
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
        return cls(**parts, objective=LMCVAE(num_steps=num_steps, step_size=STEP_SIZE))
