"""Bidirectional Monte Carlo against answers known exactly: both sides are bounds, and the reversed weights unbiased."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy import special, stats

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, GuideDataError, ReplayError
from amortize.inference import bdmc as module
from tests.mixtures import MIXTURES
from tests.problems import CONJUGATE, PROBLEMS
from tests.statistics import z_value

SIMULATIONS = 24
PLAIN = am.AIS(
    num_chains=8, num_temperatures=8, kernel=am.HMC(num_leapfrog=4), pilot=False, step_size=0.3, backend="eager"
)
LONGER = am.AIS(num_chains=32, num_temperatures=30, kernel=am.HMC(num_leapfrog=4))
METHODS = {
    "AIS, 3 temperatures": am.AIS(num_chains=8, num_temperatures=3, kernel=am.HMC(num_leapfrog=4)),
    "AIS, 10 temperatures": am.AIS(num_chains=8, num_temperatures=10, kernel=am.HMC(num_leapfrog=4)),
    "AIS, no pilot": am.AIS(num_chains=4, num_temperatures=4, pilot=False, step_size=0.3),
    "AIS, MALA": am.AIS(num_chains=8, num_temperatures=20, kernel=am.MALA()),
    "Langevin": am.Langevin(num_chains=8, num_temperatures=20),
    "importance sampling": am.ImportanceSampling(num_draws=50),
}


def exact_evidence(problem, x) -> np.ndarray:
    """Log p(x_n) of other data: with the exact posterior as guide every importance weight is it."""
    return am.evidence(problem.program(guide=True), x, method=am.ImportanceSampling(num_draws=1)).log_weights[0]


def check_sides(sandwich: am.Sandwich, exact: np.ndarray, *, num_checks: int) -> None:
    """E[w] / Z = 1 and E[1 / w] Z = 1; both sides are bounds in expectation. Datapoints are independent."""
    z = z_value(num_checks)
    forward = np.exp(sandwich.log_weights - exact).mean(0)
    reverse = np.exp(exact - sandwich.reverse_log_weights).mean(0)
    for ratio in (forward, reverse):
        assert abs(ratio.mean() - 1) < z * ratio.std(ddof=1) / np.sqrt(len(ratio)) + 1e-9
    for slack in (exact - sandwich.lower, sandwich.upper - exact):
        assert slack.mean() > -z * slack.std(ddof=1) / np.sqrt(len(slack)) - 1e-9


@pytest.mark.parametrize("name", CONJUGATE)
def test_both_sides_of_known_answers(name):
    problem = PROBLEMS[name]()
    sandwich = am.bdmc(problem.program(), problem.data, method=PLAIN, num_simulations=SIMULATIONS, seed=1)
    exact = exact_evidence(problem, torch.cat(sandwich.data))
    check_sides(sandwich, exact, num_checks=4 * len(CONJUGATE))
    assert sandwich.exact and np.isfinite(sandwich.gap).all()


@pytest.mark.parametrize("name", METHODS)
def test_both_sides_by_every_method(name):
    """Factor analysis z 2, x 4, from the prior, where both sides are loose."""
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=4, seed=0)
    shape = torch.zeros(60, 4)
    sandwich = am.bdmc(analysis.program(), shape, method=METHODS[name], num_simulations=10, start="prior", seed=2)
    exact = analysis.log_evidence(torch.cat(sandwich.data)).detach().double().numpy()
    check_sides(sandwich, exact, num_checks=4 * len(METHODS))
    assert sandwich.lower.mean() < exact.mean() < sandwich.upper.mean()


@pytest.mark.parametrize("num_temperatures", [3, 10])
def test_both_sides_of_factor_analysis_from_its_guide(num_temperatures):
    """Z 5, x 20, from the best amortized Gaussian."""
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    analysis.set_best_encoder()
    method = am.AIS(num_chains=4, num_temperatures=num_temperatures)
    sandwich = am.bdmc(analysis.program(), torch.zeros(100, 20), method=method, num_simulations=5, seed=1)
    exact = analysis.log_evidence(torch.cat(sandwich.data)).detach().double().numpy()
    check_sides(sandwich, exact, num_checks=8)


def test_the_gap_closes_with_temperatures_and_a_better_start():
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    analysis.set_best_encoder()
    gaps = [
        am.bdmc(analysis.program(), torch.zeros(100, 20), method=am.AIS(num_chains=4, num_temperatures=t), start=start)
        for t, start in ((3, "prior"), (30, "prior"), (30, "guide"))
    ]
    first, second, third = (sandwich.mean_gap for sandwich in gaps)
    assert first > 3 * second > 0 and abs(third) < second
    assert gaps[0].gap_se == pytest.approx(gaps[0].gap.std(ddof=1) / np.sqrt(100))


def check_reversal(sandwich: am.Sandwich, exact: np.ndarray, *, num_checks: int) -> None:
    """With l = log w - log p(x), E[sigmoid(l)] forward equals E[sigmoid(-l)] back: no tail is heavy (Bennett 1976)."""
    forward = special.expit(sandwich.log_weights - exact).mean(0)
    reverse = special.expit(exact - sandwich.reverse_log_weights).mean(0)
    difference = forward - reverse
    assert abs(difference.mean()) < z_value(num_checks) * difference.std(ddof=1) / np.sqrt(len(difference))


def test_far_from_the_posterior_one_direction_is_the_others_reversal():
    """Factor analysis z 5, x 20 from the prior in 3 steps: E[1 / w] has no finite variance there, this has."""
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    method = am.AIS(num_chains=4, num_temperatures=3)
    sandwich = am.bdmc(analysis.program(), torch.zeros(200, 20), method=method, start="prior", num_simulations=5)
    check_reversal(sandwich, analysis.log_evidence(torch.cat(sandwich.data)).detach().double().numpy(), num_checks=2)


def test_gibbs_and_hmc_together_are_reversed_together():
    """A class that moves both a positive latent and the observation; log p(x) by quadrature."""
    case = MIXTURES["latent-below-class"]()
    method = am.AIS(num_chains=4, num_temperatures=8, kernel=am.HMC(num_leapfrog=4))
    program = am.Program(case.model, discrete="sample")
    x = torch.zeros(40, dtype=torch.float64)
    sandwich = am.bdmc(program, x, method=method, num_simulations=20, seed=3)
    grid = torch.linspace(-9, 9, 8001, dtype=torch.float64)
    values = torch.stack([case.by_hand(grid[:, None], row.expand(len(grid))) for row in torch.cat(sandwich.data)])
    check_reversal(sandwich, (values.logsumexp(1) + (grid[1] - grid[0]).log()).numpy(), num_checks=2)


@pytest.mark.parametrize("name", CONJUGATE)
def test_from_the_exact_posterior_both_sides_are_the_evidence(name):
    problem = PROBLEMS[name]()
    sandwich = am.bdmc(problem.program(guide=True), problem.data, method=PLAIN)
    exact = exact_evidence(problem, sandwich.data[0])
    for weights in (sandwich.log_weights, sandwich.reverse_log_weights):
        np.testing.assert_allclose(weights, np.broadcast_to(exact, weights.shape), rtol=1e-9, atol=1e-9)
    assert abs(sandwich.mean_gap) < 1e-9


def test_importance_sampling_with_the_posteriors_draw_among_others():
    """The upper side, too, comes to log p(x) as draws grow."""
    problem = PROBLEMS["normal-normal"]()
    gaps = [
        am.bdmc(problem.program(), problem.data, method=am.ImportanceSampling(num_draws=num), num_simulations=30)
        for num in (10, 1000)
    ]
    assert 0 < gaps[1].mean_gap < 0.1 * gaps[0].mean_gap
    assert np.isfinite(gaps[1].upper_se).all() and np.median(gaps[1].upper_se) < 0.1


# Discrete latents


def classes(x):
    """A normal latent around one of two centres: log p(x) is that of a mixture of two normals."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
        z = pyro.sample("z", dist.Normal(2.0 * k.double(), 1.0))
        pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)


@pytest.mark.parametrize("num_temperatures", [3, 10])
def test_discrete_latents_moved_by_gibbs(num_temperatures):
    method = am.AIS(num_chains=4, num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=4))
    program = am.Program(classes, discrete="sample")
    x = torch.zeros(50, dtype=torch.float64)
    sandwich = am.bdmc(program, x, method=method, num_simulations=20, seed=3)
    parts = [np.log(p) + stats.norm(m, 2**0.5).logpdf(torch.cat(sandwich.data)) for p, m in ((0.3, 0), (0.7, 3))]
    check_sides(sandwich, np.logaddexp(*parts), num_checks=8)
    assert sandwich.lower.mean() < np.logaddexp(*parts).mean() < sandwich.upper.mean()


def test_discrete_latents_alone_moved_by_gibbs():
    case = MIXTURES["two-sites"]()
    method = am.AIS(num_chains=4, num_temperatures=8)
    sandwich = am.bdmc(am.Program(case.model, discrete="sample"), case.data, method=method, num_simulations=100, seed=3)
    x = tuple(torch.cat(parts) for parts in zip(*map(as_tuple, sandwich.data), strict=True))
    check_sides(sandwich, am.evidence(am.Program(case.model), x).log_evidence, num_checks=4)
    assert sandwich.gap.std() > 1e-3


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def test_discrete_latents_summed_out_leave_no_gap():
    case = MIXTURES["two-sites"]()
    sandwich = am.bdmc(am.Program(case.model), case.data, num_simulations=2)
    assert (sandwich.gap == 0).all() and (sandwich.lower_se == 0).all()
    exact = am.evidence(am.Program(case.model), sandwich.data[1]).log_evidence
    np.testing.assert_allclose(sandwich.lower[len(exact) :], exact)


# Simulations


def normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)


SHORT = am.AIS(num_chains=4, num_temperatures=5, kernel=am.HMC(num_leapfrog=3), pilot=False, backend="eager")


def test_simulations_are_independent_and_shaped_like_the_data():
    x = torch.zeros(6, dtype=torch.float64)
    sandwich = am.bdmc(am.Program(normal), x, method=SHORT, num_simulations=3)
    assert sandwich.lower.shape == sandwich.upper_se.shape == (18,)
    assert len(sandwich.data) == 3 and all(part.shape == x.shape for part in sandwich.data)
    assert len(torch.cat(sandwich.data).unique()) == 18
    assert list(sandwich.table.index.names) == ["simulation", "datapoint"]
    assert sandwich.table.loc[(1, 2), "upper"] == sandwich.upper[8]
    again, other = (am.bdmc(am.Program(normal), x, method=SHORT, num_simulations=3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(again.upper, sandwich.upper)
    assert not np.isin(other.lower, sandwich.lower).any()


def test_a_whole_data_set_is_simulated_one_after_the_other():
    x = torch.linspace(-1, 1, 10, dtype=torch.float64)
    sandwich = am.bdmc(am.Program(regression, whole=True), (x, x), method=SHORT, num_simulations=12)
    assert sandwich.lower.shape == (12,) and len(sandwich.data) == 12
    covariance = torch.outer(x, x) + 0.25 * torch.eye(10, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(torch.zeros(10, dtype=torch.float64), covariance)
    exact = np.array([float(truth.log_prob(y)) for _, y in sandwich.data])
    check_sides(sandwich, exact, num_checks=4)


def test_local_posteriors_are_fitted_to_the_simulated_data():
    x = torch.zeros(6, dtype=torch.float64)
    local = am.fit_local(am.Program(normal), x, num_steps=300)
    sandwich = am.bdmc(am.Program(normal), x, method=SHORT, start=local, num_simulations=2)
    assert sandwich.start == "local posterior" and np.abs(sandwich.gap).max() < 0.1


def test_a_guide_that_reads_a_copy_is_found_out():
    def model(x, copy):
        normal(x)

    def guide(x, copy):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * copy, 0.2**0.5))

    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    with pytest.warns(AmortizeWarning, match="does not read what the model observes"):
        loose = am.bdmc(am.Program(model, guide), (x, x), method=SHORT)
    program = am.Program(model, guide, replace=lambda observed, data: (observed["x"], observed["x"]))
    tight = am.bdmc(program, (x, x), method=SHORT)
    assert np.abs(tight.gap).max() < 1e-9 < np.abs(loose.gap).max()
    assert torch.equal(*tight.data[0])


# Real data


def test_approximate_draws_give_an_estimate_that_says_so():
    problem = PROBLEMS["normal-normal"]()
    draws = am.posterior(problem.program(guide=True), problem.data, num_draws=200)
    sandwich = am.bdmc(problem.program(), problem.data, method=LONGER, posterior_draws=draws)
    assert not sandwich.exact and sandwich.draws == "the draws given"
    assert "an estimate and no bound" in str(sandwich) and "simulated" not in str(sandwich)
    assert torch.equal(sandwich.data[0], problem.data)
    np.testing.assert_allclose(sandwich.lower, problem.log_evidence, atol=0.3)
    np.testing.assert_allclose(sandwich.upper, problem.log_evidence, atol=0.3)


def test_draws_by_a_long_run():
    problem = PROBLEMS["gamma-poisson"]()
    sandwich = am.bdmc(problem.program(), problem.data, method=LONGER, posterior_draws=LONGER)
    assert sandwich.draws == "the end of an AIS run of 30 temperatures" and not sandwich.exact
    np.testing.assert_allclose(sandwich.upper, problem.log_evidence, atol=0.3)


def test_what_is_a_bound_is_said():
    sandwich = am.bdmc(am.Program(normal), torch.zeros(6, dtype=torch.float64), method=SHORT)
    assert "both are bounds in expectation" in str(sandwich) and "6 simulated datapoints" in str(sandwich)
    alone = am.bdmc(am.Program(normal), torch.zeros(1, dtype=torch.float64), method=SHORT)
    assert "its error unknown (one datapoint)" in str(alone) and np.isnan(alone.gap_se)


# What goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": am.SMC()}, r"method: expected am.AIS\(...\).*resamples"),
        ({"method": am.Diffusion()}, "It has no run in reverse"),
        ({"method": "AIS"}, "method: expected"),
        ({"method": am.AIS}, r"got the class AIS; make an object of it, AIS\(...\)"),
        ({"num_simulations": 0}, "num_simulations"),
        ({"posterior_draws": {"w": np.zeros((3, 6))}}, "draws of every latent site, z missing"),
        ({"posterior_draws": {"z": np.zeros((3, 5))}}, r"expected 'z' of shape \(draws, 6\), got \(3, 5\)"),
        ({"posterior_draws": {"z": np.full((3, 6), np.nan)}}, "outside the support"),
        ({"posterior_draws": {"z": "many"}}, "expected an array of numbers for 'z', got str"),
        ({"posterior_draws": np.zeros((3, 6))}, "posterior_draws: expected a dict"),
        ({"posterior_draws": {"z": np.zeros((3, 6))}, "num_simulations": 2}, "nothing is simulated"),
        ({"start": "nowhere"}, "start: expected"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ArgumentError, match=message):
        am.bdmc(am.Program(normal), torch.zeros(6, dtype=torch.float64), **options)


def test_an_autoguide_knows_nothing_of_simulated_data():
    x = torch.zeros(6, dtype=torch.float64)
    with pytest.raises(GuideDataError, match="start='prior'"):
        am.bdmc(am.Program(normal, AutoNormal(normal)), x, method=SHORT)
    assert np.isfinite(am.bdmc(am.Program(normal, AutoNormal(normal)), x, method=SHORT, start="prior").gap).all()


def test_factors_can_not_be_simulated():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", -(x - z).abs())

    with pytest.raises(ReplayError, match="'likelihood' is a pyro"):
        am.bdmc(am.Program(model), torch.zeros(6))


def test_a_run_that_is_stopped_keeps_what_is_done(monkeypatch):
    def stopping(method, start, data, draws, *, seed):
        if done:
            raise KeyboardInterrupt
        done.append(seed)
        return run(method, start, data, draws, seed=seed)

    done: list[int] = []
    run = module.both_sides
    monkeypatch.setattr(module, "both_sides", stopping)
    monkeypatch.setattr(am.AIS, "chunk_size", lambda self, start: 4)
    with pytest.warns(AmortizeWarning, match="stopped after 4 of 6 datapoints"):
        sandwich = am.bdmc(am.Program(normal), torch.zeros(6, dtype=torch.float64), method=SHORT)
    assert sandwich.interrupted and np.isfinite(sandwich.gap).tolist() == [True] * 4 + [False] * 2
    assert "4 simulated datapoints (2 more have no finite gap)" in str(sandwich)


def test_one_datapoint_that_fails_spoils_no_other():
    def model(x, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    scale = torch.tensor([0.5, 0.5, 1e308, 0.5], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        sandwich = am.bdmc(am.Program(model), (torch.zeros(4, dtype=torch.float64), scale), method=SHORT)
    assert np.isfinite(sandwich.gap[[0, 1, 3]]).all()
