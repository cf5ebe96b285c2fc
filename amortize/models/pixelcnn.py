r"""A PixelCNN of binary images with a limited sight: each pixel sees the code and a few pixels before it.

.. math:: p(x | z) = \prod_i \mathrm{Bernoulli}(x_i; \mathrm{logits}_i(x_{W(i)}, z)), \qquad
          W(i) = \{ j < i: j \text{ at most } r \text{ rows above } i \text{ and } r \text{ columns beside it} \}

in raster order. One masked convolution of radius r reads the window, layers of 1 x 1 see no further: W(i) is the sight
exactly, without the blind spot that stacked masked convolutions have, and a draw costs no more than a density. Letters:
B rows, X = S * S pixels, D latents, W = 2 r (r + 1) pixels of a whole window, C channels. Sources: van den Oord et al.
(2016), "Pixel recurrent neural networks", https://arxiv.org/abs/1601.06759; Chen et al. (2017), "Variational lossy
autoencoder", section 2.2, https://arxiv.org/abs/1611.02731.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import conv2d, pad, silu, softplus

from amortize.errors import check_count
from amortize.models.networks import MLP, seeded_linear
from amortize.random import generator

__all__ = ["AutoregressiveBernoulli", "PixelCNN"]

CONTEXT = 4
"""Numbers that each pixel gets of the code."""


class PixelCNN(nn.Module):
    """A decoder: of z (..., D) it makes an autoregressive distribution of images with event shape (X,).

    Parameters
    ----------
    latent_dim, side
        Numbers of latents D and of rows S of the square image.
    sight
        Radius r of the window. 0 sees no pixel: they are independent given z. From S - 1 on all pixels before are seen,
        and the decoder can do without the code.
    channels
        C, width of the layers.
    hidden
        Widths of the hidden layers from the code to the image.
    seed
        Of the initial weights.

    Attributes
    ----------
    bias
        Logits (X,) that are added to each pixel's.

    Raises
    ------
    ArgumentError
        A size that is not positive, or a negative sight.

    Examples
    --------
    >>> decoder = PixelCNN(latent_dim=2, side=4, sight=1, hidden=(8,))
    >>> images = decoder(torch.zeros(3, 2))
    >>> images.log_prob(torch.ones(3, 16)).shape
    torch.Size([3])
    """

    def __init__(
        self,
        latent_dim: int,
        side: int,
        *,
        sight: int = 2,
        channels: int = 16,
        hidden: Sequence[int] = (64,),
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count("latent_dim", latent_dim)
        self.side, self.channels = check_count("side", side), check_count("channels", channels)
        self.sight = min(check_count("sight", sight, 0), side - 1)
        gen = generator(seed, "pixelcnn")
        sizes = (latent_dim, *hidden, CONTEXT * side * side)
        self.code = MLP(sizes, generator=gen)
        self.window = seeded_linear(2 * self.sight * (self.sight + 1), channels, generator=gen) if self.sight else None
        self.entry = seeded_linear(CONTEXT, channels, generator=gen)
        self.mixing = seeded_linear(channels, channels, generator=gen)
        self.exit = seeded_linear(channels, 1, generator=gen)
        self.bias = nn.Parameter(torch.zeros(side * side))

    @property
    def data_dim(self) -> int:
        """X."""
        return self.side**2

    def forward(self, z: Tensor) -> AutoregressiveBernoulli:
        """Of x given z."""
        context = self.code(z).unflatten(-1, (self.data_dim, CONTEXT))
        return AutoregressiveBernoulli(self, self.entry(context))

    def logits(self, x: Tensor, entered: Tensor) -> Tensor:
        """Logits (..., X) of all pixels at once, given images x (..., X) and what the code says (..., X, C)."""
        seen = self._seen(x)
        return self._after(entered if seen is None else entered + seen) + self.bias

    def logit(self, pixel: int, canvas: Tensor, entered: Tensor) -> Tensor:
        """Logit (...) of one pixel, given a canvas (..., r + S, r + S + r) on which those before it are drawn."""
        row, column = divmod(pixel, self.side)
        h = entered[..., pixel, :]
        if self.window is not None:
            window = canvas[..., row : row + self.sight + 1, column : column + 2 * self.sight + 1].flatten(-2)
            h = h + self.window(window[..., : self.window.in_features])
        return self._after(h) + self.bias[pixel]

    def canvas(self, x: Tensor) -> Tensor:
        """Images (..., X) with a margin of zeros above and on both sides, (..., r + S, r + S + r)."""
        return pad(x.reshape(*x.shape[:-1], self.side, self.side), (self.sight, self.sight, self.sight, 0))

    def _seen(self, x: Tensor) -> Tensor | None:
        """What the windows say, (..., X, C). A window's pixels are the first of its rectangle, in raster order."""
        if self.window is None:
            return None
        rectangle = (self.sight + 1, 2 * self.sight + 1)
        kernel = pad(self.window.weight, (0, math.prod(rectangle) - self.window.in_features))
        images = self.canvas(x).flatten(0, -3) if x.dim() > 1 else self.canvas(x).unsqueeze(0)
        found = conv2d(images.unsqueeze(1), kernel.reshape(-1, 1, *rectangle), self.window.bias)
        return found.flatten(2).transpose(1, 2).reshape(*x.shape, self.channels)

    def _after(self, h: Tensor) -> Tensor:
        """Two layers of each pixel by itself, the first residual: (..., C) to logits (...)."""
        h = h + self.mixing(silu(h))
        logits: Tensor = self.exit(silu(h)).squeeze(-1)
        return logits


class AutoregressiveBernoulli(TorchDistribution):
    """Binary images drawn pixel by pixel.

    Parameters
    ----------
    network
        With ``logits`` and ``logit``.
    entered
        What the code says to each pixel, (..., X, C); its leading sizes are the batch shape.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (as torch has it)
    support = constraints.independent(constraints.boolean, 1)  # type: ignore[no-untyped-call]
    has_rsample = False

    def __init__(self, network: PixelCNN, entered: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.entered = network, entered
        super().__init__(entered.shape[:-2], entered.shape[-2:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBernoulli:
        """The same images for a larger batch."""
        entered = self.entered.expand(*batch_shape, *self.entered.shape[-2:])
        return AutoregressiveBernoulli(self.network, entered, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, one for each image."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.network.logits(value, self.entered)
        return (value * logits - softplus(logits)).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Images (..., X), drawn in raster order from the global generator of torch."""
        return self._drawn(torch.Size(sample_shape))[0]

    @property
    def mean(self) -> Tensor:
        """An unbiased estimate of the mean image, (..., X): each pixel's probability given those drawn before it.

        It takes one draw from the global generator of torch, for there is no closed form: average it over draws.
        """
        return self._drawn(torch.Size())[1]

    def _drawn(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Images and the probability with which each pixel was drawn."""
        network = self.network
        with torch.no_grad():
            entered = self.entered.expand(*sample_shape, *self.entered.shape)
            canvas = network.canvas(entered.new_zeros(entered.shape[:-1]))
            chances = entered.new_empty(entered.shape[:-1])
            for pixel in range(network.data_dim):
                chances[..., pixel] = network.logit(pixel, canvas, entered).sigmoid()
                row, column = divmod(pixel, network.side)
                canvas[..., row + network.sight, column + network.sight] = chances[..., pixel].bernoulli()
            inner = slice(network.sight, network.sight + network.side)
            return canvas[..., inner, inner].flatten(-2), chances
