"""The classical ladder: maximum likelihood, MAP, mean field, full covariance, a flow, NUTS and exact, rung by rung."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

import amortize as am
from amortize.errors import ArgumentError
from tests.statistics import z_value

N = 16


@pytest.fixture(scope="module")
def gaussian():
    problem = am.models.UnknownGaussian()
    return problem, problem.simulate(N, num_observations=6)


@pytest.fixture(scope="module")
def regression():
    problem = am.models.LinearRegression.random(seed=1)
    return problem, problem.simulate(N)


def test_the_gaussian_s_evidence_is_its_integral(gaussian):
    problem, x = gaussian
    row = x[0].double().numpy()

    def given_variance(variance):  # mu is integrated out exactly: x is a Gaussian with correlated entries
        covariance = variance * (np.eye(len(row)) + 1 / problem.k)
        density = stats.multivariate_normal(np.full(len(row), problem.m), covariance).pdf(row)
        return density * stats.invgamma(problem.a, scale=problem.b).pdf(variance)

    integral, _ = integrate.quad(given_variance, 0, np.inf, epsabs=0, epsrel=1e-10, limit=200)
    assert float(problem.log_evidence(x)[0]) == pytest.approx(np.log(integral), abs=1e-6)


def test_annealing_finds_both_exact_evidences(gaussian, regression):
    for problem, data in (gaussian, regression):
        evidence = am.evidence(problem.program(), data, method=am.AIS(num_temperatures=200))
        error = evidence.log_evidence - problem.log_evidence(data).numpy()
        assert abs(error.mean()) < z_value() * np.sqrt(np.square(evidence.se).sum()) / N + np.square(evidence.se).mean()


def test_the_map_of_the_gaussian_is_its_mode(gaussian):
    problem, x = gaussian
    draws = am.fit_local(problem.program(), x, family="point").draws(1)
    mu, variance = (part.numpy() for part in problem.posterior(x).mode)
    np.testing.assert_allclose(draws["mu"][0], mu, atol=2e-3)
    np.testing.assert_allclose(draws["variance"][0], variance, rtol=5e-3)


def test_the_map_of_the_regression_is_its_mean_and_not_least_squares(regression):
    problem, y = regression
    w = am.fit_local(problem.program(), y, family="point").draws(1)["w"][0]
    np.testing.assert_allclose(w, problem.posterior(y)[0], atol=2e-3)
    assert np.abs(w - problem.least_squares(y).numpy()).max() > 0.05


def best_gaussian_elbo(problem, x):
    """The largest ELBO over Gaussians of (log v, mu), each row by itself. Mean field and full covariance share it: the
    log joint is even in mu around its mean, so that the best covariance is 0."""
    values = []
    for row in x.double():
        after = problem.posterior(row.unsqueeze(0))
        m, k, a, b = float(after.m), after.k, after.a, float(after.b)

        def loss(theta, k=k, a=a, b=b):  # log v ~ N(l, s^2), mu - m ~ N(0, r^2); log joint up to log p(x)
            loc, log_s, log_r = theta
            s, r = np.exp(log_s), np.exp(log_r)
            inverse = np.exp(-loc + s**2 / 2)
            expected = -a * loc - b * inverse + a * np.log(b) - float(torch.lgamma(torch.tensor(a).double()))
            expected += 0.5 * np.log(k / (2 * np.pi)) - 0.5 * loc - 0.5 * k * r**2 * inverse
            return -(expected + np.log(2 * np.pi * np.e) + log_s + log_r)

        found = optimize.minimize(loss, [np.log(b / a), -0.5 * np.log(a), 0.5 * np.log(b / a / k)], tol=1e-12)
        values.append(float(problem.log_evidence(row.unsqueeze(0))) - found.fun)
        assert np.isfinite(m)
    return np.array(values)


@pytest.mark.parametrize("family", ["mean-field", "full-covariance"])
def test_gaussian_families_reach_their_best_on_the_gaussian(gaussian, family):
    problem, x = gaussian
    local = am.fit_local(problem.program(), x, family=family)
    error = local.elbo - best_gaussian_elbo(problem, x)
    assert local.converged.all() and abs(error.mean()) <= 0.02
    assert (error < z_value(N) * local.elbo_se + 1e-3).all()


def test_a_flow_closes_what_gaussians_leave(gaussian):
    problem, x = gaussian
    exact = problem.log_evidence(x).numpy()
    left = exact - best_gaussian_elbo(problem, x)
    flow = am.fit_local(problem.program(), x, family="flow")
    assert (exact - flow.elbo).mean() < 0.5 * left.mean()
    assert (flow.elbo < exact + z_value(N) * flow.elbo_se + 1e-3).all()


def test_the_regression_is_climbed_to_the_top_by_a_full_covariance(regression):
    problem, y = regression
    mean_field = am.fit_local(problem.program(), y, family="mean-field")
    full = am.fit_local(problem.program(), y, family="full-covariance")
    assert abs((mean_field.elbo - problem.best_mean_field_elbo(y).numpy()).mean()) <= 0.02
    assert abs((full.elbo - problem.log_evidence(y).numpy()).mean()) <= 0.02
    mean, covariance = problem.posterior(y)
    np.testing.assert_allclose(full.loc, mean, atol=0.02)
    narrow = (1 / np.linalg.inv(covariance.numpy()).diagonal()) ** 0.5
    np.testing.assert_allclose(mean_field.parameters["scale"], np.broadcast_to(narrow, (N, 3)), rtol=0.1)  # .01 nats


@pytest.mark.filterwarnings("ignore:. of 2 datapoints are not to be trusted")  # R-hat of chains this short
def test_nuts_agrees_with_the_exact_posterior_of_the_gaussian(gaussian):
    problem, x = gaussian
    gold = am.gold_standard(problem.program(), x[:2], kernel="nuts", num_chains=2, num_warmup=300, num_draws=500)
    draws = {"mu": gold.draws["mu"], "log_v": np.log(gold.draws["variance"])}
    after = problem.posterior(x[:2])
    for name, mean, sd in zip(draws, after.mean, after.sd, strict=True):
        pooled = draws[name].reshape(-1, 2)
        error = (pooled.mean(0) - mean.numpy()) / sd.numpy()
        assert (np.abs(error) < z_value(4) / np.sqrt(100)).all()  # at least 100 effective draws of 1000
        assert (np.abs(pooled.std(0) / sd.numpy() - 1) < 0.35).all()


def test_the_amortized_gaussian_splits_its_loss(gaussian):
    problem, x = gaussian
    program = problem.program(problem.encoder())
    training = am.Training(learning_rate=1e-2, schedule="cosine")
    am.fit(program, problem.simulate(1000, num_observations=6, seed=1), num_steps=1500, training=training)
    ledger = am.gaps(program, x, families=("mean-field",), method=am.AIS(num_temperatures=200))
    exact, best = problem.log_evidence(x).numpy(), best_gaussian_elbo(problem, x)
    summary = ledger.summary["mean"]
    assert ledger.guide_family == "mean-field"
    assert summary["approximation_gap"] == pytest.approx((exact - best).mean(), abs=0.03)
    assert 0 <= summary["amortization_gap"] < 0.3


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="UnknownGaussian a"):
        am.models.UnknownGaussian(a=0.0)
    with pytest.raises(ArgumentError, match="design"):
        am.models.LinearRegression(torch.zeros(3))
