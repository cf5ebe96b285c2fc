"""Points against modes known in closed form, in the latents' own space."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import amortize as am
from amortize.errors import ArgumentError
from tests.problems import PROBLEMS


def fitted(name: str, **settings):
    problem = PROBLEMS[name]()
    local = am.fit_local(problem.program(), problem.data, family="point", **settings)
    return problem.data.numpy(), local, {site: values[0] for site, values in local.draws(1).items()}


def test_the_mode_of_a_gaussian():
    x, local, found = fitted("normal-normal")
    exact = (0.5 / 4 + x / 0.25) / (1 / 4 + 1 / 0.25)
    np.testing.assert_allclose(found["z"], exact, atol=1e-3)
    value = stats.norm(0.5, 2.0).logpdf(exact) + stats.norm(exact, 0.5).logpdf(x)
    np.testing.assert_allclose(local.elbo, value, atol=2e-6)
    assert local.converged.all() and (local.elbo_se == 0).all()


def test_the_mode_of_a_gamma_is_its_own_and_not_that_of_its_logarithm():
    x, local, found = fitted("gamma-poisson")
    np.testing.assert_allclose(found["z"], (2.0 + x.sum(1) - 1) / (0.7 + 4), rtol=1e-3)
    assert local.converged.all()


def test_the_mode_of_a_beta():
    x, _, found = fitted("beta-bernoulli")
    np.testing.assert_allclose(found["z"], (1.5 + x.sum(1) - 1) / (1.5 + 2.5 + 7 - 2), atol=1e-3)


def test_the_mode_of_a_dirichlet_on_the_simplex():
    x, local, found = fitted("dirichlet-multinomial")
    counts = np.array([1.2, 0.8, 2.0]) + x - 1
    assert (counts > 0).all()
    np.testing.assert_allclose(found["z"], counts / counts.sum(1, keepdims=True), atol=1e-3)
    exact = stats.dirichlet([1.2, 0.8, 2.0]).logpdf((counts / counts.sum(1, keepdims=True)).T)
    likelihood = [stats.multinomial(9, row / row.sum()).logpmf(n) for row, n in zip(counts, x, strict=True)]
    np.testing.assert_allclose(local.elbo, exact + likelihood, atol=2e-6)


def test_discrete_latents_stay_summed_out():
    """No better place nearby, by the mixture's own density."""
    x, local, found = fitted("gaussian-mixture")
    weights, centres = np.array([0.5, 0.3, 0.2]), np.array([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]])

    def value(z):
        prior = np.exp(stats.norm(centres, 0.6).logpdf(z[:, None]).sum(-1)) @ weights
        return np.log(prior) + stats.norm(z, 1.0).logpdf(x).sum(-1)

    np.testing.assert_allclose(local.elbo, value(found["z"]), atol=1e-9)
    for step in 0.02 * np.random.default_rng(0).normal(size=(50, *found["z"].shape)):
        assert (value(found["z"] + step) <= local.elbo + 1e-6).all()


def test_what_a_mask_hides_has_no_say():
    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.poutine.mask(mask=seen):
                w = pyro.sample("w", dist.LogNormal(torch.zeros((), dtype=x.dtype), 0.5))
            pyro.sample("x", dist.Normal(z + torch.where(seen, w, 0.0), 0.5), obs=x)

    x = torch.tensor([1.0, 1.0], dtype=torch.float64)
    local = am.fit_local(am.Program(model), (x, torch.tensor([False, True])), family="point")
    exact = stats.norm.logpdf(0.8) + stats.norm(0.8, 0.5).logpdf(1.0)
    assert abs(local.elbo[0] - exact) < 1e-5


def test_a_valley_that_bends_is_followed_to_its_end():
    """Rosenbrock's function under a prior that is next to flat."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 2.0).to_event(1))
            prior = -0.125 * z.square().sum(-1)
            pyro.factor("valley", -100 * (z[:, 1] - z[:, 0] ** 2) ** 2 - (x - z[:, 0]) ** 2 - prior)
            pyro.sample("none", dist.Normal(torch.zeros_like(x), 1.0), obs=torch.zeros_like(x))

    x = torch.tensor([1.0, -0.5, 1.5], dtype=torch.float64)
    local = am.fit_local(am.Program(model), x, family="point")
    np.testing.assert_allclose(local.parameters["u"], np.stack([x, x**2], 1), atol=0.02)
    assert local.converged.all()


def test_a_density_without_bound_at_the_edge_is_not_called_converged():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.tensor(0.5, dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Poisson(z), obs=x)

    local = am.fit_local(am.Program(model), torch.tensor([0.0, 4.0], dtype=torch.float64), family="point")
    assert local.converged.tolist() == [False, True]
    np.testing.assert_allclose(local.draws(1)["z"][0, 1], 3.5 / 2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_bounded_support_runs_out_of_digits_a_growing_density_is_not_called_converged(dtype):
    def beta(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(torch.tensor(0.5, dtype=dtype), 0.5))
            pyro.sample("x", dist.Binomial(10, z), obs=x)

    def dirichlet(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0], dtype=dtype)))
            pyro.sample("x", dist.Multinomial(10, z, validate_args=False), obs=x)

    counts = torch.tensor([0.0, 1.0, 10.0], dtype=dtype)
    assert am.fit_local(am.Program(beta), counts, family="point").converged.tolist() == [False, True, False]
    counts = torch.tensor([[0.0, 1.0, 9.0], [3.0, 3.0, 4.0]], dtype=dtype)
    assert am.fit_local(am.Program(dirichlet), counts, family="point").converged.tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mode_at_the_edge_of_a_bounded_support_is_converged(dtype):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(torch.tensor(1.0, dtype=dtype), 1.0))
            pyro.sample("x", dist.Binomial(1000, z), obs=x)

    local = am.fit_local(am.Program(model), torch.tensor([0.0, 500.0, 1000.0], dtype=dtype), family="point")
    assert local.converged.all()
    np.testing.assert_allclose(local.draws(1)["z"][0], [0.0, 0.5, 1.0], atol=1e-4)


def test_a_datapoint_that_is_nowhere_finite_is_marked_and_spoils_no_other():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", torch.where(x > 5, torch.full_like(x, float("nan")), -0.5 * (x - z) ** 2))

    local = am.fit_local(am.Program(model), torch.tensor([0.5, 9.0, -1.0]), family="point")
    assert not np.isfinite(local.elbo[1]) and local.converged.tolist() == [True, False, True]
    np.testing.assert_allclose(local.parameters["u"][[0, 2], 0], [0.25, -0.5], atol=1e-3)


def test_a_point_has_no_density_and_starts_no_chains():
    problem = PROBLEMS["normal-normal"]()
    local = am.fit_local(problem.program(), problem.data, family="point")
    assert "log p(x, z)" in str(local)
    with pytest.raises(ArgumentError, match="no density"):
        am.evidence(problem.program(), problem.data, method=am.AIS(), start=local)
    with pytest.raises(ArgumentError, match="no density"):
        _ = local.loc
    draws = local.draws(3)["z"]
    assert (draws[0] == draws[1]).all() and draws.shape == (3, 6)
