r"""The Monte Carlo diffusion VAE: Langevin steps from the encoder, whose way back is learned.

.. math:: L(x_n) = E\left[ \log \frac{p(x_n, z_K) \prod_t r_t(z_{t-1} | z_t)}
          {q(z_0 | x_n) \prod_t m_t(z_t | z_{t-1})} \right] \le \log p(x_n), \qquad
          r_t = N(\cdot; z_t + \tfrac{h_t^2}{2} (\nabla \log \pi_{\beta_t}(z_t) + s_\psi(z_t, t, x_n)), h_t^2)

m_t are the unadjusted Langevin steps of the Langevin Monte Carlo VAE. The best backward kernel is their time reversal,
of which the network s_psi learns what the plain step back leaves out; at s = 0 the bound is that of the
Langevin Monte Carlo VAE. Letters: N datapoints, X features, D latents, K steps. Source: Doucet et al. (2022),
"Score-based diffusion meets annealed importance sampling", https://arxiv.org/abs/2208.07698.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.annealed_objectives import MCD
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, bernoulli_parts

__all__ = ["DiffusedVAE"]

STEP_SIZE = 0.5  # of every step at first, in standard deviations of the encoder


@final
class DiffusedVAE(VAE):
    """The Bernoulli VAE, trained by the Monte Carlo diffusion bound.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.DiffusedVAE.from_data(x, latent_dim=2, hidden=(8,), num_steps=3)
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'Monte Carlo diffusion bound, 3 steps'
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
            K; each costs a gradient of the log joint and a pass of the score network.
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
        return cls(**parts, objective=MCD(num_steps=num_steps, step_size=STEP_SIZE))
