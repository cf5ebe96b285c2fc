"""A whole data set as one datapoint: closed forms, Pyro's own potential, rows against loops, refusals."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

import amortize as am
from amortize.errors import (
    ArgumentError,
    ContractError,
    DiscreteLatentError,
    DynamicStructureError,
    GlobalLatentError,
    GuideMismatchError,
    NoDataPlateError,
    PlateSizeError,
)
from tests.statistics import z_value

F64 = torch.float64
NOISE = 0.8


def generator(seed):
    return torch.Generator().manual_seed(seed)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def regression_data():
    x = torch.randn(8, 3, generator=generator(0), dtype=F64)
    return x, x @ torch.tensor([1.0, -0.5, 0.2], dtype=F64) + NOISE * torch.randn(8, generator=generator(1), dtype=F64)


def regression_truth(x, y):
    cov = x @ x.T + NOISE**2 * torch.eye(len(x), dtype=F64)
    return float(dist.MultivariateNormal(x.new_zeros(len(x)), cov).log_prob(y))


def hierarchy(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def hierarchy_data():
    return torch.tensor([0.3, -1.0, 1.5, 0.7], dtype=F64)


def hierarchy_truth(x):
    return float(dist.MultivariateNormal(x.new_zeros(len(x)), 2 * torch.eye(len(x), dtype=F64) + 1).log_prob(x))


def brownian(y, seen):
    steps = pyro.sample("steps", dist.Normal(y.new_zeros(len(y)), 0.5).to_event(1))
    with pyro.plate("time", len(y)), pyro.poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(steps.cumsum(-1), 0.7), obs=y)


def brownian_data():
    y = torch.tensor([0.1, 0.9, 0.0, 0.0, 1.1, 1.6], dtype=F64)
    return y, torch.tensor([True, True, False, False, True, True])


def brownian_truth(y, seen):
    times = torch.arange(1, len(y) + 1, dtype=F64)
    cov = 0.25 * torch.minimum(times[:, None], times) + 0.49 * torch.eye(len(y), dtype=F64)
    kept = seen.nonzero().flatten()
    return float(dist.MultivariateNormal(y.new_zeros(len(kept)), cov[kept][:, kept]).log_prob(y[kept]))


EXACT = {
    "regression": (regression, regression_data(), regression_truth),
    "hierarchy": (hierarchy, (hierarchy_data(),), hierarchy_truth),
    "brownian": (brownian, brownian_data(), brownian_truth),
}


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", 8):
        effect = pyro.sample("effect", dist.Normal(y.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, sigma), obs=y)


def school_data():
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=F64)
    return y, torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=F64)


def supports(x):
    corr = pyro.sample("corr", dist.LKJCholesky(3, x.new_tensor(2.0)))
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(3)))
    rate = pyro.sample("rate", dist.Gamma(x.new_tensor(2.0), 2.0))
    upper = pyro.sample("upper", dist.Uniform(x.new_zeros(()), 1.0))
    with pyro.plate("data", x.shape[0]):
        pyro.sample("x", dist.MultivariateNormal(weights * upper, scale_tril=rate * corr), obs=x)


def nested(x):
    """Latents in and out of two plates, an event dimension, and a site that depends on the others."""
    top = pyro.sample("top", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("columns", x.shape[1], dim=-1):
        column = pyro.sample("column", dist.Normal(top[0], 1.0))
        with pyro.plate("rows", x.shape[0], dim=-2):
            cell = pyro.sample("cell", dist.LogNormal(column + top[1], 1.0))
            pyro.sample("x", dist.Normal(cell, 1.0), obs=x)


NORMALS = torch.randn(5, 3, generator=generator(2), dtype=F64)
ORACLE = {
    "regression": (regression, regression_data()),
    "eight schools": (eight_schools, school_data()),
    "supports": (supports, (NORMALS,)),
    "nested": (nested, (NORMALS,)),
}


@pytest.mark.parametrize("name", ORACLE)
def test_the_log_joint_is_minus_pyros_potential(name):
    model, data = ORACLE[name]
    program = am.Program(model, whole=True)
    prepared = program.prepare(data)
    log_joint = program.log_joint(prepared)
    assert log_joint.reason == ""
    _, potential, transforms, _ = initialize_model(model, data)
    u = torch.randn(5, log_joint.dim, generator=generator(3), dtype=F64)
    ours = log_joint.terms(prepared.fold(5), u=u)
    for row in range(5):
        at = {
            site.name: u[row, site.start : site.stop].reshape(site.unconstrained_shape)
            for site in log_joint.structure.sites.values()
        }
        with pyro.validation_enabled(False):
            torch.testing.assert_close(ours.joint[row], -potential(at), rtol=1e-10, atol=1e-10)
        for site, free in at.items():
            value = transforms[site].inv(free) if site in transforms else free
            torch.testing.assert_close(ours.values[site][row], value)


@pytest.mark.parametrize("name", ORACLE)
def test_latents_are_found_again_from_their_values(name):
    model, data = ORACLE[name]
    program = am.Program(model, whole=True)
    prepared = program.prepare(data).fold(3)
    log_joint = program.log_joint(program.prepare(data))
    u = torch.randn(3, log_joint.dim, generator=generator(4), dtype=F64)
    terms = log_joint.terms(prepared, u=u)
    latents, again = log_joint.unconstrain(prepared, terms.values)
    torch.testing.assert_close(latents.u, u, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.jacobian, terms.jacobian, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_annealing_from_the_prior_finds_the_exact_evidence(name):
    model, data, truth = EXACT[name]
    method = am.AIS(num_chains=64, num_temperatures=150)
    result = am.evidence(am.Program(model, whole=True), data, method=method, seed=0)
    assert result.start == "prior" and result.log_evidence.shape == (1,)
    error = abs(result.log_evidence[0] - truth(*data))
    assert error < 3 * result.se[0]
    assert error <= 0.02


@pytest.mark.parametrize("name", EXACT)
def test_a_full_covariance_is_the_exact_posterior(name):
    model, data, truth = EXACT[name]
    program = am.Program(model, whole=True)
    local = am.fit_local(program, data, family="full-covariance", seed=0)
    np.testing.assert_allclose(local.elbo, truth(*data), atol=1e-3)
    weights = am.evidence(program, data, start=local, method=am.ImportanceSampling(50)).log_weights
    np.testing.assert_allclose(weights, truth(*data), atol=5e-2)


def test_the_mean_field_gap_of_a_regression_is_the_known_one():
    x, y = regression_data()
    precision = x.T @ x / NOISE**2 + torch.eye(3, dtype=F64)
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    local = am.fit_local(am.Program(regression, whole=True), (x, y), seed=0)
    assert abs(local.elbo[0] - (regression_truth(x, y) - float(gap))) < z_value() * local.elbo_se[0] + 1e-3


def test_draws_of_a_local_posterior_have_the_exact_mean():
    x, y = regression_data()
    precision = x.T @ x / NOISE**2 + torch.eye(3, dtype=F64)
    mean = torch.linalg.solve(precision, x.T @ y / NOISE**2).numpy()
    local = am.fit_local(am.Program(regression, whole=True), (x, y), family="full-covariance", seed=0)
    draws = local.draws(4000)["w"]
    assert draws.shape == (4000, 1, 3)
    error = draws[:, 0].std(0) / math.sqrt(4000)
    assert (np.abs(draws[:, 0].mean(0) - mean) < z_value(3) * error + 1e-3).all()


class ExactGuide:
    """The posterior of the regression, its parameters read off the data."""

    def __call__(self, x, y):
        precision = x.T @ x / NOISE**2 + torch.eye(3, dtype=F64)
        mean = torch.linalg.solve(precision, x.T @ y / NOISE**2)
        pyro.sample("w", dist.MultivariateNormal(mean, precision_matrix=precision))


def test_from_the_exact_guide_every_weight_is_the_evidence():
    data = regression_data()
    program = am.Program(regression, ExactGuide(), whole=True)
    result = am.evidence(program, data, method=am.AIS(num_chains=4, num_temperatures=3))
    np.testing.assert_allclose(result.log_weights, regression_truth(*data), rtol=1e-10)
    draws = am.posterior(program, data, num_draws=5)
    np.testing.assert_allclose(draws["lp"] - draws["log_q"], regression_truth(*data), rtol=1e-10)
    assert draws["w"].shape == (5, 1, 3)
    assert program.reconstruct(data)["y"].shape == (1, 8)


def test_a_plate_of_size_one_says_the_same():
    def one(x, y):
        with pyro.plate("sets", x.shape[0]):
            w = pyro.sample("w", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal((x @ w.unsqueeze(-1)).squeeze(-1), NOISE).to_event(1), obs=y)

    x, y = regression_data()
    u = torch.randn(4, 1, 3, generator=generator(5), dtype=F64)
    plated, whole = am.Program(one), am.Program(regression, whole=True)
    ours = plated.log_joint(plated.prepare((x[None], y[None])))(plated.prepare((x[None], y[None])), u)
    theirs = whole.log_joint(whole.prepare((x, y)))(whole.prepare((x, y)), u)
    torch.testing.assert_close(ours, theirs)
    assert plated.check((x[None], y[None])).ok
    local = am.fit_local(plated, (x[None], y[None]), family="full-covariance", seed=0)
    np.testing.assert_allclose(local.elbo, regression_truth(x, y), atol=1e-3)


def test_a_condition_makes_the_others_local():
    x = hierarchy_data()
    program = am.Program(hierarchy, condition={"mu": torch.tensor(0.5, dtype=F64)})
    local = am.fit_local(program, x, seed=0)
    np.testing.assert_allclose(local.elbo, dist.Normal(0.5, math.sqrt(2)).log_prob(x), atol=1e-3)


def test_a_model_that_vmap_cannot_run_is_looped_over_with_the_reason():
    def looped(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        w.sum().item()
        with pyro.plate("data", x.shape[0]):
            pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)

    data = regression_data()
    slow, fast = am.Program(looped, whole=True), am.Program(regression, whole=True)
    u = torch.randn(4, 1, 3, generator=generator(6), dtype=F64)
    log_joint = slow.log_joint(slow.prepare(data))
    assert "vmap failed" in log_joint.reason and "item" in log_joint.reason
    torch.testing.assert_close(
        log_joint(slow.prepare(data), u), fast.log_joint(fast.prepare(data))(fast.prepare(data), u)
    )
    method = am.AIS(num_chains=2, num_temperatures=3)
    ours, theirs = (am.evidence(program, data, method=method) for program in (slow, fast))
    np.testing.assert_allclose(ours.log_weights, theirs.log_weights, rtol=1e-8)


def test_rows_that_vmap_gets_wrong_are_looped_over(monkeypatch):
    true_vmap = torch.func.vmap

    def wrong(function, **options):
        return lambda rows: tuple(
            part + 1.0 if isinstance(part, torch.Tensor) else part for part in true_vmap(function, **options)(rows)
        )

    data = regression_data()
    program = am.Program(regression, whole=True)
    u = torch.randn(4, 1, 3, generator=generator(7), dtype=F64)
    truth = program.log_joint(program.prepare(data))(program.prepare(data), u)
    monkeypatch.setattr(torch.func, "vmap", wrong)
    log_joint = program.log_joint(program.prepare(data))
    assert "vmap differs from a loop by up to 1 nats" in log_joint.reason
    torch.testing.assert_close(log_joint(program.prepare(data), u), truth)


def test_simulation_and_description():
    program = am.Program(eight_schools, whole=True)
    latents, observed = program.simulate(school_data())
    assert {name: value.shape for name, value in latents.items()} == {"mu": (1,), "tau": (1,), "effect": (1, 8)}
    assert observed["y"].shape == (1, 8)
    assert "whole data set" in program.describe(school_data())
    assert program.check(school_data()).ok


def test_a_network_with_random_weights_has_an_evidence():
    class Net(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = pyro.nn.PyroModule[torch.nn.Linear](3, 1, bias=False).double()
            prior = dist.Normal(torch.zeros(1, 3, dtype=F64), 1.0).to_event(2)
            self.linear.weight = pyro.nn.PyroSample(prior)

        def forward(self, x, y):
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("y", dist.Normal(mean, NOISE), obs=y)

    data = regression_data()
    local = am.fit_local(am.Program(Net(), whole=True), data, family="full-covariance", seed=0)
    np.testing.assert_allclose(local.elbo, regression_truth(*data), atol=1e-3)


def test_a_global_latent_is_refused_with_both_ways_out():
    with pytest.raises(GlobalLatentError, match=r"'mu'.*condition=.*whole=True"):
        am.Program(hierarchy).describe(hierarchy_data())

    def no_plate(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, torch.ones(3)).to_event(1), obs=x)

    with pytest.raises(NoDataPlateError, match="whole=True"):
        am.Program(no_plate).describe(torch.zeros(3))
    assert am.Program(no_plate, whole=True).dim(torch.zeros(3)) == 1


def _discrete(x):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def _nothing(x):
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def _blind(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def _scaled(x):
    with pyro.poutine.scale(scale=2.0):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _changing(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    size = 2 if z > 0 else 3
    pyro.sample("more", dist.Normal(torch.zeros(size), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _delta(x):
    z = pyro.sample("z", dist.Delta(torch.zeros(())))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


BREACHES = {
    "discrete": (_discrete, DiscreteLatentError, "'k'.*condition"),
    "no latent": (_nothing, ContractError, "no latent"),
    "no observation": (_blind, ContractError, "obs="),
    "scaled latent": (_scaled, ContractError, "'z'.*poutine.scale"),
    "dynamic": (_changing, DynamicStructureError, "more"),
    "point": (_delta, ContractError, "'z'.*Delta"),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breaches_are_refused_by_name(name):
    model, error, words = BREACHES[name]
    program = am.Program(model, whole=True)
    with pytest.raises(error, match=words):
        program.log_joint(program.prepare(torch.zeros(2)))


def test_a_plate_that_subsamples_takes_all_of_the_data():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(x.new_zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", x.shape[0], subsample_size=3) as rows:
            pyro.sample("y", dist.Normal(x[rows] @ w, NOISE), obs=y[rows])

    data = regression_data()
    u = torch.randn(4, 1, 3, generator=generator(8), dtype=F64)
    part, everything = am.Program(model, whole=True), am.Program(regression, whole=True)
    with part.evaluating():
        ours = part.log_joint(part.prepare(data))(part.prepare(data), u)
    torch.testing.assert_close(ours, everything.log_joint(everything.prepare(data))(everything.prepare(data), u))


def test_no_plate_indexes_the_datapoints_then():
    with pytest.raises(ArgumentError, match="'data'"):
        am.Program(regression, plate="data", whole=True)


def test_a_part_of_the_data_is_not_the_whole():
    def part(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PlateSizeError, match=r"'data'.*3 of 10"):
        am.Program(part, whole=True).describe(torch.zeros(3))


def _missing(x, y):
    pass


def _renamed(x, y):
    pyro.sample("v", dist.Normal(x.new_zeros(3), 1.0).to_event(1))


def _shaped(x, y):
    pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


def _positive(x, y):
    pyro.sample("w", dist.LogNormal(x.new_zeros(3), 1.0).to_event(1))


def _point(x, y):
    pyro.sample("w", dist.Delta(x.new_zeros(3)).to_event(1))


def _observing(x, y):
    pyro.sample("w", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.zeros(()))


GUIDES = {
    "missing": (_missing, "misses.*w"),
    "renamed": (_renamed, "v"),
    "shape": (_shaped, r"'w' has shape \(2,\)"),
    "support": (_positive, "covers only a part"),
    "point": (_point, "Delta"),
    "observing": (_observing, "'extra'"),
}


@pytest.mark.parametrize("name", GUIDES)
def test_guides_that_do_not_fit_are_refused(name):
    guide, words = GUIDES[name]
    with pytest.raises(GuideMismatchError, match=words):
        am.posterior(am.Program(regression, guide, whole=True), regression_data(), num_draws=2)


def test_a_given_has_no_density_of_its_own():
    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def model(x):
        scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
        mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    program = am.Program(model, whole=True, condition={"scale": torch.tensor(1.3, dtype=torch.float64)})
    local = am.fit_local(program, x, family="full-covariance", init="prior")
    covariance = 4 * torch.ones(6, 6) + 1.69 * torch.eye(6)
    exact = dist.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance.double()).log_prob(x)
    assert local.elbo[0] == pytest.approx(float(exact), abs=5 * local.elbo_se[0] + 1e-3)

    seen = am.Program(model, whole=True, condition={"x": x})
    with pytest.raises(ContractError, match="'x' depends on latents"):
        am.evidence(seen, x)
