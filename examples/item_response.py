"""A two-parameter item-response model with missing answers: one trait a person, two parameters an item.

    trait_i ~ Normal(0, 1),    x_ij | trait_i ~ Bernoulli(sigmoid(slope_j trait_i + easiness_j)), where j was asked,

the 2PL model of Birnbaum (1968), with items' parameters as `pyro.param`. A missing answer is NaN, which the program is
told to let pass, and its term is masked. One latent dimension a person, so that `exact_log_evidence` gives log p(x_i)
by quadrature.

No test of school children is at hand: the persons are 1,605 adults of the census set a1a, the items its binary
attributes that 2 to 98 % of them have, and one answer in five is hidden at random. Those attributes are categories
(married or never married), so they are not independent given any one trait: expect a model that fits badly, whose
evidence is sound all the same.

    amortize check examples/item_response.py:program --data examples/item_response.py:data
    amortize study examples/item_response.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import amortize as am


class ItemResponse(nn.Module):
    """Items' parameters, and an encoder of the answers and of which there are."""

    def __init__(self, num_items: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.encoder = nn.Sequential(nn.Linear(2 * num_items, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2))

    def model(self, x: Tensor) -> None:
        """Draw traits and answers x (N, items), NaN where there is none."""
        slope = pyro.param("slope", lambda: 0.1 * torch.randn(self.num_items))
        easiness = pyro.param("easiness", lambda: torch.zeros(self.num_items))
        asked = ~torch.isnan(x)
        with pyro.plate("persons", x.shape[0], dim=-2):
            trait = pyro.sample("trait", dist.Normal(0.0, 1.0))
            with pyro.plate("items", self.num_items, dim=-1), poutine.mask(mask=asked):
                pyro.sample("x", dist.Bernoulli(logits=slope * trait + easiness), obs=x.nan_to_num())

    def guide(self, x: Tensor) -> None:
        """The amortized posterior of the trait."""
        pyro.module("encoder", self.encoder)
        asked = ~torch.isnan(x)
        features = torch.cat([torch.where(asked, 2 * x - 1, 0.0), asked.to(x.dtype)], dim=1)
        loc, log_scale = self.encoder(features).chunk(2, dim=1)
        with pyro.plate("persons", x.shape[0], dim=-2):
            pyro.sample("trait", dist.Normal(loc, log_scale.exp()))


def exact_log_evidence(x: Tensor, slope: Tensor, easiness: Tensor) -> Tensor:
    """Log p(x_i) (N,) in nats, by the trapezoidal rule on 2,001 traits from -10 to 10."""
    trait = torch.linspace(-10.0, 10.0, 2001, dtype=x.dtype)
    logits = slope * trait.unsqueeze(1) + easiness  # (2001, items)
    right, wrong = torch.nan_to_num(x), torch.nan_to_num(1 - x)
    log_likelihood = right @ logsigmoid(logits).T + wrong @ logsigmoid(-logits).T
    log_prior = dist.Normal(0.0, 1.0).log_prob(trait)
    return (log_likelihood + log_prior).logsumexp(1) + (trait[1] - trait[0]).log()


def data() -> np.ndarray:
    """Answers (1605, items) of 0, 1 and NaN."""
    persons = am.data.load("a1a")
    x = np.concatenate([persons.x_train, persons.x_test]).astype(np.float32)
    share = x.mean(0)
    x = x[:, (share > 0.02) & (share < 0.98)]
    hidden = np.random.default_rng(0).random(x.shape) < 0.2
    return np.where(hidden, np.float32(np.nan), x)


def program(num_items: int = 68, hidden_dim: int = 64) -> am.Program:
    """The model and its guide, with fresh weights."""
    network = ItemResponse(num_items, hidden_dim)
    return am.Program(network.model, network.guide, allow_nan=True)
