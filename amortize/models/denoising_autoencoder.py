r"""A denoising autoencoder: what is learned changes because the guide sees something else than the model is asked for.

.. math:: z = f(\tilde x + \sigma_c \epsilon), \quad \epsilon \sim N(0, I) \text{ in training}, \qquad
          x | z \sim N(\mu + s\,g(z), (\sigma s)^2), \qquad \tilde x = (x - \mu) / s

The best reconstruction r of a corrupted t is t + sigma_c^2 grad log p_c(t), p_c the density of corrupted data, so that
:math:`(r(t) - t) / \sigma_c^2` tends to the score of the data as the corruption becomes small. Letters: N datapoints, X
features, D latents. Sources: Vincent et al. (2008), "Extracting and composing robust features with denoising
autoencoders", https://doi.org/10.1145/1390156.1390294; Vincent (2011), "A connection between score matching and
denoising autoencoders", https://doi.org/10.1162/NECO_a_00142; Alain and Bengio (2014), "What regularized auto-encoders
learn from the data-generating distribution", https://jmlr.org/papers/v15/alain14a.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from amortize.errors import ArgumentError, check_count, check_number, shown
from amortize.inference.beta import BetaELBO
from amortize.models.networks import MLP
from amortize.models.point_parts import Columns, FixedNormal, Point, codes, reconstruction_error
from amortize.models.vae import VAE, StandardNormal, matrix_of
from amortize.random import generator

__all__ = ["Corruption", "DenoisingAutoencoder", "noise_to_target"]

Corruption = Literal["gaussian", "masking"]
"""Gaussian noise on every entry, or entries set to their column's mean."""


@final
class DenoisingAutoencoder(VAE):
    """An autoencoder whose encoder sees corrupted data in training, and whole data in use.

    Parameters
    ----------
    columns
        Means and scales of the data's columns.
    latent_dim
        D.
    hidden
        Widths of the encoder's hidden layers, from the data on; the decoder mirrors them.
    corruption
        "gaussian" or "masking".
    noise
        sigma_c in units of the columns' scales; or the share of entries that are masked, below 1.
    seed
        Of the initial weights; the corruption is drawn as training draws.

    Raises
    ------
    ArgumentError
        If a setting is unknown or out of range.

    Examples
    --------
    >>> import torch, amortize as am
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> model = am.models.DenoisingAutoencoder.from_data(x, latent_dim=3, noise=0.3)
    >>> fitted = am.fit(model.program(), x, objective=model.objective, num_steps=10)
    >>> model.score(x).shape
    torch.Size([40, 6])
    """

    def __init__(
        self,
        columns: Columns,
        latent_dim: int = 8,
        *,
        hidden: Sequence[int] = (128,),
        corruption: Corruption = "gaussian",
        noise: float = 0.5,
        seed: int = 0,
    ) -> None:
        check_count("latent_dim", latent_dim)
        data_dim = len(columns.loc)
        encoder = Bypassed((data_dim, *hidden, latent_dim), generator=generator(seed, "encoder"))
        decoder = Bypassed((latent_dim, *reversed(hidden), data_dim), generator=generator(seed, "decoder"))
        super().__init__(
            prior=StandardNormal(latent_dim),
            decoder=FixedNormal(decoder, columns, 0.5),
            encoder=Point(nn.Sequential(Corrupted(corruption, noise), encoder), columns),
            objective=BetaELBO(beta=0.0),
        )
        self.corruption, self.noise = corruption, noise

    @classmethod
    def from_data(
        cls, x: Any, latent_dim: int = 8, *, corruption: Corruption = "gaussian", noise: float = 0.5, seed: int = 0
    ) -> DenoisingAutoencoder:
        """A denoising autoencoder for x (N, X), with random weights; all columns share one scale.

        Parameters
        ----------
        x
            Training data.
        latent_dim, corruption, noise, seed
            As for `DenoisingAutoencoder`.

        Raises
        ------
        DataError
            If x is no finite matrix, or nothing in it varies.
        """
        return cls(Columns.of(x), latent_dim, corruption=corruption, noise=noise, seed=seed)

    @torch.no_grad()
    def score(self, x: Any) -> Tensor:
        """(r(x) - x) / (sigma_c s)^2 for x (N, X): about the gradient of log p(x), by the data's own units.

        Raises
        ------
        ArgumentError
            If entries were masked: there is no score without Gaussian noise.
        """
        if self.corruption != "gaussian":
            raise ArgumentError("score: expected a model with Gaussian corruption, got corruption='masking'.")
        decoder = self.decoder
        assert isinstance(decoder, FixedNormal)
        data = matrix_of(x).to(decoder.loc)
        moved: Tensor = decoder.mean(codes(self, data)) - data
        return moved / (self.noise * decoder.scale).square()


class Bypassed(nn.Module):
    """A multilayer perceptron and a linear map, added: what hardly changes the data is easy to learn."""

    def __init__(self, sizes: Sequence[int], *, generator: torch.Generator) -> None:
        super().__init__()
        self.network = MLP(sizes, generator=generator)
        self.bypass = MLP((sizes[0], sizes[-1]), generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., sizes[0]) to (..., sizes[-1])."""
        outputs: Tensor = self.network(inputs) + self.bypass(inputs)
        return outputs


class Corrupted(nn.Module):
    """Corrupts standardised data in training, by torch's global generator, and passes them on otherwise."""

    def __init__(self, corruption: Corruption, noise: float) -> None:
        super().__init__()
        if corruption not in get_args(Corruption):
            raise ArgumentError(f"corruption: expected 'gaussian' or 'masking', got {shown(corruption)}.")
        check_number("noise", noise, "(0, inf)" if corruption == "gaussian" else "(0, 1)")
        self.corruption, self.noise = corruption, noise

    def forward(self, standard: Tensor) -> Tensor:
        """Of the same shape."""
        if not self.training:
            return standard
        if self.corruption == "gaussian":
            return standard + self.noise * torch.randn_like(standard)
        return standard * (torch.rand_like(standard) >= self.noise)


def noise_to_target(model: VAE, x: Any, levels: Sequence[float], *, seed: int = 0) -> np.ndarray:
    """How far a deterministic autoencoder lands from clean data x (N, X) when it sees them with more and more noise.

    Parameters
    ----------
    model
        One of the deterministic autoencoders.
    x
        Clean data.
    levels
        Standard deviations of Gaussian noise, in units of the columns' scales; the same draws are scaled for each.
    seed
        Of the noise.

    Returns
    -------
    numpy.ndarray
        The `reconstruction_error` at each level, in shares of variance.

    Raises
    ------
    ArgumentError
        If a level is negative, or the model is another.

    Examples
    --------
    >>> import torch, amortize as am
    >>> from amortize.models.denoising_autoencoder import noise_to_target
    >>> x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    >>> noise_to_target(am.models.DenoisingAutoencoder.from_data(x), x, levels=(0.0, 1.0)).shape
    (2,)
    """
    decoder = model.decoder
    if not isinstance(decoder, FixedNormal):
        raise ArgumentError(f"model: expected a deterministic autoencoder, got {type(model).__name__}.")
    data = matrix_of(x).to(device="cpu", dtype=decoder.loc.dtype)
    drawn = torch.randn(data.shape, generator=generator(seed, "noise to target"), dtype=data.dtype)
    noise = drawn * decoder.scale.cpu()
    sizes = [check_number("levels", level, "[0, inf)") for level in levels]
    return np.array([reconstruction_error(model, data + size * noise, data) for size in sizes])
