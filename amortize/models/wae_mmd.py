r"""The Wasserstein autoencoder with a discrepancy: the codes of all data together are drawn to the prior.

.. math:: \min \; E[-\log p(x | f(x))] + w \, \mathrm{MMD}^2\Big(\frac1N \sum_n \delta_{f(x_n)}, \, N(0, I_D)\Big)

with f the encoder, a point, and MMD the maximum mean discrepancy, `amortize.MMD`. Letters: N datapoints, X
features, D latents. Source: Tolstikhin et al. (2018), "Wasserstein auto-encoders", https://arxiv.org/abs/1711.01558,
whose cost is a squared distance; here it is the pixels' cross entropy, so that evidence can be compared with that of
other models of binary data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

from amortize.inference.beta import BetaELBO
from amortize.inference.mmd import MMD
from amortize.models.vae import VAE
from amortize.models.vae_parts import NetworkKind, point_parts

__all__ = ["DiscrepancyWAE"]


@final
class DiscrepancyWAE(VAE):
    """Site ``z`` (N, D), a point; observed site ``x`` (N, X), zeros and ones.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> wae = am.models.DiscrepancyWAE.from_data(x, latent_dim=2, hidden=(8,))
    >>> am.fit(wae.program(), x, objective=wae.objective, num_steps=5).bound
    'distortion + 0 rate + mmd, no bound'
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        weight: float = 300.0,
        seed: int = 0,
    ) -> Self:
        """A model for binary data, begun at their means.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        weight
            Nats a datapoint for a squared discrepancy of 1.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones, or its rows are all alike.
        ArgumentError
            Settings that don't fit.
        """
        parts = point_parts(x, latent_dim, network=network, hidden=hidden, seed=seed)
        return cls(**parts, objective=BetaELBO(beta=0.0, penalties=(MMD(weight=weight),)))
