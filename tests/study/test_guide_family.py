"""The guide's family: told from its distributions in unconstrained coordinates, and not told where it isn't one."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

import amortize as am
from amortize.errors import ContractError
from amortize.program.program import Program
from amortize.study.guide_family import _as_gaussian, guide_family, read_guide_family

X = torch.linspace(-1.0, 1.0, 5)
EYE = torch.eye(2)


def program(prior, *guides) -> Program:
    """One latent site a prior; the guide's distributions are functions of x (N,) and of the sites drawn before."""
    priors = prior if isinstance(prior, list) else [prior]

    def model(x):
        with pyro.plate("data", x.shape[0]):
            total = x.new_zeros(x.shape[0])
            for number, one in enumerate(priors):
                z = pyro.sample(f"z{number}", one)
                total = total + (z if z.dim() == 1 else z.sum(-1))
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(x):
        drawn = []
        with pyro.plate("data", x.shape[0]):
            for number, one in enumerate(guides):
                drawn.append(pyro.sample(f"z{number}", one(x, *drawn)))

    return Program(model, guide)


REAL, REAL2 = dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(2), 1.0).to_event(1)
POSITIVE, UNIT = dist.Gamma(2.0, 1.0), dist.Beta(2.0, 2.0)
SIMPLEX = dist.Dirichlet(torch.ones(3))


def normal(x, *drawn):
    return dist.Normal(x, 0.5)


def normal2(x, *drawn):
    return dist.Normal(torch.stack([x, -x], -1), 0.5).to_event(1)


def pushed(*transforms):
    return lambda x, *drawn: dist.TransformedDistribution(dist.Normal(x, 0.5), list(transforms))


def correlated(x, *drawn):
    return dist.MultivariateNormal(torch.stack([x, x], -1), EYE + 0.5)


T = torch.distributions.transforms
MEAN_FIELD = {
    "normal": program(REAL, normal),
    "event of normals": program(REAL2, normal2),
    "two sites": program([REAL, REAL2], normal, normal2),
    "lognormal for positive": program(POSITIVE, lambda x: dist.LogNormal(x, 0.5)),
    "exp of normal": program(POSITIVE, pushed(T.ExpTransform())),
    "exp of affine": program(POSITIVE, pushed(T.AffineTransform(0.3, 2.0), T.ExpTransform())),
    "affine": program(REAL, pushed(T.AffineTransform(0.3, 2.0))),
    "sigmoid for unit": program(UNIT, pushed(T.SigmoidTransform())),
    "stick breaking for simplex": program(
        SIMPLEX,
        lambda x: dist.TransformedDistribution(normal2(x), [T.StickBreakingTransform()]),
    ),
    "positive and real": program([POSITIVE, REAL], lambda x: dist.LogNormal(x, 0.5), normal),
}
FULL = {
    "multivariate": program(REAL2, correlated),
    "low rank": program(
        REAL2, lambda x: dist.LowRankMultivariateNormal(torch.stack([x, x], -1), torch.ones(2, 1), torch.ones(2))
    ),
    "pushed to the simplex": program(
        SIMPLEX, lambda x: dist.TransformedDistribution(correlated(x), [T.StickBreakingTransform()])
    ),
}
OTHER = {
    "autoregressive": program([REAL, REAL], normal, lambda x, z: dist.Normal(z, 0.5)),
    "scale depends on a site": program([REAL, REAL], normal, lambda x, z: dist.Normal(x, z.exp())),
    "shift depends on a site": program(
        [REAL, REAL],
        normal,
        lambda x, z: dist.TransformedDistribution(dist.Normal(x, 1.0), [T.AffineTransform(z, 1.0)]),
    ),
    "student": program(REAL, lambda x: dist.StudentT(5.0, x, 0.5)),
    "gamma": program(POSITIVE, lambda x: dist.Gamma(2.0, x.exp())),
    "softplus, where u is the log": program(POSITIVE, pushed(T.SoftplusTransform())),
    "flow": program(REAL, pushed(T.TanhTransform(), T.AffineTransform(0.0, 0.5), T.TanhTransform().inv)),
    "two multivariate sites": program([REAL2, REAL2], correlated, correlated),
    "multivariate and normal": program([REAL2, REAL], correlated, normal),
}
CASES = [
    *[(program, "mean-field", name) for name, program in MEAN_FIELD.items()],
    *[(program, "full-covariance", name) for name, program in FULL.items()],
    *[(program, None, name) for name, program in OTHER.items()],
]


@pytest.mark.parametrize(("program", "family"), [case[:2] for case in CASES], ids=[case[2] for case in CASES])
def test_the_family_of_each_guide(program, family):
    assert guide_family(program, X) == family


@pytest.mark.parametrize(
    ("support", "transforms", "gaussian"),
    [
        (constraints.interval(-1.0, 3.0), [T.SigmoidTransform(), T.AffineTransform(-1.0, 4.0)], True),
        (constraints.interval(-1.0, 2.0), [T.SigmoidTransform(), T.AffineTransform(-1.0, 4.0)], False),
        (constraints.greater_than(1.0), [T.ExpTransform(), T.AffineTransform(1.0, 1.0)], True),
        (
            constraints.greater_than(1.0),
            [T.AffineTransform(2.0, 3.0), T.ExpTransform(), T.AffineTransform(1.0, 1.0)],
            True,
        ),
        (constraints.unit_interval, [T.SigmoidTransform(), T.PowerTransform(torch.tensor(2.0))], False),
        (constraints.positive, [], False),
        (constraints.real, [T.ExpTransform()], False),
    ],
)
def test_the_support_of_the_model_s_site_decides_what_u_is(support, transforms, gaussian):
    fn = dist.TransformedDistribution(dist.Normal(X, 0.5), transforms)
    assert (_as_gaussian(fn, support) is not None) == gaussian


def test_a_program_without_a_guide_is_refused():
    alone = program(REAL, normal)
    with pytest.raises((ContractError, ValueError)):
        guide_family(Program(alone.model.function), X)


def test_looking_at_a_guide_leaves_the_generators_alone():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            z = pyro.sample("z", dist.Normal(k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(x, 1.0))

    before = torch.get_rng_state()
    assert guide_family(Program(model, guide), X) == "mean-field"
    assert torch.equal(torch.get_rng_state(), before)


def low_rank(rank: int):
    loc = torch.zeros(4)
    return lambda x: dist.LowRankMultivariateNormal(x.unsqueeze(-1) + loc, torch.ones(4, rank), torch.ones(4))


@pytest.mark.parametrize(("rank", "family"), [(1, "low-rank"), (2, "low-rank"), (3, "full-covariance")])
def test_a_low_rank_that_reaches_every_covariance_is_a_full_one(rank, family):
    found = read_guide_family(program(dist.Normal(torch.zeros(4), 1.0).to_event(1), low_rank(rank)), X)
    assert found == (family, rank if family == "low-rank" else None)


@pytest.mark.parametrize("family", ["mean-field", "low-rank", "full-covariance", "iaf"])
def test_an_automatic_guide_says_what_it_is(family):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(11), 1.0).to_event(1))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1), scale), obs=x)

    guide = am.auto_guide(model, X, family=family, hidden=(4,))
    assert guide.encoder is not None
    found = read_guide_family(Program(model, guide), X)
    assert found.name == (None if family == "iaf" else family)
    assert found.rank == (guide.encoder.rank if family == "low-rank" else None)
