r"""A factor model of counts that vary more than Poisson's: negative binomial noise, a log-linear decoder, an encoder.

.. math:: z_n \sim N(0, I_D), \qquad x_{nj} \mid z_n \sim \mathrm{NB}(\text{mean } m_{nj}, \text{shape } r_j), \qquad
          m_n = e^{W z_n + b}, \qquad \mathrm{var} = m + m^2 / r

A Poisson whose rate has a gamma distribution of shape r; as r grows it becomes the Poisson model. Letters: N
datapoints, X features, D latents. Sources: Greenwood and Yule (1920) for the noise; Risso et al. (2018), "A general and
flexible method for signal extraction from single-cell RNA-seq data", https://doi.org/10.1038/s41467-017-02554-5; with
an encoder, Lopez et al. (2018), "Deep generative modeling for single-cell transcriptomics",
https://doi.org/10.1038/s41592-018-0229-2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from amortize.models.count_factors import count_encoder, counts_of, evidence_of_one_latent, log_linear
from amortize.models.vae import VAE, DiagonalNormal, StandardNormal

__all__ = ["NegativeBinomialFactors"]

SHAPES = (0.1, 100.0)  # at the start


class NegativeBinomialFactors(VAE):
    """Site ``z`` (N, D); observed site ``x`` (N, X), counts.

    Parameters
    ----------
    rates
        z (..., D) to logs of the means (..., X).
    shape
        r, (X,), positive; trained.
    encoder
        x (N, X) to a Gaussian.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.tensor([[0.0, 3.0, 1.0], [2.0, 7.0, 0.0], [0.0, 1.0, 0.0], [1.0, 4.0, 2.0]])
    >>> factors = am.models.NegativeBinomialFactors.from_data(x, latent_dim=1)
    >>> factors.log_evidence_by_quadrature(x).shape
    torch.Size([4])
    """

    def __init__(self, rates: nn.Linear, shape: Tensor, encoder: DiagonalNormal) -> None:
        decoder = _NegativeBinomial(rates, shape)
        super().__init__(prior=StandardNormal(rates.in_features), decoder=decoder, encoder=encoder)
        self.prior.to(rates.weight.dtype)

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 10, *, hidden: Sequence[int] = (64,), seed: int = 0
    ) -> NegativeBinomialFactors:
        """A model for counts x (N, X), begun at their means and variances.

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
        encoder = count_encoder(counts, latent_dim, hidden=hidden, seed=seed)
        return cls(rates, _shape_of_moments(counts), encoder)

    @property
    def rates(self) -> nn.Linear:
        """From z (..., D) to logs of the means (..., X)."""
        assert isinstance(self.decoder, _NegativeBinomial)
        return self.decoder.rates

    @property
    def shape(self) -> Tensor:
        """r, (X,)."""
        assert isinstance(self.decoder, _NegativeBinomial)
        return self.decoder.log_shape.exp()

    def log_evidence_by_quadrature(self, x: Any) -> Tensor:
        """Log p(x_n), (N,) nats, float64, to 1e-10; for one latent, D = 1.

        Raises
        ------
        ArgumentError
            D is not 1.
        DataError
            ``x`` is no matrix of counts (N, X).
        """
        shape = self.shape.double()

        def log_density(counts: Tensor, log_means: Tensor) -> Tensor:
            logits = log_means - shape.log()
            constant = torch.lgamma(counts + shape) - torch.lgamma(counts + 1) - torch.lgamma(shape)
            failures = (shape * logsigmoid(-logits)).sum(1)
            return counts @ logsigmoid(logits).T + failures + constant.sum(1, keepdim=True)

        return evidence_of_one_latent(self.rates, log_density, x)


def _shape_of_moments(counts: Tensor) -> Tensor:
    """The r (X,) at which mean and variance are those of the counts, as far as any is."""
    mean, variance = counts.double().mean(0), counts.double().var(0, correction=0)
    beyond = (variance - mean).clamp(min=1e-12)
    return (mean.square() / beyond).clamp(*SHAPES).to(counts.dtype)


class _NegativeBinomial(nn.Module):
    def __init__(self, rates: nn.Linear, shape: Tensor) -> None:
        super().__init__()
        self.rates = rates
        self.log_shape = nn.Parameter(shape.detach().log())

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z."""
        logits = self.rates(z) - self.log_shape
        shape = self.log_shape.exp().expand(logits.shape)
        counts = dist.NegativeBinomial(shape, logits=logits)
        return dist.Independent(counts, 1)
