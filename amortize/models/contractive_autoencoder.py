r"""A contractive autoencoder: codes that move as little as reconstruction allows.

.. math:: z = \tanh(V \tilde x + c), \qquad x | z \sim N(\mu + s (V^T z + b), (\sigma s)^2), \qquad
          \tilde x = (x - \mu) / s

trained on the reconstruction and :math:`\lambda \| \partial z / \partial \tilde x \|_F^2`. Encoder and decoder share V:
otherwise codes could shrink and the decoder grow, and nothing would be contracted. What reconstruction needs are the
directions along the data, so that the penalty is left to flatten those across them. Letters: N datapoints, X features,
D latents. Source: Rifai et al. (2011), "Contractive auto-encoders: explicit invariance during feature extraction",
https://icml.cc/2011/papers/455_icmlpaper.pdf.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, check_number
from amortize.inference.beta import BetaELBO
from amortize.inference.contraction import Contraction
from amortize.models.networks import seeded_linear
from amortize.models.point_parts import Columns, FixedNormal, Point, codes
from amortize.models.vae import VAE, StandardNormal
from amortize.random import generator

__all__ = ["ContractiveAutoencoder"]


@final
class ContractiveAutoencoder(VAE):
    """One layer of tanh and its transpose, under a penalty on the code's Jacobian.

    Parameters
    ----------
    columns
        Means and scales of the data's columns; one scale for all.
    latent_dim
        D; it may be larger than X.
    contraction
        lambda, nats a datapoint for a squared Frobenius norm of 1, by standardised data; 0 is a plain autoencoder.
    noise_scale
        sigma: width of p(x | z) in units of the columns' scales; the smaller, the less the penalty weighs.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        If a setting is out of range, or the columns differ in scale.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.ContractiveAutoencoder.from_data(x, latent_dim=12)
    >>> model.jacobian(x).shape
    torch.Size([40, 12, 6])
    """

    def __init__(
        self,
        columns: Columns,
        latent_dim: int = 32,
        *,
        contraction: float = 1.0,
        noise_scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_count("latent_dim", latent_dim)
        check_number("contraction", contraction, "[0, inf)")
        if not bool((columns.scale == columns.scale[0]).all()):
            raise ArgumentError("columns: expected one scale for all columns, got several.")
        layer = seeded_linear(len(columns.loc), latent_dim, generator=generator(seed, "encoder"))
        super().__init__(
            prior=StandardNormal(latent_dim),
            decoder=FixedNormal(Transposed(layer), columns, noise_scale),
            encoder=Point(nn.Sequential(layer, nn.Tanh()), columns),
            objective=BetaELBO(beta=0.0, penalties=(Contraction(contraction, scaling="shared"),)),
        )

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 32, *, contraction: float = 1.0, noise_scale: float = 0.5, seed: int = 0
    ) -> ContractiveAutoencoder:
        """A contractive autoencoder for x (N, X), with random weights.

        Parameters
        ----------
        x
            Training data.
        latent_dim, contraction, noise_scale, seed
            As for `ContractiveAutoencoder`.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        """
        return cls(Columns.of(x), latent_dim, contraction=contraction, noise_scale=noise_scale, seed=seed)

    @torch.no_grad()
    def jacobian(self, x: Any) -> Tensor:
        """Derivative of the codes by standardised data at x (N, X), in closed form: (N, D, X)."""
        weight = next(p for p in self.encoder.parameters() if p.ndim == 2)
        return (1.0 - codes(self, x).square())[:, :, None] * weight


class Transposed(nn.Module):
    """The transpose of a linear layer, with a bias of its own; the weight is the layer's."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    def forward(self, codes: Tensor) -> Tensor:
        """Map (..., D) to (..., X)."""
        return codes @ self.weight + self.bias
