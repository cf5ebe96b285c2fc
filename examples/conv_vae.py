"""A convolutional variational autoencoder of grey images.

    z ~ Normal(0, I),    x | z ~ ContinuousBernoulli(decoder(z)),    q(z | x) = Normal(loc(x), scale(x)),

with strided convolutions and batch normalisation, as users of convolutional networks write them. Pixels are grey values
from 0 to 1; the continuous Bernoulli (Loaiza-Ganem and Cunningham, The continuous Bernoulli, 2019) is a density there,
which the cross-entropy of a Bernoulli is not. So log p(x) is that of a density, and its nats may be positive.

    amortize check examples/conv_vae.py:program --data examples/conv_vae.py:data
    amortize study examples/conv_vae.toml
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

import amortize as am


def encoder(latent_dim: int) -> nn.Sequential:
    """From images (N, 1, 28, 28) to loc and log scale, (N, 2 * latent_dim)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, kernel_size=4, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, kernel_size=4, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 2 * latent_dim),
    )


def decoder(latent_dim: int) -> nn.Sequential:
    """From latents (N, latent_dim) to logits (N, 1, 28, 28)."""
    return nn.Sequential(
        nn.Linear(latent_dim, 16 * 7 * 7),
        nn.Unflatten(1, (16, 7, 7)),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, kernel_size=4, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, kernel_size=4, stride=2, padding=1),
    )


class ConvVAE(nn.Module):
    """A model and a guide that share nothing but the shape of z."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = encoder(latent_dim)
        self.decoder = decoder(latent_dim)

    def model(self, x: Tensor) -> None:
        """Draw images: p(z) p(x | z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim)).to_event(1))
            logits = self.decoder(z).flatten(1)
            pyro.sample("x", dist.ContinuousBernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior: q(z | x)."""
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x.view(-1, 1, 28, 28)).chunk(2, dim=-1)
        with pyro.plate("images", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data() -> am.data.Dataset:
    """Fashion-MNIST, 784 grey values from 0 to 1."""
    return am.data.load("fashion-mnist")


def program(latent_dim: int = 10) -> am.Program:
    """The model and its guide, with fresh weights."""
    vae = ConvVAE(latent_dim)
    return am.Program(vae.model, vae.guide)
