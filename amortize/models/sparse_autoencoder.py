r"""Sparse autoencoders: a Laplace prior under a point guide, without and with rectifiers.

.. math:: z \sim \mathrm{Laplace}(0, 1 / \lambda)^D, \qquad x | z \sim N(\mu + s W h(z), (\sigma s)^2), \qquad
          -\log p(x, z) = \frac{\|\tilde x - W h(z)\|^2}{2 \sigma^2} + \lambda \|z\|_1 + \mathrm{const}

with :math:`h(z) = z` and an affine code :math:`z = V \tilde x + c`, or, by rectifiers, :math:`h(z) = \max(0, z)` and
:math:`z = \max(0, V \tilde x + c)`. The columns of W have norm 1: without that the penalty could be made small by small
codes. Letters: N datapoints, X features, D latents (units). Sources: Olshausen and Field (1996), "Emergence of
simple-cell receptive field properties by learning a sparse code for natural images", https://doi.org/10.1038/381607a0;
Glorot, Bordes and Bengio (2011), "Deep sparse rectifier neural networks",
https://proceedings.mlr.press/v15/glorot11a.html.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, final, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.beta import BetaELBO
from amortize.models.networks import MLP, seeded_linear
from amortize.models.point_parts import Columns, FixedNormal, Point, codes
from amortize.models.vae import VAE
from amortize.random import generator

__all__ = ["Penalised", "SparseAutoencoder", "Sparsity"]

Penalised = Literal["laplace", "rectifiers"]
"""How codes are made sparse: by the prior's penalty alone, or by rectifiers beside it."""

SMALL = 0.01  # of the largest code of the same datapoint


class Sparsity(NamedTuple):
    """How sparse the codes of a data set are.

    ``exact_zeros`` and ``near_zeros`` are shares of all N * D codes, the latter of those below 1 % of the largest code
    of their datapoint; ``always_zero`` is the share of units that are exactly zero for all datapoints, and
    ``activity`` (D,) the share of datapoints for which each unit is not.
    """

    exact_zeros: float
    near_zeros: float
    always_zero: float
    activity: Tensor


@final
class SparseAutoencoder(VAE):
    """An overcomplete code, most of it near zero or at it, and a dictionary of patterns W.

    Parameters
    ----------
    columns
        Means and scales of the data's columns.
    latent_dim
        D; it may be larger than X.
    penalty
        "laplace": the prior's L1 penalty alone. "rectifiers": codes pass max(0, .) as well, which makes exact zeros.
    sparsity
        lambda, nats that a code of size 1 costs.
    noise_scale
        sigma: width of p(x | z) in units of the columns' scales; the smaller, the less the penalty weighs.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        If a setting is unknown or not positive.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.SparseAutoencoder.from_data(x, latent_dim=12, penalty="rectifiers")
    >>> 0.3 < model.sparsity(x).exact_zeros < 0.7
    True
    """

    def __init__(
        self,
        columns: Columns,
        latent_dim: int = 64,
        *,
        penalty: Penalised = "laplace",
        sparsity: float = 2.0,
        noise_scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_count("latent_dim", latent_dim)
        if penalty not in get_args(Penalised):
            raise ArgumentError(f"penalty: expected 'laplace' or 'rectifiers', got {shown(penalty)}.")
        data_dim = len(columns.loc)
        rectify: list[nn.Module] = [nn.ReLU()] if penalty == "rectifiers" else []
        encoder = MLP((data_dim, latent_dim), generator=generator(seed, "encoder"))
        dictionary = Dictionary(latent_dim, data_dim, generator=generator(seed, "decoder"))
        super().__init__(
            prior=LaplacePrior(latent_dim, check_number("sparsity", sparsity)),
            decoder=FixedNormal(nn.Sequential(*rectify, dictionary), columns, noise_scale),
            encoder=Point(nn.Sequential(encoder, *rectify), columns),
            objective=BetaELBO(),
        )

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 64, *, penalty: Penalised = "laplace", sparsity: float = 2.0, seed: int = 0
    ) -> SparseAutoencoder:
        """A sparse autoencoder for x (N, X), with random weights; all columns share one scale.

        Parameters
        ----------
        x
            Training data.
        latent_dim, penalty, sparsity, seed
            As for `SparseAutoencoder`.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        """
        return cls(Columns.of(x), latent_dim, penalty=penalty, sparsity=sparsity, seed=seed)

    def sparsity(self, x: Any) -> Sparsity:
        """Shares of zeros in the codes of x (N, X)."""
        size = codes(self, x).abs()
        zero = size == 0
        near = size <= SMALL * size.amax(1, keepdim=True)
        return Sparsity(
            float(zero.double().mean()),
            float(near.double().mean()),
            float(zero.all(0).double().mean()),
            (~zero).double().mean(0),
        )


class LaplacePrior(nn.Module):
    """Independent Laplace distributions around 0: D latents, each with -log p(z) = rate |z| + log(2 / rate)."""

    scale: Tensor

    def __init__(self, latent_dim: int, rate: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((latent_dim,), 1.0 / rate))

    def forward(self) -> dist.Distribution:
        """The distribution."""
        return dist.Independent(dist.Laplace(torch.zeros_like(self.scale), self.scale), 1)


class Dictionary(nn.Module):
    """A linear map of codes (..., D) to data (..., X), whose columns, the patterns of D units, have norm 1."""

    def __init__(self, latent_dim: int, data_dim: int, *, generator: torch.Generator) -> None:
        super().__init__()
        layer = seeded_linear(latent_dim, data_dim, generator=generator)
        self.free_weight, self.bias = layer.weight, layer.bias

    @property
    def weight(self) -> Tensor:
        """W, (X, D)."""
        return normalize(self.free_weight, dim=0)

    def forward(self, codes: Tensor) -> Tensor:
        """Of standardised data."""
        return codes @ self.weight.T + self.bias
