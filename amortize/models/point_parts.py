r"""Parts of the deterministic autoencoders: an encoder that gives a point, a Gaussian of fixed width around a decoder.

.. math:: q(z | x) = \delta(z - f((x - \mu) / s)), \qquad p(x | z) = N(\mu + s\,g(z), (\sigma s)^2)

Letters: N datapoints, X features, D latents; mu and s (X,) are the columns' means and scales, and f and g networks of
standardised data. With such a guide the ELBO's reconstruction term is a squared error in units of sigma s, and its rate
is -log p(z) (see `amortize.BetaELBO`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, check_number, shown
from amortize.models.vae import VAE, matrix_of

__all__ = ["Columns", "FixedNormal", "Point", "Scaling", "codes", "reconstruction_error"]

Scaling = Literal["shared", "own"]
"""One scale for all columns, as for pixels; or the standard deviation of each, as for measurements in many units."""


class Columns(NamedTuple):
    """Means and scales of a data set's columns, (X,) each."""

    loc: Tensor
    scale: Tensor

    @classmethod
    def of(cls, x: Any, scaling: Scaling = "shared") -> Columns:
        """Of training data (N, X); a column that never changes has the scale 1 where each has its own.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        ArgumentError
            If ``scaling`` is unknown.
        """
        if scaling not in get_args(Scaling):
            raise ArgumentError(f"scaling: expected 'shared' or 'own', got {shown(scaling)}.")
        data = matrix_of(x).double()
        variance = data.var(0, correction=0)
        if not bool(variance.sum() > 0):
            raise DataError(f"x: expected columns that vary, got {len(data)} equal rows.")
        if scaling == "shared":
            variance = variance.mean().expand_as(variance)
        scale = torch.where(variance > 0, variance, 1.0).sqrt()
        return cls(data.mean(0).float(), scale.float())


class _Standardised(nn.Module):
    """A network of standardised data, with the columns it knows."""

    loc: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, columns: Columns) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("loc", columns.loc.clone())
        self.register_buffer("scale", columns.scale.clone())


class Point(_Standardised):
    """A guide that is a point: the network's output for standardised x (N, X) is the code (N, D)."""

    def forward(self, x: Tensor) -> dist.Distribution:
        """Of z given x, a Delta."""
        return dist.Delta(self.network((x - self.loc) / self.scale), event_dim=1)  # type: ignore[no-untyped-call]


class FixedNormal(_Standardised):
    """Independent Gaussians around a network of z (..., D), ``noise_scale`` times the columns' scales wide."""

    def __init__(self, network: nn.Module, columns: Columns, noise_scale: float) -> None:
        super().__init__(network, columns)
        self.noise_scale = check_number("noise_scale", noise_scale)

    def mean(self, z: Tensor) -> Tensor:
        """Of x given z, (..., X)."""
        mean: Tensor = self.loc + self.scale * self.network(z)
        return mean

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z."""
        return dist.Independent(dist.Normal(self.mean(z), self.noise_scale * self.scale), 1)


@torch.no_grad()
def codes(model: VAE, x: Any) -> Tensor:
    """The points (N, D) to which a deterministic autoencoder sends x (N, X), as it stands outside of training."""
    encoder, training = model.encoder, model.encoder.training
    like = next(iter(model.parameters()))
    data = matrix_of(x).to(device=like.device, dtype=like.dtype)
    encoder.eval()
    try:
        code: Tensor = encoder(data).mean
    finally:
        encoder.train(training)
    return code


@torch.no_grad()
def reconstruction_error(model: VAE, x: Any, target: Any = None) -> float:
    """Squared error of the reconstruction of x in units of the columns' scales, mean over entries.

    It is the share of the variance that is left: 1 is what the columns' means alone leave of the training data, if all
    of their columns vary.

    Parameters
    ----------
    model
        A deterministic autoencoder made of `Point` and `FixedNormal`.
    x
        What the encoder sees, (N, X).
    target
        What should come out, (N, X); None takes x.

    Raises
    ------
    ArgumentError
        If the model is another.
    DataError
        If x or the target is no finite matrix, or they differ in shape.

    Examples
    --------
    >>> import torch, amortize as am
    >>> from amortize.models.point_parts import reconstruction_error
    >>> x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    >>> reconstruction_error(am.models.LinearAutoencoder.from_data(x, latent_dim=2), x) > 0
    True
    """
    decoder = model.decoder
    if not isinstance(decoder, FixedNormal):
        raise ArgumentError(f"model: expected a deterministic autoencoder, got {type(model).__name__}.")
    mean = decoder.mean(codes(model, x))
    aim = matrix_of(x if target is None else target).to(mean)
    if aim.shape != mean.shape:
        raise DataError(f"target: expected shape {tuple(mean.shape)}, got {tuple(aim.shape)}.")
    return float(((mean - aim) / decoder.scale).square().mean())
