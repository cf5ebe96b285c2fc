r"""A factor model of counts with Poisson noise: a log-linear decoder and an encoder.

.. math:: z_n \sim N(0, I_D), \qquad x_{nj} \mid z_n \sim \mathrm{Poisson}(e^{(W z_n + b)_j})

Letters: N datapoints, X features, D latents. Sources: Collins, Dasgupta and Schapire (2001), "A generalization of
principal component analysis to the exponential family"; for cells, Townes et al. (2019), "Feature selection and
dimension reduction for single-cell RNA-Seq based on a multinomial model", https://doi.org/10.1186/s13059-019-1861-6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.models.count_factors import count_encoder, counts_of, evidence_of_one_latent, log_linear
from amortize.models.vae import VAE, DiagonalNormal, StandardNormal

__all__ = ["PoissonFactors"]


class PoissonFactors(VAE):
    """Site ``z`` (N, D); observed site ``x`` (N, X), counts.

    Parameters
    ----------
    rates
        z (..., D) to log rates (..., X).
    encoder
        x (N, X) to a Gaussian.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 7.0, 0.0], [0.0, 1.0, 0.0], [1.0, 4.0, 2.0]])
    >>> factors = am.models.PoissonFactors.from_data(x, latent_dim=1)
    >>> factors.log_evidence_by_quadrature(x).shape
    torch.Size([4])
    """

    def __init__(self, rates: nn.Linear, encoder: DiagonalNormal) -> None:
        super().__init__(prior=StandardNormal(rates.in_features), decoder=_Poisson(rates), encoder=encoder)
        self.prior.to(rates.weight.dtype)

    @classmethod
    def from_data(cls, x: Any, latent_dim: int = 10, *, hidden: Sequence[int] = (64,), seed: int = 0) -> PoissonFactors:
        """A model for counts x (N, X), begun at their means.

        Parameters
        ----------
        x
            Training data, (N, X).
        latent_dim
            D.
        hidden
            Widths of the encoder's hidden layers.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is no matrix of counts.
        """
        counts = counts_of(x)
        rates = log_linear(counts, latent_dim, seed=seed)
        return cls(rates, count_encoder(counts, latent_dim, hidden=hidden, seed=seed))

    @property
    def rates(self) -> nn.Linear:
        """From z (..., D) to log rates (..., X)."""
        assert isinstance(self.decoder, _Poisson)
        return self.decoder.rates

    def log_evidence_by_quadrature(self, x: Any) -> Tensor:
        """Log p(x_n), (N,) nats, float64, to 1e-10; for one latent, D = 1.

        Raises
        ------
        ArgumentError
            D is not 1.
        DataError
            ``x`` is no matrix of counts (N, X).
        """

        def log_density(counts: Tensor, log_rates: Tensor) -> Tensor:
            constant = torch.lgamma(counts + 1).sum(1, keepdim=True)
            return counts @ log_rates.T - log_rates.exp().sum(1) - constant

        return evidence_of_one_latent(self.rates, log_density, x)


class _Poisson(nn.Module):
    def __init__(self, rates: nn.Linear) -> None:
        super().__init__()
        self.rates = rates

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z."""
        return dist.Independent(dist.Poisson(self.rates(z).exp()), 1)  # type: ignore[no-untyped-call]
