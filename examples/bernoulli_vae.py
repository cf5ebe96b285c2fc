"""A variational autoencoder with Bernoulli pixels.

    z ~ Normal(0, I),    x | z ~ Bernoulli(decoder(z)),    q(z | x) = Normal(loc(x), scale(x)),

as in Kingma and Welling, Auto-encoding variational Bayes, 2014. The data are MNIST as Salakhutdinov and Murray
binarised it (2008), which most published log-likelihoods are of; here 10,000 of its 50,000 digits train, in minutes.

    amortize check examples/bernoulli_vae.py:program --data examples/bernoulli_vae.py:data
    amortize study examples/bernoulli_vae.toml
"""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

import amortize as am


class VAE(nn.Module):
    """Encoder and decoder with one hidden layer each."""

    def __init__(self, data_dim: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Sequential(
            nn.Linear(data_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, data_dim))

    def model(self, x: Tensor) -> None:
        """Draw images: p(z) p(x | z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior: q(z | x)."""
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        with pyro.plate("images", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data() -> am.data.Dataset:
    """Binarised MNIST, 784 pixels of 0 and 1."""
    return am.data.load("binarized-mnist")


def program(data_dim: int = 784, latent_dim: int = 20, hidden_dim: int = 200) -> am.Program:
    """The model and its guide, with fresh weights."""
    vae = VAE(data_dim, latent_dim, hidden_dim)
    return am.Program(vae.model, vae.guide)
