"""A semi-supervised variational autoencoder: every digit has a class, few of them come with a label.

    y ~ OneHotCategorical(1 / 10),    z ~ Normal(0, I),    x | y, z ~ Bernoulli(decoder(z, y)),
    label | y ~ Categorical((1 - e) y + e / 10), where there is a label,

the model M2 of Kingma et al., Semi-supervised learning with deep generative models, 2014, with annotators who are wrong
now and then, e = 1 % (M2 is e = 0). A label of -1 is missing, and its term is masked. The class y is a discrete latent:
training sums over it (fit.objective is "enum-elbo"), and so does the evidence log p(x, label). The guide draws y first:
q(y | x, label) is classifier(x) times p(label | y), normalised.

The data are scikit-learn's 8 x 8 digits; one in ten keeps its label.

    amortize check examples/semi_supervised_vae.py:program --data examples/semi_supervised_vae.py:data
    amortize study examples/semi_supervised_vae.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

import amortize as am

NUM_CLASSES = 10
ERROR = 0.01


def label_probs(y: Tensor) -> Tensor:
    """What annotators say, p(label | y), of one-hot classes (..., 10)."""
    return (1 - ERROR) * y + ERROR / NUM_CLASSES


def cat(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate features; batches may differ, since enumeration puts the classes into a dimension of their own."""
    batch = torch.broadcast_shapes(first.shape[:-1], second.shape[:-1])
    return torch.cat([first.expand(*batch, -1), second.expand(*batch, -1)], dim=-1)


def network(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, out_dim))


class SemiSupervisedVAE(nn.Module):
    """M2: a classifier, an encoder and a decoder."""

    def __init__(self, data_dim: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.classifier = network(data_dim, hidden_dim, NUM_CLASSES)
        self.encoder = network(data_dim + NUM_CLASSES, hidden_dim, 2 * latent_dim)
        self.decoder = network(latent_dim + NUM_CLASSES, hidden_dim, data_dim)

    def model(self, x: Tensor, label: Tensor) -> None:
        """Draw a class, an image of it, and what an annotator says of it."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("digits", x.shape[0]):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(NUM_CLASSES) / NUM_CLASSES))
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), x.new_ones(self.latent_dim)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(cat(z, y))).to_event(1), obs=x)
            with poutine.mask(mask=label >= 0):
                pyro.sample("label", dist.Categorical(label_probs(y)), obs=label.clamp(min=0))

    def guide(self, x: Tensor, label: Tensor) -> None:
        """q(y | x, label) q(z | x, y)."""
        pyro.module("classifier", self.classifier)
        pyro.module("encoder", self.encoder)
        with pyro.plate("digits", x.shape[0]):
            said = label_probs(torch.eye(NUM_CLASSES, dtype=x.dtype))[:, label.clamp(min=0)].T.log()
            logits = self.classifier(x) + torch.where((label >= 0).unsqueeze(-1), said, 0.0)
            y = pyro.sample("y", dist.OneHotCategorical(logits=logits))
            loc, log_scale = self.encoder(cat(x, y)).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data() -> dict[str, np.ndarray]:
    """Digits (1797, 64) of 0 and 1, and labels (1797,) of which nine in ten are -1."""
    digits = am.data.load("digits")
    x = np.concatenate([digits.x_train, digits.x_test])
    label = np.concatenate([digits.y_train, digits.y_test])
    has_label = np.arange(len(label)) % 10 == 0  # their order is random already
    return {"x": x, "label": np.where(has_label, label, -1)}


def program(latent_dim: int = 8, hidden_dim: int = 64) -> am.Program:
    """The model and its guide, with fresh weights."""
    vae = SemiSupervisedVAE(64, latent_dim, hidden_dim)
    return am.Program(vae.model, vae.guide)
