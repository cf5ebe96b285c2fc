r"""The beta-VAE: a Bernoulli VAE that pays another price for its code than the ELBO does.

.. math:: L_\beta(x_n) = E_q[\log p(x_n | z)] - \beta \sum_d \max(\lambda, R_d), \qquad
          R_d = \mathrm{KL}(q(z_d | x_n) \,\|\, p(z_d))

Above 1 codes are short and images coarse, below 1 long and exact: as beta runs, distortion and rate draw a curve.
While training beta may climb from 0 (KL annealing), and lambda nats of each latent may be free (of the batch mean),
both against codes that collapse. Letters: N datapoints, X features, D latents. Sources: Higgins et al. (2017),
"beta-VAE: learning basic visual concepts with a constrained variational framework",
https://openreview.net/forum?id=Sy2fzU9gl; Alemi et al. (2018), "Fixing a broken ELBO",
https://arxiv.org/abs/1711.00464, for the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.beta import BetaELBO
from amortize.models.vae import VAE
from amortize.models.vae_parts import bernoulli_parts

__all__ = ["BetaVAE"]


@final
class BetaVAE(VAE):
    """The Bernoulli VAE at another price of its code.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.BetaVAE.from_data(x, latent_dim=2, hidden=(8,), beta=2.0, warmup=0.3)
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'distortion + 2 rate, no bound'
    """

    @classmethod
    def from_data(  # noqa: PLR0913 (three prices, and the networks)
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        beta: float = 2.0,
        warmup: float = 0.0,
        free_bits: float = 0.0,
        seed: int = 0,
    ) -> Self:
        """A VAE that begins as ``BernoulliVAE.from_data`` does.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden
            D and the networks, as for `BernoulliVAE`.
        beta, warmup, free_bits
            As for ``am.BetaELBO``: the price of a nat, the share of the steps over which it climbs from 0, and the nats
            of each latent that cost nothing more.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        objective = BetaELBO(beta=beta, warmup=warmup, free_bits=free_bits)
        parts = bernoulli_parts(x, latent_dim, network="mlp", hidden=hidden, seed=seed)
        return cls(**parts, objective=objective)
