"""Local posteriors against optima known in closed form."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import optimize

import amortize as am
from amortize.errors import ArgumentError
from tests.statistics import z_value


@pytest.fixture(scope="module")
def factor_analysis():
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(64, 20))[1]["x"])
    return analysis, x


@pytest.mark.parametrize("init", ["prior", "guide"])
@pytest.mark.parametrize("family", ["mean-field", "full-covariance"])
def test_elbo_reaches_its_closed_form(factor_analysis, family, init):
    analysis, x = factor_analysis
    local = am.fit_local(analysis.program(), x, family=family, init=init)
    best = analysis.best_mean_field_elbo(x) if family == "mean-field" else analysis.log_evidence(x)
    error = local.elbo - best.detach().double().numpy()
    assert local.converged.all()
    assert abs(error.mean()) <= 0.02
    assert (error < z_value(64) * local.elbo_se + 1e-3).all()


def test_the_full_covariance_posterior_is_the_exact_one(factor_analysis):
    analysis, x = factor_analysis
    local = am.fit_local(analysis.program(), x, family="full-covariance")
    mean, covariance = (part.detach().numpy() for part in analysis.posterior(x))
    np.testing.assert_allclose(local.loc, mean, atol=0.01)
    found = local.scale_tril @ local.scale_tril.swapaxes(1, 2)
    np.testing.assert_allclose(found, np.broadcast_to(covariance, found.shape), atol=0.002)


def test_standard_errors_are_those_of_repeats(factor_analysis):
    analysis, x = factor_analysis
    fits = [am.fit_local(analysis.program(), x[:16], seed=seed) for seed in range(12)]
    spread = np.std([fit.elbo for fit in fits], axis=0, ddof=1).mean()
    assert 0.6 < spread / np.mean([fit.elbo_se for fit in fits]) < 1.6


def narrow_model(x):
    """Posterior a hundred times narrower than the prior."""
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.01).to_event(1), obs=x)


def test_a_narrow_posterior_is_found_from_the_prior():
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    local = am.fit_local(am.Program(narrow_model), x)
    exact = dist.Normal(0.0, np.sqrt(1.0001)).log_prob(x).sum(-1).numpy()
    assert np.abs(local.elbo - exact).max() < 0.05
    assert local.converged.all()


def best_gaussian_elbo(x, noise):
    """Of z ~ N(0, 1), x ~ N(z^2, noise^2): the best N(m, s^2), whose ELBO is a polynomial of m and s."""

    def loss(theta):
        m, s = theta[0], np.exp(theta[1])
        fourth = m**4 + 6 * m**2 * s**2 + 3 * s**4
        misfit = (fourth - 2 * x * (m**2 + s**2) + x**2) / (2 * noise**2)
        return 0.5 * (m**2 + s**2) + misfit + np.log(2 * np.pi * noise) - 0.5 * np.log(2 * np.pi * np.e) - np.log(s)

    begins = [(m, np.log(s)) for m in (0.1, np.sqrt(x)) for s in (0.1, 1.0)]
    return -min(optimize.minimize(loss, begin, tol=1e-10).fun for begin in begins)


@pytest.mark.parametrize("family", ["mean-field", "full-covariance"])
@pytest.mark.parametrize(("value", "noise"), [(4.0, 0.2), (2.0, 0.5)])
def test_no_gaussian_stays_between_two_modes(family, value, noise):
    """The slope of the ELBO is zero there by symmetry, and the curvature too."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z**2, noise), obs=x)

    local = am.fit_local(am.Program(model), torch.full((16,), value), family=family)
    best = best_gaussian_elbo(value, noise)
    assert local.converged.all() and (local.elbo > best - 0.02 - z_value(16) * local.elbo_se).all()
    assert abs(local.elbo.mean() - best) < 0.02


def test_draws_come_in_the_sites_own_space():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([0.0, 3.0, 8.0])
    draws = am.fit_local(am.Program(model), x).draws(4000, seed=1)["rate"]
    assert draws.shape == (4000, 3) and (draws > 0).all()
    exact = (2 + x.numpy()) / 2  # Gamma(2 + x, 2)
    np.testing.assert_allclose(draws.mean(0), exact, rtol=0.1)


def test_datapoints_do_not_depend_on_their_neighbours(factor_analysis):
    """The optimum of a datapoint is the same alone and in company, within the noise of its own optimisation."""
    analysis, x = factor_analysis
    together = am.fit_local(analysis.program(), x)
    alone = am.fit_local(analysis.program(), x[5:6])
    assert abs(together.elbo[5] - alone.elbo[0]) < 5 * np.hypot(together.elbo_se[5], alone.elbo_se[0])


def test_a_datapoint_that_is_nowhere_finite_is_marked_and_spoils_no_other():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", torch.where(x > 5, torch.full_like(x, float("nan")), -0.5 * (x - z) ** 2))

    local = am.fit_local(am.Program(model), torch.tensor([0.5, 9.0, -1.0]), num_steps=800)
    assert np.isnan(local.elbo[1]) and not local.converged[1]
    assert np.isfinite(local.elbo[[0, 2]]).all() and local.converged[[0, 2]].all()


def test_too_few_steps_are_not_called_converged(factor_analysis):
    analysis, x = factor_analysis
    local = am.fit_local(analysis.program(), x[:8], num_steps=20)
    assert not local.converged.any() and (local.num_steps == 20).all()


def test_the_same_seed_gives_the_same_numbers(factor_analysis):
    analysis, x = factor_analysis
    fits = [am.fit_local(analysis.program(), x[:8], num_steps=60, seed=seed) for seed in (3, 3, 4)]
    assert (fits[0].elbo == fits[1].elbo).all() and (fits[0].elbo != fits[2].elbo).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "gaussian"}, "family"),
        ({"init": "here"}, "init"),
        ({"num_draws": 3}, "even"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_arguments_are_checked(factor_analysis, arguments, message):
    analysis, x = factor_analysis
    with pytest.raises(ArgumentError, match=message):
        am.fit_local(analysis.program(), x, **arguments)


def test_a_fit_that_failed_is_begun_anew_elsewhere():
    """The start's draws fall where the density is not a number; its best draw, narrow, lies beyond."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            log_p = dist.Normal(z, 0.1).log_prob(x)
            pyro.factor("likelihood", torch.where((z.abs() < 0.3) & (x > 1), torch.full_like(x, float("nan")), log_p))

    x = torch.tensor([0.5, 2.0])
    exact = dist.Normal(0.0, np.sqrt(1.01)).log_prob(x).numpy()
    once = am.fit_local(am.Program(model), x, num_restarts=0)
    assert once.converged.tolist() == [True, False] and np.isnan(once.elbo[1])
    again = am.fit_local(am.Program(model), x, num_restarts=1)
    assert again.converged.all() and again.num_restarts.tolist() == [0, 1]
    assert (np.abs(again.elbo - exact) < 0.05).all()
    assert again.num_gradients[1] > once.num_gradients[1]
