"""Latents with supports of every kind, priors that depend on data or other latents, flow priors."""

from __future__ import annotations

import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints, transforms
from torch import nn

from tests.cases.case import NUM, Case, built, draws

__all__ = ["SUPPORTS"]


def positive() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(rate, scale), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("scale", dist.Gamma(2.0, 2.0))
            pyro.sample("rate", dist.LogNormal(0.1 * x, 0.5))

    return Case(model, draws(NUM), guide)


def bounded() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            share = pyro.sample("share", dist.Beta(2.0, 3.0))
            shift = pyro.sample("shift", dist.Uniform(-1.0, 3.0))
            pyro.sample("x", dist.Normal(shift, share), obs=x)

    return Case(model, draws(NUM))


def half_line_from_a_bound() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Pareto(1.5, 3.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM) + 2)


def simplex() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])))
            pyro.sample("x", dist.Multinomial(9, probs=shares), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5]) + x))

    return Case(model, torch.tensor([[9.0, 0, 0], [3, 3, 3], [1, 8, 0], [0, 2, 7], [4, 4, 1]]), guide)


def simplex_in_logistic_normal_form() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            shares = pyro.sample("shares", dist.TransformedDistribution(normal, [transforms.StickBreakingTransform()]))
            pyro.sample("x", dist.Categorical(probs=shares), obs=x)

    return Case(model, torch.tensor([0, 2, 1, 1, 0]))


def ordered() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
            cuts = pyro.sample("cuts", dist.TransformedDistribution(normal, [transforms.OrderedTransform()]))
            pyro.sample("x", dist.OrderedLogistic(torch.zeros(x.shape[0]), cuts), obs=x)

    return Case(model, torch.tensor([0, 3, 1, 2, 0]))


def correlation_cholesky() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=x)

    return Case(model, draws(NUM, 3))


def correlation_matrix() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            factor = dist.LKJCholesky(2, 2.0)
            matrix = pyro.sample(
                "matrix", dist.TransformedDistribution(factor, [transforms.CorrMatrixCholeskyTransform().inv])
            )
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=matrix), obs=x)

    return Case(model, draws(NUM, 2))


def positive_definite() -> Case:
    def model(x):
        eye = torch.eye(2, dtype=x.dtype)
        with pyro.plate("data", x.shape[0]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Singular sample")  # torch says so of any draw
            matrix = pyro.sample("matrix", dist.Wishart(torch.tensor(4.0, dtype=x.dtype), covariance_matrix=eye))
            pyro.sample("x", dist.MultivariateNormal(torch.zeros_like(x), precision_matrix=matrix), obs=x)

    return Case(model, draws(NUM, 2, dtype=torch.float64))


def support_of_another_latent() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            s = pyro.sample("s", dist.Exponential(1.0))
            z = pyro.sample("z", dist.Uniform(-s, s + 1))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            s = pyro.sample("s", dist.LogNormal(0.3 * x, 0.5))
            pyro.sample("z", dist.Uniform(-s, s + 1))

    return Case(model, draws(NUM), guide)


def support_of_the_data() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Uniform(x - 1, x + 2))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM))


def prior_of_the_data() -> Case:
    """A conditional prior, as in a CVAE."""
    prior = built(lambda: nn.Linear(3, 4))
    decoder = built(lambda: nn.Linear(5, 2), 1)

    def model(c, y):
        pyro.module("prior", prior)
        pyro.module("decoder", decoder)
        with pyro.plate("data", c.shape[0]):
            loc, log_scale = prior(c).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            logits = decoder(torch.cat([z, c], -1))
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    return Case(model, (draws(NUM, 3), (draws(NUM, 2, seed=1) > 0).float()))


def flow_prior() -> Case:
    def model(x):
        flow = [transforms.AffineTransform(1.0, 2.0), transforms.TanhTransform(), transforms.AffineTransform(0.0, 3.0)]
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, flow))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    return Case(model, draws(NUM))


def learned_coupling_prior() -> Case:
    coupling = built(lambda: transforms.affine_coupling(4, hidden_dims=[8]))
    decoder = built(lambda: nn.Linear(4, 3))

    def model(x):
        pyro.module("coupling", coupling)
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [coupling]))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 3))


def learned_spline_prior() -> Case:
    spline = built(lambda: transforms.spline(2, count_bins=4))

    def model(x):
        pyro.module("spline", spline)
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [spline]))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    return Case(model, draws(NUM, 2))


def mixture_prior() -> Case:
    def model(x):
        logits = pyro.param("logits", torch.zeros(3))
        locs = pyro.param("locs", torch.tensor([-2.0, 0.0, 2.0]))
        with pyro.plate("data", x.shape[0]):
            parts = dist.Normal(locs, 0.5)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), parts))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    return Case(model, draws(NUM))


def torch_distributions() -> Case:
    """Torch's own objects, which Pyro takes at observed sites and inside its own distributions."""
    from torch import distributions as torch_dist

    def model(x):
        with pyro.plate("data", x.shape[0]):
            base = torch_dist.Normal(torch.zeros(x.shape[0]), 1.0)
            z = pyro.sample("z", dist.TransformedDistribution(base, [torch_dist.AffineTransform(1.0, 2.0)]))
            shape = torch_dist.Independent(torch_dist.Gumbel(z.unsqueeze(-1).expand(x.shape), 0.5), 1)
            pyro.sample("x", shape, obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.TransformedDistribution(torch_dist.Normal(x.mean(-1), 0.5), []))

    return Case(model, draws(NUM, 2), guide)


def matrix_normal_latent() -> Case:
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
            tril = pyro.param("tril", torch.eye(2), constraint=constraints.lower_cholesky)
            pyro.sample("x", dist.MultivariateNormal(z.sum(-1), scale_tril=tril), obs=x)

    return Case(model, draws(NUM, 2))


SUPPORTS = {
    "positive": positive,
    "bounded": bounded,
    "half-line from a bound": half_line_from_a_bound,
    "simplex": simplex,
    "simplex by stick breaking": simplex_in_logistic_normal_form,
    "ordered": ordered,
    "correlation Cholesky factor": correlation_cholesky,
    "correlation matrix": correlation_matrix,
    "positive definite": positive_definite,
    "support of another latent": support_of_another_latent,
    "support of the data": support_of_the_data,
    "prior of the data": prior_of_the_data,
    "flow prior": flow_prior,
    "learned coupling prior": learned_coupling_prior,
    "learned spline prior": learned_spline_prior,
    "mixture prior": mixture_prior,
    "torch distributions": torch_distributions,
    "matrix latent": matrix_normal_latent,
}
