"""Digits of ten kinds without labels, and a relaxed guide: the kind is a one-hot latent, the hand is continuous.

    k_n ~ OneHot(1/10, ..., 1/10),    z_n ~ N(0, I_4),    x_n | k_n, z_n ~ Bernoulli(decoder(k_n, z_n)),

and q(k_n | x_n) q(z_n | x_n, k_n). The guide draws the kind from `am.RelaxedOneHotCategorical`, at a temperature of its
own. Trained by "concrete-elbo", the draw is soft: a point inside the simplex, with a gradient, for the rest of the
guide and for the model. Everywhere else, in `am.evidence` and in a study, the guide is its discrete twin: the kind is
summed out, and what is reported is the evidence of the discrete model, not that of its relaxation.

The data are scikit-learn's digits, 8 x 8 binary pixels.

    amortize check examples/relaxed_clusters.py:program --data examples/relaxed_clusters.py:data
    amortize study examples/relaxed_clusters.toml
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import amortize as am
from amortize.data import Dataset

KINDS, HAND, PIXELS = 10, 4, 64
TEMPERATURE = 0.5


class Clusters(nn.Module):
    """Model and guide; called with digits x (N, 64), `model` draws them and `guide` infers their kind and hand."""

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.decoder = network(KINDS + HAND, hidden, PIXELS)
        self.kind = network(PIXELS, hidden, KINDS)
        self.hand = network(PIXELS + KINDS, hidden, 2 * HAND)

    def model(self, x: Tensor) -> None:
        """Kind (N, 10), hand (N, 4), digit (N, 64)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("digits", x.shape[0]):
            k = pyro.sample("k", dist.OneHotCategorical(logits=x.new_zeros(KINDS)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(HAND), 1.0).to_event(1))
            logits = self.decoder(torch.cat([k, z], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The kind, relaxed, then the hand that goes with it."""
        pyro.module("kind", self.kind)
        pyro.module("hand", self.hand)
        with pyro.plate("digits", x.shape[0]):
            k = pyro.sample("k", am.RelaxedOneHotCategorical(TEMPERATURE, logits=self.kind(x)))
            loc, log_scale = self.hand(torch.cat([x, k], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def network(num_inputs: int, hidden: int, num_outputs: int) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(num_inputs, hidden), nn.Tanh(), nn.Linear(hidden, num_outputs))


def data() -> Dataset:
    """Digits (N, 64) of 0 and 1, with labels that nothing is trained on."""
    return am.data.load("digits")


def program() -> am.Program:
    """The model and its guide, with fresh parameters."""
    clusters = Clusters()
    return am.Program(clusters.model, clusters.guide)
