"""A deep Markov model of ragged sequences: handwritten digits, read row by row.

    z_1 ~ Normal(0, I),    z_t | z_(t-1) ~ Normal(loc(z_(t-1)), scale(z_(t-1))),    x_t | z_t ~ Bernoulli(emitter(z_t)),

for t up to the length of each sequence (Krishnan, Shalit and Sontag, Structured inference networks for nonlinear state
space models, 2017). What lies behind the end is masked, in model and guide. The guide reads each sequence backwards
with a GRU and draws z_t given z_(t-1) and the rows from t on.

The data are 2,000 digits of binarised MNIST, pooled to 14 x 14 pixels: a sequence is the rows from the first to the
last that has ink, 8 to 14 of them. They make a real test of raggedness, not a benchmark that others report.

    amortize check examples/deep_markov_model.py:program --data examples/deep_markov_model.py:data
    amortize study examples/deep_markov_model.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

import amortize as am


class GaussianNet(nn.Module):
    """Loc and scale of a diagonal Gaussian given features."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.Tanh(), nn.Linear(hidden_dim, 2 * out_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors (N, out_dim) for a batch (N, in_dim)."""
        loc, log_scale = self.net(x).chunk(2, dim=-1)
        return loc, log_scale.exp()


class DeepMarkovModel(nn.Module):
    """Transition and emission; a GRU and a combiner for the guide."""

    def __init__(self, data_dim: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.transition = GaussianNet(latent_dim, hidden_dim, latent_dim)
        self.emitter = nn.Sequential(nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, data_dim))
        self.gru = nn.GRU(data_dim, hidden_dim, batch_first=True)
        self.combiner = GaussianNet(latent_dim + hidden_dim, hidden_dim, latent_dim)

    def model(self, x: Tensor, length: Tensor) -> None:
        """Draw sequences x (N, T, X), of which the first ``length`` (N,) steps count."""
        pyro.module("transition", self.transition)
        pyro.module("emitter", self.emitter)
        loc, scale = x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim)
        with pyro.plate("sequences", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, scale).to_event(1))
                    pyro.sample(f"x_{t + 1}", dist.Bernoulli(logits=self.emitter(z)).to_event(1), obs=x[:, t])
                loc, scale = self.transition(z)

    def guide(self, x: Tensor, length: Tensor) -> None:
        """q(z_t | z_(t-1), x_t, ..., x_length), the product over t."""
        pyro.module("gru", self.gru)
        pyro.module("combiner", self.combiner)
        inside = (torch.arange(x.shape[1], device=x.device) < length.unsqueeze(1)).unsqueeze(2)
        # padding as zeros, so a GRU that runs backwards over all of it knows the end when it reaches the ink
        hidden = self.gru((x * inside).flip(1))[0].flip(1)
        z = x.new_zeros(x.shape[0], self.latent_dim)
        with pyro.plate("sequences", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = self.combiner(torch.cat([z, hidden[:, t]], dim=1))
                with poutine.mask(mask=t < length):
                    z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, scale).to_event(1))


def data(num_sequences: int = 2000) -> dict[str, np.ndarray]:
    """Sequences (N, 14, 14), padded with zeros, and their lengths (N,)."""
    images = am.data.load("binarized-mnist").x_train[:num_sequences]
    rows = images.reshape(-1, 14, 2, 14, 2).max(axis=(2, 4))
    ink = rows.any(axis=2)
    first, length = ink.argmax(1), ink.shape[1] - ink[:, ::-1].argmax(1) - ink.argmax(1)
    step = np.arange(14)
    shifted = np.take_along_axis(rows, np.minimum(first[:, None] + step, 13)[:, :, None], axis=1)
    return {"x": shifted * (step < length[:, None])[:, :, None], "length": length}


def program(latent_dim: int = 4, hidden_dim: int = 64) -> am.Program:
    """The model and its guide, with fresh weights."""
    network = DeepMarkovModel(14, latent_dim, hidden_dim)
    return am.Program(network.model, network.guide)
