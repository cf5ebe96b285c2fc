r"""An autoencoder with non-linear layers, three or five of them.

.. math:: z = f(\tilde x), \qquad x | z \sim N(\mu + s\,g(z), (\sigma s)^2), \qquad \tilde x = (x - \mu) / s

With three layers (x, a non-linear code, a linear x) no reconstruction is better than that of as many principal
components: they lie in an affine space of dimension D. It takes a non-linear layer between the code and x to leave that
space. Letters: N datapoints, X features, D latents. Sources: Bourlard and Kamp (1988), "Auto-association by multilayer
perceptrons and singular value decomposition", https://doi.org/10.1007/BF00332918; Kramer (1991), "Nonlinear principal
component analysis using autoassociative neural networks", https://doi.org/10.1002/aic.690370209; Japkowicz, Hanson and
Gluck (2000), "Nonlinear autoassociation is not equivalent to PCA", https://doi.org/10.1162/089976600300015691.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from torch import nn

from amortize.errors import check_count
from amortize.inference.beta import BetaELBO
from amortize.models.networks import MLP
from amortize.models.point_parts import Columns, FixedNormal, Point, Scaling
from amortize.models.vae import VAE, StandardNormal
from amortize.random import generator

__all__ = ["Autoencoder"]


@final
class Autoencoder(VAE):
    """Encoder and decoder are multilayer perceptrons with tanh, the guide is a point, and only the error counts.

    Parameters
    ----------
    columns
        Means and scales of the data's columns.
    latent_dim
        D.
    hidden
        Widths of the encoder's hidden layers, from the data on; the decoder mirrors them. One width gives five layers;
        none, (), gives three, of which the code itself is the non-linear one.
    noise_scale
        sigma: width of p(x | z) in units of the columns' scales; it changes no optimum.
    seed
        Of the initial weights.

    Raises
    ------
    ArgumentError
        If a size or ``noise_scale`` is not positive.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> am.models.Autoencoder.from_data(x, latent_dim=2, hidden=(16,)).num_layers
    5
    >>> am.models.Autoencoder.from_data(x, latent_dim=2, hidden=()).num_layers
    3
    """

    def __init__(
        self,
        columns: Columns,
        latent_dim: int = 8,
        *,
        hidden: Sequence[int] = (128,),
        noise_scale: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_count("latent_dim", latent_dim)
        data_dim = len(columns.loc)
        encoder: nn.Module = MLP((data_dim, *hidden, latent_dim), generator=generator(seed, "encoder"))
        decoder = MLP((latent_dim, *reversed(hidden), data_dim), generator=generator(seed, "decoder"))
        if not hidden:
            encoder = nn.Sequential(encoder, nn.Tanh())
        super().__init__(
            prior=StandardNormal(latent_dim),
            decoder=FixedNormal(decoder, columns, noise_scale),
            encoder=Point(encoder, columns),
            objective=BetaELBO(beta=0.0),
        )
        self.num_layers = 3 + 2 * len(hidden)

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 8, *, hidden: Sequence[int] = (128,), scaling: Scaling = "shared", seed: int = 0
    ) -> Autoencoder:
        """An autoencoder for x (N, X), with random weights.

        Parameters
        ----------
        x
            Training data.
        scaling
            One scale for all columns, "shared", or that of each, "own".
        latent_dim, hidden, seed
            As for `Autoencoder`.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        """
        return cls(Columns.of(x, scaling), latent_dim, hidden=hidden, seed=seed)
