r"""A variational autoencoder for real data, with a scale that is learned.

.. math:: z \sim N(0, I_D), \qquad x | z \sim N(\mu + s f(z), (s \sigma)^2), \qquad
          q(z | x) = N(m(\tilde x), \mathrm{diag}(v(\tilde x)^2)), \qquad \tilde x = (x - \mu) / s

mu are the columns' means, and s their standard deviation: one for all columns or one each, as sigma is. Both are fixed,
so that networks see data of unit size; sigma is trained. A wrong fixed sigma weighs reconstruction against the code
wrongly. Letters: N datapoints, X features, D latents. Sources: Kingma and Welling (2014), "Auto-encoding variational
Bayes", https://arxiv.org/abs/1312.6114; Rybkin et al. (2021), "Simple and effective VAE training with calibrated
decoders", https://arxiv.org/abs/2006.13202, for the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, final

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, DataError, check_count, shown
from amortize.models.vae import VAE, DiagonalNormal, StandardNormal, matrix_of
from amortize.models.vae_parts import NetworkKind, reading, writing
from amortize.random import generator

__all__ = ["GaussianVAE", "ScaleKind", "ScaledNormal", "Standardised", "moments"]

ScaleKind = Literal["shared", "own"]
"""One sigma for all columns, or one each."""


@final
class GaussianVAE(VAE):
    """Gaussian decoder with a learned scale and mean-field Gaussian encoder.

    Examples
    --------
    >>> import amortize as am
    >>> x = am.data.load("wine").x_train
    >>> vae = am.models.GaussianVAE.from_data(x, latent_dim=2, scale="own")
    >>> vae.scale.shape
    torch.Size([13])
    """

    @classmethod
    def from_data(
        cls,
        x: Any,
        *,
        latent_dim: int = 8,
        hidden: Sequence[int] | None = None,
        network: NetworkKind = "mlp",
        scale: ScaleKind = "shared",
        seed: int = 0,
    ) -> Self:
        """A VAE for ``x`` that begins at the data's mean and scale.

        Parameters
        ----------
        x
            Training data of numbers, (N, X).
        latent_dim, hidden, network
            D and the networks, as for `BernoulliVAE`.
        scale
            "shared": one sigma for all columns, as for pixels; "own": one each, where units differ.
        seed
            Of the initial weights.

        Raises
        ------
        DataError
            ``x`` is not a matrix of finite numbers, or what a scale is learned for does not vary, so that the density
            has no bound.
        ArgumentError
            Settings that don't fit.
        """
        data = matrix_of(x)
        check_count("latent_dim", latent_dim)
        loc, spread = moments(data, scale)
        sizes: dict[str, Any] = {"network": network, "hidden": hidden}
        read = reading(len(loc), 2 * latent_dim, **sizes, generator=generator(seed, "encoder"))
        write = writing(latent_dim, len(loc), **sizes, generator=generator(seed, "decoder"))
        return cls(
            prior=StandardNormal(latent_dim),
            decoder=ScaledNormal(write, loc, spread),
            encoder=DiagonalNormal(Standardised(read, loc, spread)),
        )

    @property
    def scale(self) -> Tensor:
        """Standard deviation of x given z, s sigma: (1,) or (X,), in the data's units."""
        assert isinstance(self.decoder, ScaledNormal)
        return self.decoder.scale.detach()


class ScaledNormal(nn.Module):
    """Independent Gaussians about a network, with a scale that is learned, of what is given to it."""

    loc: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, loc: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("loc", loc)
        self.register_buffer("spread", spread)
        self.log_sigma = nn.Parameter(torch.zeros_like(spread))

    @property
    def scale(self) -> Tensor:
        """Standard deviation, (1,) or (X,)."""
        return self.spread * self.log_sigma.exp()

    def forward(self, z: Tensor) -> dist.Distribution:
        """Of x given z."""
        mean = self.loc + self.spread * self.network(z)
        return dist.Independent(dist.Normal(mean, self.scale.expand_as(mean)), 1)


class Standardised(nn.Module):
    """A network that sees data of mean 0 and unit size."""

    loc: Tensor
    spread: Tensor

    def __init__(self, network: nn.Module, loc: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("loc", loc)
        self.register_buffer("spread", spread)

    def forward(self, x: Tensor) -> Tensor:
        """The network at x (N, X)."""
        outputs: Tensor = self.network((x - self.loc) / self.spread)
        return outputs


def moments(data: Tensor, scale: str = "shared") -> tuple[Tensor, Tensor]:
    """Means (X,) of data (N, X), and the standard deviation about them, (1,) or (X,).

    Raises
    ------
    DataError
        What does not vary.
    ArgumentError
        If ``scale`` is neither "shared" nor "own".
    """
    if scale not in ("shared", "own"):
        raise ArgumentError(f"scale: expected 'shared' or 'own', got {shown(scale)}.")
    rows = data.double()
    loc = rows.mean(0)
    variance = (rows - loc).square().mean(0)
    spread = (variance if scale == "own" else variance.mean(0, keepdim=True)).sqrt()
    tiny = 1e-10 * rows.abs().amax(0)  # what rounding leaves of a column that is constant
    constant = spread <= (tiny if scale == "own" else tiny.amax())
    if bool(constant.any()):
        what = f"column {int(constant.nonzero()[0])} does" if scale == "own" else "the data do"
        raise DataError(f"x: {what} not vary, so that no scale can be learned; leave such columns out.")
    return loc.float(), spread.float()
