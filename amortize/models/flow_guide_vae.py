r"""A variational autoencoder whose guide has correlations: a full covariance, or a normalizing flow.

.. math:: q(z | x) = N(m(x), L(x) L(x)^T) \quad \text{or} \quad z = m(x) + L(x) \, T(\epsilon; h(x))

The encoder network gives m, L and the context h of the flow T (see ``flows``). L is lower triangular for
"full-covariance" and "spline", and diagonal for "iaf" and "coupling". Each guide begins as N(m(x), I).
Letters: N datapoints, X features, D latents, H context. Sources: Rezende and Mohamed (2015), "Variational inference
with normalizing flows", https://arxiv.org/abs/1505.05770; Kingma et al. (2016), "Improved variational inference with
inverse autoregressive flow", https://arxiv.org/abs/1606.04934.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.flows import Flow, Triangular, flowing
from amortize.models.vae import VAE, StandardNormal, matrix_of
from amortize.models.vae_parts import NetworkKind, bernoulli_decoder, reading
from amortize.random import generator

__all__ = ["FlowEncoder", "FlowGuideVAE", "GuideKind"]

GuideKind = Literal["full-covariance", "iaf", "coupling", "spline"]
GUIDES = ("full-covariance", "iaf", "coupling", "spline")
TRIANGULAR = ("full-covariance", "spline")
CONTEXT = 32
LAYERS = 4


@final
class FlowGuideVAE(VAE):
    """The Bernoulli VAE with a richer guide.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.eye(6)
    >>> vae = am.models.FlowGuideVAE.from_data(x, latent_dim=2, hidden=(8,), guide="iaf")
    >>> am.fit(vae.program(), x, objective=vae.objective, num_steps=5).bound
    'ELBO'
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        guide: GuideKind = "coupling",
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        seed: int = 0,
    ) -> Self:
        """A VAE whose decoder begins at the data's means.

        Parameters
        ----------
        x
            Training data of zeros and ones, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        guide
            "full-covariance", "coupling", "spline", or "iaf", whose density at points that it did not draw costs D
            passes.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of zeros and ones.
        ArgumentError
            Settings that don't fit.
        """
        data = matrix_of(x, binary=True)
        sizes: dict[str, Any] = {"network": network, "hidden": hidden, "seed": seed}
        encoder = FlowEncoder(data.shape[1], latent_dim, guide=guide, **sizes)
        return cls(
            prior=StandardNormal(latent_dim), decoder=bernoulli_decoder(data, latent_dim, **sizes), encoder=encoder
        )


class FlowEncoder(nn.Module):
    """Data (N, X) to a distribution of z with batch shape (N,) and event shape (D,).

    Parameters
    ----------
    data_dim, latent_dim
        X and D.
    guide
        One of the kinds of `FlowGuideVAE`.
    network, hidden, seed
        The network that reads the data, and the seed of all weights.

    Raises
    ------
    ArgumentError
        Settings that don't fit.

    Examples
    --------
    >>> FlowEncoder(6, 3, guide="spline")(torch.zeros(4, 6)).batch_shape
    torch.Size([4])
    """

    _rows: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dim: int,
        *,
        guide: GuideKind,
        network: NetworkKind = "mlp",
        hidden: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if guide not in GUIDES:
            raise ArgumentError(f"guide: expected one of {GUIDES}, got {shown(guide)}.")
        dim = check_count("latent_dim", latent_dim)
        self.triangular = guide in TRIANGULAR
        num_below = dim * (dim - 1) // 2 if self.triangular else 0
        self.sizes = (dim, dim, num_below, 0 if guide == "full-covariance" else CONTEXT)
        weights = generator(seed, "encoder")
        self.network = reading(data_dim, sum(self.sizes), network=network, hidden=hidden, generator=weights)
        with torch.no_grad():
            self.network.last.weight[dim : 2 * dim + num_below].zero_()  # of scales and what stands below them
        self.flow = None if guide == "full-covariance" else Flow(guide, dim, CONTEXT, num_layers=LAYERS, seed=seed)
        self.register_buffer("_rows", torch.tril_indices(dim, dim, -1), persistent=False)

    def forward(self, x: Tensor) -> dist.Distribution:
        """Of z given x."""
        loc, log_scale, below, context = self.network(x).split(self.sizes, -1)
        scale_tril = self._scale_tril(log_scale.exp(), below) if self.triangular else None
        if self.flow is None:
            return dist.MultivariateNormal(loc, scale_tril=scale_tril)
        frame = (
            AffineTransform(loc, log_scale.exp(), event_dim=1, cache_size=1)
            if scale_tril is None
            else Triangular(loc, scale_tril)
        )
        return flowing([*self.flow.transforms(context), frame], loc)

    def _scale_tril(self, scale: Tensor, below: Tensor) -> Tensor:
        """L (N, D, D), from its diagonal (N, D) and what stands below it, row by row, in units of the row's."""
        rows, columns = self._rows
        tril = torch.diag_embed(scale)
        tril[..., rows, columns] = below * scale[..., rows]
        return tril
