"""A mixture of factor analysers: clusters of wines, each with two latent factors.

    k ~ Categorical(weights),    z ~ Normal(0, I),    x | k, z ~ Normal(loc_k + factors_k z, noise),

as in Ghahramani and Hinton, The EM algorithm for mixtures of factor analyzers, 1996. The cluster k is a discrete
latent, which training and evidence sum out; the guide leaves it out, and its q(z | x) is one Gaussian, where the
posterior is a mixture. Given k everything is Gaussian, so that log p(x) is known: `Mixture.exact` checks the rest.
Training starts from the centres that k-means finds; from random ones it stops at other clusterings.

The data are 178 wines of three cultivars, 13 measurements each, standardised.

    amortize check examples/mixture.py:program --data examples/mixture.py:data
    amortize study examples/mixture.toml
"""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.distributions import constraints

import amortize as am


class Mixture(PyroModule):
    """K clusters, each with its own loc and factors; called with measurements, it is the model."""

    def __init__(self, centres: Tensor, latent_dim: int) -> None:
        super().__init__()
        num_clusters, data_dim = centres.shape
        self.weights = PyroParam(torch.ones(num_clusters) / num_clusters, constraint=constraints.simplex)
        self.loc = PyroParam(centres)
        self.factors = PyroParam(0.3 * torch.randn(num_clusters, data_dim, latent_dim))
        self.noise = PyroParam(0.7 * torch.ones(data_dim), constraint=constraints.greater_than(0.05))

    def forward(self, x: Tensor) -> None:
        """Draw clusters, factors and measurements x (N, 13)."""
        latent_dim = self.factors.shape[-1]
        with pyro.plate("wines", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(self.weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent_dim), x.new_ones(latent_dim)).to_event(1))
            loc = self.loc[k] + (self.factors[k] @ z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=x)

    @torch.no_grad()
    def exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x) (N,) in nats and p(k | x) (N, K), with the factors integrated out by hand."""
        clusters = dist.LowRankMultivariateNormal(self.loc, self.factors, self.noise.square().expand_as(self.loc))
        log_joint = clusters.log_prob(x.unsqueeze(1)) + self.weights.log()
        return log_joint.logsumexp(1), log_joint.softmax(1)


class Guide(nn.Module):
    """The amortized posterior of the factors, q(z | x)."""

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(data_dim, 32), nn.Tanh(), nn.Linear(32, 2 * latent_dim))

    def forward(self, x: Tensor) -> None:
        """Draw factors."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        with pyro.plate("wines", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def data() -> am.data.Dataset:
    """Wines with columns of mean 0 and standard deviation 1; their cultivars are labels."""
    wine = am.data.load("wine")
    mean, scale = wine.x_train.mean(0), wine.x_train.std(0)
    return replace(
        wine,
        x_train=(wine.x_train - mean) / scale,
        x_test=(wine.x_test - mean) / scale,
        protocol=wine.protocol.replace("not standardised", "standardised by the training part"),
    )


def program(num_clusters: int = 3, latent_dim: int = 2) -> am.Program:
    """The model and its guide, from centres of the training part."""
    means = KMeans(num_clusters, n_init=10, random_state=0).fit(data().x_train)
    centres = torch.as_tensor(means.cluster_centers_, dtype=torch.float32)
    return am.Program(Mixture(centres, latent_dim), Guide(centres.shape[1], latent_dim))
