r"""The skeleton of the zoo's variational autoencoders: three modules that each give a distribution.

.. math:: z \sim p(z), \qquad x | z \sim p(x | z), \qquad q(z | x)

Letters: N datapoints, X features, D latents. Source: Kingma and Welling (2014), "Auto-encoding variational Bayes",
https://arxiv.org/abs/1312.6114.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError
from amortize.inference.objective import Objective
from amortize.models.networks import register
from amortize.models.zoo import ZooModel

__all__ = ["VAE", "Bernoulli", "DiagonalNormal", "StandardNormal", "log_odds_of_means", "matrix_of"]


class VAE(ZooModel):
    """A latent ``z`` with a prior, a decoder and an encoder; each is a module that returns a distribution.

    Parameters
    ----------
    prior
        Called without arguments: a distribution with event shape (D,) and no batch shape.
    decoder
        Of z (..., D): a distribution of x with event shape (X,).
    encoder
        Of x (N, X): a distribution of z with batch shape (N,) and event shape (D,); it may be a point (Delta).
    objective
        What ``am.fit`` should maximise.
    """

    def __init__(
        self, *, prior: nn.Module, decoder: nn.Module, encoder: nn.Module, objective: str | Objective = "elbo"
    ) -> None:
        super().__init__()
        self.prior, self.decoder, self.encoder = prior, decoder, encoder
        self._objective = objective

    @property
    def objective(self) -> str | Objective:
        """As it was given."""
        return self._objective

    def model(self, x: Tensor) -> None:
        """The generative model: site ``z`` (N, D), observed site ``x`` (N, X)."""
        register("prior", self.prior)
        register("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """The encoder: site ``z`` (N, D)."""
        register("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", self.encoder(x))


class StandardNormal(nn.Module):
    """N(0, I_D) as a prior."""

    zero: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ArgumentError(f"latent_dim: expected at least 1, got {latent_dim}.")
        self.register_buffer("zero", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.Distribution:
        """The distribution."""
        return dist.Independent(dist.Normal(self.zero, torch.ones_like(self.zero)), 1)


class Bernoulli(nn.Module):
    """Independent pixels: a network of z (..., D) gives logits (..., X)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z."""
        return dist.Independent(dist.Bernoulli(logits=self.network(z)), 1)


class DiagonalNormal(nn.Module):
    """A mean-field Gaussian: a network of x (N, X) gives loc and log scale, (N, 2 D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> dist.Distribution:
        """Of z given x."""
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return dist.Independent(dist.Normal(loc, log_scale.exp()), 1)


def matrix_of(x: Any, *, binary: bool = False) -> Tensor:
    """Training data as a matrix (N, X) of finite numbers, or of zeros and ones.

    Raises
    ------
    DataError
        If they are anything else.
    """
    data = torch.as_tensor(x)
    expected = "zeros and ones" if binary else "finite numbers"
    fine = data.ndim == 2 and len(data) > 0 and bool(data.isfinite().all())
    if not fine or (binary and not bool(((data == 0) | (data == 1)).all())):
        seen = f", values from {data.min().item():g} to {data.max().item():g}" if data.numel() else ""
        raise DataError(f"x: expected a matrix of {expected}, got shape {tuple(data.shape)}{seen}.")
    return data


def log_odds_of_means(data: Tensor) -> Tensor:
    """Log odds of each column's mean (X,), half a pseudo-count on either side: a good first bias of logits.

    Source: Burda et al. (2016), "Importance weighted autoencoders", who start from the train mean.
    """
    return torch.logit((data.double().sum(0) + 0.5) / (len(data) + 1.0))
