"""A conditional variational autoencoder: the lower half of a digit given the upper half.

    z | top ~ Normal(loc(top), scale(top)),    bottom | z, top ~ Bernoulli(decoder(z, top)),

a prior that depends on data, as in Sohn, Lee and Yan, Learning structured output representation using deep conditional
generative models, 2015. The guide q(z | top, bottom) sees both halves. What a study measures is log p(bottom | top).

The data are binarised MNIST, each digit cut in two: a dict, whose arrays are passed to model and guide by name.

    amortize check examples/conditional_vae.py:program --data examples/conditional_vae.py:data
    amortize study examples/conditional_vae.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortize as am

HALF = 14 * 28


class GaussianNet(nn.Module):
    """A diagonal Gaussian whose loc and scale are networks."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU())
        self.loc = nn.Linear(hidden_dim, out_dim)
        self.log_scale = nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The distribution of a batch (N, in_dim)."""
        hidden = self.hidden(x)
        return dist.Normal(self.loc(hidden), self.log_scale(hidden).exp()).to_event(1)


class ConditionalVAE(nn.Module):
    """Prior, posterior and decoder."""

    def __init__(self, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.prior = GaussianNet(HALF, hidden_dim, latent_dim)
        self.posterior = GaussianNet(2 * HALF, hidden_dim, latent_dim)
        self.decoder = nn.Sequential(nn.Linear(latent_dim + HALF, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, HALF))

    def model(self, top: Tensor, bottom: Tensor) -> None:
        """Complete an image: p(z | top) p(bottom | z, top)."""
        pyro.module("prior", self.prior)
        pyro.module("decoder", self.decoder)
        with pyro.plate("digits", len(top)):
            z = pyro.sample("z", self.prior(top))
            logits = self.decoder(torch.cat([z, top], dim=1))
            pyro.sample("bottom", dist.Bernoulli(logits=logits).to_event(1), obs=bottom)

    def guide(self, top: Tensor, bottom: Tensor) -> None:
        """The amortized posterior: q(z | top, bottom)."""
        pyro.module("posterior", self.posterior)
        with pyro.plate("digits", len(top)):
            pyro.sample("z", self.posterior(torch.cat([top, bottom], dim=1)))


def data() -> dict[str, np.ndarray]:
    """Upper and lower halves, (10000, 392) each, of the first 10,000 digits."""
    x = am.data.load("binarized-mnist").x_train[:10000]
    return {"top": x[:, :HALF], "bottom": x[:, HALF:]}


def program(latent_dim: int = 16, hidden_dim: int = 200) -> am.Program:
    """The model and its guide, with fresh weights."""
    vae = ConditionalVAE(latent_dim, hidden_dim)
    return am.Program(vae.model, vae.guide)
