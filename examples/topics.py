"""Topics of news: a logistic-normal topic model with an amortized guide.

    z ~ Normal(0, I),    theta = softmax(z),    words ~ Multinomial(n, softmax(topics theta)),

ProdLDA (Srivastava and Sutton, Autoencoding variational inference for topic models, 2017): a product of experts, in
which topics are not normalised before they are mixed. Each document has its own number of words n, which is given.

The data are the 1,000 most frequent of the 3,072 words of 20 newsgroups, in documents that have at least 10 of them.

    amortize check examples/topics.py:program --data examples/topics.py:data
    amortize study examples/topics.toml
"""

import numpy as np
import pyro
import pyro.distributions as dist
from torch import Tensor, nn

import amortize as am


class ProdLDA(nn.Module):
    """Topics, and an encoder with dropout."""

    def __init__(self, num_words: int, num_topics: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_topics = num_topics
        self.topics = nn.Linear(num_topics, num_words)
        self.encoder = nn.Sequential(
            nn.Linear(num_words, hidden_dim),
            nn.Softplus(),
            nn.Dropout(0.2),
            nn.Linear(hidden_dim, 2 * num_topics),
        )

    def model(self, x: Tensor) -> None:
        """Draw documents: counts x (N, words)."""
        pyro.module("topics", self.topics)
        total_count = int(x.sum(-1).max())
        with pyro.plate("documents", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.num_topics), x.new_ones(self.num_topics)).to_event(1))
            logits = self.topics(z.softmax(-1))
            pyro.sample("words", dist.Multinomial(total_count, logits=logits), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortized posterior: q(z | words)."""
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder((1 + x).log()).chunk(2, dim=-1)
        with pyro.plate("documents", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data(num_words: int = 1000) -> np.ndarray:
    """Counts (N, num_words) of the training documents."""
    x = am.data.load("newsgroups20").x_train
    frequent = np.sort(np.argsort(-x.sum(0), kind="stable")[:num_words])
    x = x[:, frequent]
    return x[x.sum(1) >= 10]


def program(num_words: int = 1000, num_topics: int = 10, hidden_dim: int = 100) -> am.Program:
    """The model and its guide, with fresh weights."""
    network = ProdLDA(num_words, num_topics, hidden_dim)
    return am.Program(network.model, network.guide)
