r"""A linear autoencoder: principal components by gradient descent.

.. math:: z = V \tilde x + c, \qquad x | z \sim N(\mu + s (W z + b), (\sigma s)^2), \qquad \tilde x = (x - \mu) / s

Trained on the reconstruction alone, the columns of W come to span the D leading principal axes of the standardised
data, and every other critical point is a saddle: Baldi and Hornik (1989), "Neural networks and principal component
analysis", https://doi.org/10.1016/0893-6080(89)90014-2. Letters: N datapoints, X features, D latents.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from amortize.errors import ArgumentError
from amortize.inference.beta import BetaELBO
from amortize.models.networks import MLP
from amortize.models.point_parts import Columns, FixedNormal, Point, Scaling
from amortize.models.vae import VAE, StandardNormal
from amortize.random import generator

__all__ = ["LinearAutoencoder", "principal_axes"]


@final
class LinearAutoencoder(VAE):
    """An affine encoder that gives a point, and an affine decoder; the prior N(0, I_D) costs the code nothing.

    Parameters
    ----------
    columns
        Means and scales of the data's columns.
    latent_dim
        D, less than X.
    noise_scale
        sigma: width of p(x | z) in units of the columns' scales. It changes no optimum, only the unit of the error.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        If ``latent_dim`` or ``noise_scale`` is out of range.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.LinearAutoencoder.from_data(x, latent_dim=2)
    >>> fitted = am.fit(model.program(), x, objective=model.objective, num_steps=10)
    >>> model.weight.shape
    torch.Size([6, 2])
    """

    def __init__(self, columns: Columns, latent_dim: int = 8, *, noise_scale: float = 0.5, seed: int = 0) -> None:
        data_dim = len(columns.loc)
        if not 1 <= latent_dim < data_dim:
            raise ArgumentError(f"latent_dim: expected 1 to {data_dim - 1} (X - 1), got {latent_dim}.")
        decoder = MLP((latent_dim, data_dim), generator=generator(seed, "decoder"))
        encoder = MLP((data_dim, latent_dim), generator=generator(seed, "encoder"))
        super().__init__(
            prior=StandardNormal(latent_dim),
            decoder=FixedNormal(decoder, columns, noise_scale),
            encoder=Point(encoder, columns),
            objective=BetaELBO(beta=0.0),
        )

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 8, *, scaling: Scaling = "shared", noise_scale: float = 0.5, seed: int = 0
    ) -> LinearAutoencoder:
        """A linear autoencoder for x (N, X), with random weights.

        Parameters
        ----------
        x
            Training data.
        scaling
            "shared" gives the components of the covariance, "own" those of the correlations.
        latent_dim, noise_scale, seed
            As for `LinearAutoencoder`.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        """
        return cls(Columns.of(x, scaling), latent_dim, noise_scale=noise_scale, seed=seed)

    @property
    def weight(self) -> Tensor:
        """W (X, D): its columns span the principal subspace of the standardised data."""
        return next(p for p in self.decoder.parameters() if p.ndim == 2)


def principal_axes(x: Any, latent_dim: int, *, scaling: Scaling = "shared") -> tuple[Tensor, float]:
    """Leading axes (X, D) of the standardised data, and the share of variance that D of them leave; float64.

    No `reconstruction_error` of a linear autoencoder with as many latents is smaller (Eckart and Young, 1936).
    """
    columns = Columns.of(x, scaling)
    data = torch.as_tensor(x).double()
    values, vectors = torch.linalg.eigh(torch.cov(((data - data.mean(0)) / columns.scale).T, correction=0))
    return vectors[:, -latent_dim:], float(values[:-latent_dim].sum() / len(values))
