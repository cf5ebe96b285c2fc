r"""A critic of patches, and the game that a decoder plays against it: what makes the images of a VQ-GAN sharp.

.. math:: \min_D \; E \max(0, 1 - D(x)) + E \max(0, 1 + D(\hat x)), \qquad
          \min_{\hat x} \; \lambda_a \, E[-D(\hat x)] + \lambda_f \sum_l |h_l(x) - h_l(\hat x)|

D scores every patch of an image, and its hidden layers h are the features in which an image and its reconstruction are
compared where no network is given that knows better. Both losses are weighed anew at each step, so that at the last
layer L of the decoder their gradients are as long as that of the distortion, or the share w of it that is asked for:

.. math:: \lambda = w \, |\nabla_L \mathrm{distortion}| \, / \, |\nabla_L \mathrm{loss}|

Critic and decoder step at once, with one optimiser: the critic's loss does not reach the decoder, nor the decoder's the
critic. Letters: N images, X = side * side pixels. Sources: Esser et al. (2021), "Taming transformers for
high-resolution image synthesis", equations 5 to 7, https://arxiv.org/abs/2012.09841; Isola et al. (2017),
"Image-to-image translation with conditional adversarial networks", for patches, https://arxiv.org/abs/1611.07004;
Larsen et al. (2016), "Autoencoding beyond pixels using a learned similarity metric", for the critic's features,
https://arxiv.org/abs/1512.09300; Lim and Ye (2017), "Geometric GAN", for the hinge, https://arxiv.org/abs/1705.02894.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import leaky_relu, relu

from amortize.errors import ArgumentError, check_count, shown
from amortize.models.convolutions import side_of

__all__ = ["Distance", "PatchCritic", "PatchGame", "balanced"]

KERNEL, SLOPE = 3, 0.2
TINY = 1e-12
"""Beside a gradient's length, so that one of zero gives a weight, if a large one, and no division by zero."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""How far images (N, X) are from others (N, X): a number an image (N,), or their mean."""


class PatchCritic(nn.Module):
    """Convolutions from square images to a score a patch: above 0 for data, below for reconstructions.

    Each layer but the last halves the side; a score sees 3 pixels across with one layer, 7 with two, 15 with three, and
    so on, the last one included.

    Parameters
    ----------
    data_dim
        X, a square.
    channels
        Of each step that halves the side.
    generator
        Where the initial weights come from.

    Raises
    ------
    ArgumentError
        X is no square, or a number of channels is not positive.

    Examples
    --------
    >>> critic = PatchCritic(64, channels=(4, 8), generator=torch.Generator().manual_seed(0))
    >>> scores, features = critic(torch.zeros(3, 64))
    >>> scores.shape, [tuple(each.shape) for each in features]
    (torch.Size([3, 2, 2]), [(3, 4, 4, 4), (3, 8, 2, 2)])
    """

    def __init__(self, data_dim: int, *, channels: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.side = side_of(data_dim)
        if not channels:
            raise ArgumentError(f"channels: expected one number a step or more, as (32, 64), got {shown(channels)}.")
        for num in channels:
            check_count("channels", num)
        self.layers = nn.ModuleList(_layer(*pair, stride=2, generator=generator) for pair in pairwise((1, *channels)))
        self.last = _layer(channels[-1], 1, stride=1, generator=generator)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores of the patches (N, s, s), and what each hidden layer made of them, for images (N, X)."""
        hidden, features = x.reshape(-1, 1, self.side, self.side), []
        for layer in self.layers:
            hidden = leaky_relu(layer(hidden), SLOPE)
            features.append(hidden)
        return self.last(hidden).squeeze(1), features


class PatchGame(nn.Module):
    """What critic and decoder each add to the loss; the critic is trained along with the program.

    Parameters
    ----------
    critic
        Of images.
    adversarial, matching
        w of the critic's verdict and of the distance of features: shares of the distortion's gradient.
    perceptual
        A distance of images to take in place of the critic's features; None takes those. It is not trained.

    Examples
    --------
    >>> critic = PatchCritic(16, channels=(4,), generator=torch.Generator().manual_seed(0))
    >>> game = PatchGame(critic, adversarial=0.5, matching=1.0)
    >>> last = torch.zeros(16, requires_grad=True)
    >>> data, images = torch.ones(3, 16), torch.zeros(3, 16) + last
    >>> game(data, images, (data - images).square().sum(-1).mean(), last=last).shape
    torch.Size([])
    """

    def __init__(
        self, critic: PatchCritic, *, adversarial: float, matching: float, perceptual: Distance | None = None
    ) -> None:
        super().__init__()
        self.critic = critic
        self.adversarial, self.matching = adversarial, matching
        self._perceptual = (perceptual,)  # in a tuple: where it is a module, its parameters are not the game's

    def forward(self, data: Tensor, images: Tensor, distortion: Tensor, *, last: Tensor) -> Tensor:
        """A scalar to be added to ``distortion``.

        Parameters
        ----------
        data, images
            x and what the decoder makes of it, (N, X).
        distortion
            A scalar, nats a datapoint, with a gradient.
        last
            The parameter of the decoder's last layer, at which gradients are compared.
        """
        scores, features = self._frozen(images)
        verdict, distance = -scores.mean(), self._distance(data, images, features)
        asked = balanced(verdict, distortion, last=last, share=self.adversarial)
        matched = balanced(distance, distortion, last=last, share=self.matching)
        return self.of_the_critic(data, images) + asked + matched

    def of_the_critic(self, data: Tensor, images: Tensor) -> Tensor:
        """The hinge that the critic descends, a scalar; 2 for one that says 0 of everything."""
        right = relu(1 - self.critic(data)[0]).mean()
        wrong = relu(1 + self.critic(images.detach())[0]).mean()
        return right + wrong

    def _frozen(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The critic as a fixed function."""
        weights = {name: value.detach() for name, value in self.critic.named_parameters()}
        found: tuple[Tensor, list[Tensor]] = functional_call(self.critic, weights, (images,))
        return found

    def _distance(self, data: Tensor, images: Tensor, features: list[Tensor]) -> Tensor:
        (perceptual,) = self._perceptual
        if perceptual is not None:
            return perceptual(data, images).mean()
        with torch.no_grad():
            targets = self.critic(data)[1]
        pairs = zip(features, targets, strict=True)
        return torch.stack([(mine - target).abs().mean() for mine, target in pairs]).sum()


def balanced(loss: Tensor, distortion: Tensor, *, last: Tensor, share: float) -> Tensor:
    """A loss so weighed that its gradient at ``last`` is as long as ``share`` of the distortion's.

    Examples
    --------
    >>> last = torch.ones(2, requires_grad=True)
    >>> weighed = balanced(1e-3 * last.sum(), 50 * last.sum(), last=last, share=0.5)
    >>> torch.autograd.grad(weighed, last)[0]
    tensor([25., 25.])
    """
    if share == 0:
        return torch.zeros_like(loss)
    lengths = [torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (distortion, loss)]
    weighed: Tensor = share * lengths[0] / (lengths[1] + TINY) * loss
    return weighed


def _layer(num_inputs: int, num_outputs: int, *, stride: int, generator: torch.Generator) -> nn.Conv2d:
    """With He-uniform weights for a leaky rectifier, and a zero bias."""
    layer = nn.Conv2d(num_inputs, num_outputs, KERNEL, stride=stride, padding=1, device="meta").to_empty(device="cpu")
    bound = math.sqrt(6.0 / (KERNEL**2 * num_inputs * (1 + SLOPE**2)))
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        assert layer.bias is not None
        layer.bias.zero_()
    return layer
