"""The log joint against oracles that share none of our handlers: Pyro's own, and densities written in torch alone."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import transforms

import amortize as am
from tests.mixtures import MIXTURES, REAL

NUM = 5


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=REAL)


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=REAL)


def supports(x):
    """One latent of each fixed support, all of them seen together."""
    with pyro.plate("data", x.shape[0]):
        real = pyro.sample("real", dist.StudentT(4.0, torch.tensor(0.2, dtype=REAL), 1.0))
        positive = pyro.sample("positive", dist.Gamma(2.0 * ones(), 1.5))
        unit = pyro.sample("unit", dist.Beta(2.0 * ones(), 3.0))
        simplex = pyro.sample("simplex", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0], dtype=REAL)))
        bounded = pyro.sample("bounded", dist.Uniform(-2.0 * ones(), 3.0))
        vector = pyro.sample("vector", dist.LogNormal(0.3 * ones(2), 0.5).to_event(1))
        corr = pyro.sample("corr", dist.LKJCholesky(3, 1.7 * ones()))
        loc = real + positive * unit + simplex[..., 0] + bounded + vector.sum(-1) + corr[..., 2, 0]
        pyro.sample("x", dist.Normal(loc, 0.6), obs=x)


def pixels(x):
    with pyro.plate("pixels", 3, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
        z = pyro.sample("z", dist.Gamma(2.0 * ones(), 1.0))
        y = pyro.sample("y", dist.Normal(z, 0.5))
        pyro.sample("x", dist.Normal(y * z, 0.6), obs=x.T)


def masked(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Beta(2.0 * ones(), 2.0))
        with poutine.mask(mask=x > 0):
            pyro.sample("x", dist.Normal(z, 0.6), obs=x)
        pyro.factor("penalty", -0.3 * z * x.abs())


@pytest.mark.parametrize(("model", "shape"), [(supports, (NUM,)), (pixels, (NUM, 3)), (masked, (NUM,))])
def test_the_sum_over_datapoints_is_pyros_potential(model, shape):
    x = draws(*shape)
    program = am.Program(model)
    data = program.prepare(x)
    log_joint = program.log_joint(data)
    u = draws(NUM, log_joint.dim, seed=1).requires_grad_()
    _, potential, _, _ = initialize_model(model, (x,))
    raw = {}
    for name, site in log_joint.structure.sites.items():
        part = u[:, site.start : site.stop].reshape(NUM, *site.unconstrained_shape)
        raw[name] = part.movedim(0, site.front)
    ours, theirs = log_joint.terms(data, u=u).joint.sum(), -potential(raw)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(value, u)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in MIXTURES if name not in ("bits", "ragged")])
def test_the_sum_over_datapoints_is_pyros_enumerated_elbo(name):
    """With the continuous latents given and no guide, it is the log joint with the discrete ones summed out.

    Pyro enumerates no bits in one event, and takes the log density of a masked latent for 0.
    """
    mixture = MIXTURES[name]()
    program = am.Program(mixture.model)
    data = program.prepare(mixture.data)
    log_joint = program.log_joint(data)
    with torch.no_grad():
        u = draws(len(mixture.data[0]), mixture.dim, seed=2)
        terms = log_joint.terms(data, u=u)
    given = poutine.condition(mixture.model, {name: terms.values[name] for name in log_joint.structure.continuous})
    elbo = TraceEnum_ELBO(max_plate_nesting=log_joint.structure.batch_ndim)
    theirs = -elbo.loss(config_enumerate(given, "parallel"), lambda *_: None, *mixture.data)
    assert float((terms.joint - terms.jacobian).sum()) == pytest.approx(theirs, rel=1e-10)


# Densities of a latent over u, in torch alone: density in its own space plus the log-Jacobian


def log_normal_over_u(u):
    return -0.5 * ((u - 0.3) / 0.5) ** 2 - math.log(0.5 * math.sqrt(2 * math.pi))  # of u = log z itself


def gamma_over_u(u):
    return 2.0 * math.log(1.5) - math.lgamma(2.0) + 2.0 * u - 1.5 * u.exp()


def beta_over_u(u):
    constant = math.lgamma(5.0) - math.lgamma(2.0) - math.lgamma(3.0)
    return constant + 2.0 * torch.nn.functional.logsigmoid(u) + 3.0 * torch.nn.functional.logsigmoid(-u)


def dirichlet_over_u(u):
    """Stick breaking, each stick a logistic of u less the log of how many are left: its own recursion."""
    alpha, left, total = torch.tensor([1.0, 2.0, 3.0], dtype=REAL), torch.ones(len(u), dtype=REAL), 0.0
    parts = []
    for i in range(2):
        share = torch.sigmoid(u[:, i] - math.log(2 - i))
        total = total + (left * share * (1 - share)).log()
        parts.append(left * share)
        left = left * (1 - share)
    z = torch.stack([*parts, left], -1)
    return total + torch.lgamma(alpha.sum()) - torch.lgamma(alpha).sum() + ((alpha - 1) * z.log()).sum(-1)


def lkj_over_u(u):
    """One correlation r = tanh(u), of density proportional to (1 - r^2)^(eta - 1)."""
    eta, r = 1.7, torch.tanh(u[:, 0])
    constant = math.lgamma(eta + 0.5) - math.lgamma(eta) - 0.5 * math.log(math.pi)
    return constant + (eta - 1) * torch.log1p(-(r**2)) + torch.log1p(-(r**2))


BY_HAND = {
    "log-normal": (lambda: dist.LogNormal(0.3 * ones(), 0.5), log_normal_over_u),
    "gamma": (lambda: dist.Gamma(2.0 * ones(), 1.5), gamma_over_u),
    "beta": (lambda: dist.Beta(2.0 * ones(), 3.0), beta_over_u),
    "dirichlet": (lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0], dtype=REAL)), dirichlet_over_u),
    "lkj": (lambda: dist.LKJCholesky(2, 1.7 * ones()), lkj_over_u),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_prior_over_u_is_the_one_by_hand(name):
    make, by_hand = BY_HAND[name]

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", make())
            pyro.sample("x", dist.Normal(z.reshape(x.shape[0], -1).sum(-1), 1.0), obs=x)

    program = am.Program(model)
    data = program.prepare(draws(NUM))
    log_joint = program.log_joint(data)
    u = draws(NUM, log_joint.dim, seed=3).requires_grad_()
    ours = log_joint.terms(data, u=u).prior
    theirs = by_hand(u).reshape(NUM)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), u)[0] for value in (ours, theirs)))


def test_an_ordered_latent_has_the_density_by_hand():
    """Exponential gaps, as cut points are modelled: ordered by a transform of the user's."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            base = dist.Normal(torch.zeros(3, dtype=REAL), 1.0).to_event(1)
            cuts = pyro.sample(
                "cuts",
                dist.TransformedDistribution(
                    base, [transforms.AffineTransform(0.0, 2.0), dist.transforms.OrderedTransform()]
                ),
            )
            pyro.sample("x", dist.Normal(cuts[:, 2] - cuts[:, 0], 1.0), obs=x)

    program = am.Program(model)
    x = draws(NUM)
    data = program.prepare(x)
    u = draws(NUM, 3, seed=4)
    terms = program.log_joint(data).terms(data, u=u)
    gaps = u[:, 1:].exp().sum(-1)
    prior = dist.Normal(0.0, 2.0).log_prob(u).sum(-1)
    torch.testing.assert_close(terms.prior, prior)
    torch.testing.assert_close(terms.likelihood, -0.5 * (x - gaps) ** 2 - 0.5 * math.log(2 * math.pi))
