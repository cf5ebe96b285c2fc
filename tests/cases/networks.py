"""Parameters and networks: pyro.param, pyro.module, PyroModule, BatchNorm, dropout, convolutions."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

from tests.cases.case import NUM, Case, built, draws

__all__ = ["NETWORKS"]


class VAE(nn.Module):
    """A VAE as Pyro's tutorial has it: model and guide are methods."""

    def __init__(self, data_dim: int = 6, latent_dim: int = 2, hidden: int = 8) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = nn.Sequential(nn.Linear(latent_dim, hidden), nn.Softplus(), nn.Linear(hidden, data_dim))
        self.encoder = nn.Sequential(nn.Linear(data_dim, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent_dim))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros(x.shape[0], self.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)
            return z

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def bits(*shape: int) -> torch.Tensor:
    return (draws(*shape) > 0).float()


def vae() -> Case:
    network = built(VAE)
    return Case(network.model, bits(NUM, 6), network.guide)


def parameters() -> Case:
    def model(x):
        loc = pyro.param("loc", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, scale))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 0.5).to_event(1), obs=x)

    def guide(x):
        spread = pyro.param("spread", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x.mean(-1), spread))

    return Case(model, draws(NUM, 3), guide)


class Regressed(PyroModule):
    """A PyroModule with a constrained parameter and a latent made where it is read, inside the plate."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 3)
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)
        self.z = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(self.linear(self.z), self.scale).to_event(1), obs=x)


def pyro_module_with_local_sample() -> Case:
    return Case(built(Regressed), draws(NUM, 3))


class BayesianLayer(PyroModule):
    """Weights that are random variables, shared by all datapoints: given by ``condition``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](2, 3)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([3, 2]).to_event(2))

    def forward(self, x):
        weight = self.layer.weight
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T + self.layer.bias, 0.5).to_event(1), obs=x)


def global_pyro_sample_given() -> Case:
    return Case(built(BayesianLayer), draws(NUM, 3), options={"condition": {"layer.weight": draws(3, 2, seed=1)}})


def parameter_made_on_the_way() -> Case:
    """A parameter whose size is only known when data come."""

    def model(x):
        weights = pyro.param("weights", lambda: torch.full((x.shape[-1],), 0.3))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) * weights, 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 4))


def lazy_network() -> Case:
    network = nn.LazyLinear(2)

    def model(x):
        loc = network(x)
        pyro.module("network", network)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.5).expand(x.shape).to_event(1), obs=x)

    return Case(model, draws(NUM, 4))


def batch_norm_left_in_train_mode() -> Case:
    def make():
        network = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
        network(draws(16, 2, seed=2))
        return network

    decoder = built(make)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).expand([x.shape[0]]))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 3))


def dropout() -> Case:
    decoder = built(lambda: nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 3)))
    encoder = built(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)), 1)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).expand([x.shape[0]]))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(encoder(x), 0.5).to_event(1))

    return Case(model, draws(NUM, 3), guide)


class ConvolutionalVAE(nn.Module):
    """Transposed convolutions with ``view`` on 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4 * 2 * 2)
        self.up = nn.Sequential(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(3, 1, 4, 2, 1))
        self.down = nn.Sequential(nn.Conv2d(1, 3, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 6))

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.size(0)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.size(0), 3), 1.0).to_event(1))
            logits = self.up(self.first(z).view(-1, 4, 2, 2))
            pyro.sample("x", dist.Bernoulli(logits=logits.view(x.size(0), -1)).to_event(1), obs=x.view(x.size(0), -1))

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.size(0)):
            loc, log_scale = self.down(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def convolutions() -> Case:
    network = built(ConvolutionalVAE)
    return Case(network.model, bits(NUM, 1, 8, 8), network.guide)


def counts_with_a_library_size() -> Case:
    """Counts of genes: a log-normal size, softmax rates, zero inflation; a shared dispersion."""
    decoder = built(lambda: nn.Linear(2, 8))

    def model(x):
        pyro.module("decoder", decoder)
        dispersion = pyro.param("dispersion", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("cells", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, x.new_ones(2)).to_event(1))
            size = pyro.sample("size", dist.LogNormal(2.0, x.new_ones(1)).to_event(1))
            gate, rate = decoder(z).reshape((*z.shape[:-1], 2, -1)).unbind(-2)
            logits = (size * rate.softmax(-1) + 1e-6).log() - (dispersion + 1e-6).log()
            counts = dist.ZeroInflatedNegativeBinomial(dispersion, logits=logits, gate_logits=gate)
            pyro.sample("x", counts.to_event(1), obs=x)

    return Case(model, draws(NUM, 4).square().mul(3).round())


def same_parameter_name_in_model_and_guide() -> Case:
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x - loc, 0.5))

    return Case(model, draws(NUM), guide)


NETWORKS = {
    "VAE": vae,
    "parameters with constraints": parameters,
    "PyroModule with a local PyroSample": pyro_module_with_local_sample,
    "global PyroSample given": global_pyro_sample_given,
    "parameter made on the way": parameter_made_on_the_way,
    "lazy network": lazy_network,
    "BatchNorm left in train mode": batch_norm_left_in_train_mode,
    "dropout": dropout,
    "convolutions": convolutions,
    "counts with a library size": counts_with_a_library_size,
    "parameter shared by model and guide": same_parameter_name_in_model_and_guide,
}
