"""The evidence verb: importance sampling, starts, labels, posterior draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from tests.problems import CONJUGATE, PROBLEMS
from tests.statistics import z_value


@pytest.fixture(scope="module")
def factor_analysis():
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=10, seed=0)
    analysis.set_best_encoder()
    x = torch.tensor(analysis.program().simulate(torch.zeros(64, 10))[1]["x"])
    return analysis, x, analysis.log_evidence(x).detach().double().numpy()


def test_importance_weights_are_unbiased_and_their_mean_log_is_the_elbo(factor_analysis):
    analysis, x, exact = factor_analysis
    result = am.evidence(analysis.program(), x, method=am.ImportanceSampling(num_draws=2000))
    ratio = np.exp(result.log_weights - exact)
    assert abs(ratio.mean() - 1) < z_value(2) * ratio.std(ddof=1) / np.sqrt(ratio.size)
    elbo = analysis.guide_elbo(x).detach().double().numpy()
    error = result.log_weights.std(0, ddof=1) / np.sqrt(2000)
    assert (np.abs(result.log_weights.mean(0) - elbo) < z_value(64) * error).all()


def test_standard_errors_cover_those_of_repeats(factor_analysis):
    """Stratified chains vary less together than the standard error says, never more."""
    analysis, x, _ = factor_analysis
    runs = [am.evidence(analysis.program(), x, method=am.AIS(num_temperatures=20), seed=seed) for seed in range(12)]
    spread = np.std([run.log_evidence for run in runs], axis=0, ddof=1).mean()
    assert 0.3 < spread / np.mean([run.se for run in runs]) < 1.15


@pytest.mark.parametrize("name", CONJUGATE)
def test_exact_draws_have_no_spread_and_a_low_khat(name):
    problem = PROBLEMS[name]()
    result = am.evidence(problem.program(guide=True), problem.data, method=am.ImportanceSampling(num_draws=200))
    np.testing.assert_allclose(result.log_evidence, problem.log_evidence, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(result.ess, 200, rtol=1e-6)


def test_bounds_are_labelled(factor_analysis):
    analysis, x, _ = factor_analysis
    annealed = am.evidence(analysis.program(), x, method=am.AIS(num_chains=4, num_temperatures=5))
    sampled = am.evidence(analysis.program(), x, method=am.ImportanceSampling(num_draws=500))
    assert (annealed.lower == annealed.log_evidence).all() and annealed.upper is None
    assert (sampled.lower != sampled.log_evidence).any() and np.isfinite(sampled.khat).all()
    assert np.isnan(annealed.khat).all() and annealed.settings["kernel"]["num_leapfrog"] == 10
    assert list(sampled.table.columns)[:3] == ["log_evidence", "se", "ess"] and "mean log p(x)" in str(annealed)


def test_an_error_that_is_unknown_is_not_printed_as_zero():
    problem = PROBLEMS[next(iter(CONJUGATE))]()
    sampled = am.evidence(problem.program(guide=True), problem.data, method=am.ImportanceSampling(num_draws=1))
    assert np.isnan(sampled.se).all()
    num = len(sampled.se)
    unknown = f"+- nan nats (Monte Carlo) over {num} of {num} datapoints, {num} of them with an unknown error"
    assert str(sampled).endswith(f"{unknown}; {num} not to be trusted (.warnings says why)")
    assert "too few to tell" in sampled.warnings[0]


def test_khat_flags_a_guide_that_is_too_narrow(factor_analysis):
    analysis, x, _ = factor_analysis
    program = analysis.program()
    good = am.evidence(program, x, method=am.ImportanceSampling())
    state = program.state()
    with torch.no_grad():
        analysis.encoder.log_scale -= 1.5
    bad = am.evidence(program, x, method=am.ImportanceSampling())
    program.restore(state)
    assert np.median(good.khat) < 0.7 < np.median(bad.khat)
    assert bad.ess.mean() < 0.2 * good.ess.mean()


def test_a_local_posterior_is_a_start(factor_analysis):
    analysis, x, exact = factor_analysis
    local = am.fit_local(analysis.program(), x, family="full-covariance")
    result = am.evidence(analysis.program(), x, start=local, method=am.AIS(num_chains=4, num_temperatures=5))
    assert result.start == "local posterior" and np.abs(result.log_evidence - exact).max() < 0.01
    with pytest.raises(ArgumentError, match="same data"):
        am.evidence(analysis.program(), x[:5], start=local)


def test_chunks_give_the_same_answer(factor_analysis, monkeypatch):
    analysis, x, exact = factor_analysis
    monkeypatch.setattr("amortize.inference.method.MAX_ROWS", 64)
    result = am.evidence(analysis.program(), x, method=am.AIS(num_chains=16, num_temperatures=20))
    error = (result.log_evidence - exact).mean()
    bias, noise = -0.5 * np.square(result.se).mean(), np.sqrt(np.square(result.se).sum()) / 64
    assert result.log_weights.shape == (16, 64) and abs(error - bias) < z_value() * noise


def test_posterior_draws_come_with_their_densities(factor_analysis):
    analysis, x, exact = factor_analysis
    draws = am.posterior(am.Program(analysis.model, analysis.exact_guide), x, num_draws=20)
    assert draws["z"].shape == (20, 64, 3)
    np.testing.assert_allclose(draws["lp"] - draws["log_q"], np.broadcast_to(exact, (20, 64)), atol=1e-4)


@pytest.mark.parametrize(("arguments", "message"), [({"method": "AIS"}, "method"), ({"start": "middle"}, "start")])
def test_arguments_are_checked(factor_analysis, arguments, message):
    analysis, x, _ = factor_analysis
    with pytest.raises(ArgumentError, match=message):
        am.evidence(analysis.program(), x, **arguments)
    with pytest.raises(ArgumentError, match="seed"):
        am.evidence(analysis.program(), x, seed=-1)
