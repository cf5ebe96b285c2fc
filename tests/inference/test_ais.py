"""Annealed importance sampling against answers known exactly."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError
from amortize.inference.ais import run_ais
from amortize.inference.pilot import run_pilot
from amortize.inference.starts import PriorStart
from tests.problems import CONJUGATE, PROBLEMS, two_that_fail
from tests.statistics import z_value

NUM_CHECKS = 2 * len(PROBLEMS)


few_chains = pytest.mark.filterwarnings("ignore:for .* draws carries nearly all:amortize.errors.AmortizeWarning")


def relative_weights(evidence: am.Evidence, exact: np.ndarray) -> np.ndarray:
    """Z_hat / Z of each chain and datapoint, (C, N): unbiased with mean 1."""
    return np.exp(evidence.log_weights - exact)


@pytest.mark.parametrize("num_temperatures", [3, 10])
@pytest.mark.parametrize("name", PROBLEMS)
def test_mean_weight_is_the_evidence(name, num_temperatures):
    problem = PROBLEMS[name]()
    method = am.AIS(num_chains=1000, num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=4))
    evidence = am.evidence(problem.program(), problem.data, method=method, start="prior", seed=1)
    ratio = relative_weights(evidence, problem.log_evidence)
    error = ratio.mean(0).std(ddof=1) / np.sqrt(ratio.shape[1]) + 1e-12
    within = ratio.std(0, ddof=1).mean() / np.sqrt(ratio.size)
    assert abs(ratio.mean() - 1) < z_value(NUM_CHECKS) * max(error, within)


@pytest.mark.parametrize("name", CONJUGATE)
@pytest.mark.parametrize("num_temperatures", [1, 10])
def test_the_exact_posterior_as_start_has_no_spread(name, num_temperatures):
    problem = PROBLEMS[name]()
    method = am.AIS(num_chains=4, num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=3))
    evidence = am.evidence(problem.program(guide=True), problem.data, method=method, start="guide")
    expected = np.broadcast_to(problem.log_evidence, evidence.log_weights.shape)
    np.testing.assert_allclose(evidence.log_weights, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def factor_analysis():
    """Factor analysis, z 5, x 20, 64 simulated datapoints, float32."""
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(64, 20))[1]["x"])
    return analysis, x, analysis.log_evidence(x).detach().double().numpy()


@few_chains
@pytest.mark.parametrize("num_temperatures", [3, 10])
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_factor_analysis_weights_are_unbiased(factor_analysis, num_temperatures, start):
    analysis, x, exact = factor_analysis
    analysis.set_best_encoder()
    method = am.AIS(num_chains=256, num_temperatures=num_temperatures)
    evidence = am.evidence(analysis.program(), x, method=method, start=start)
    ratio = relative_weights(evidence, exact)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(ratio.size)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_factor_analysis_at_the_default_budget(factor_analysis, start):
    """16 chains and 100 temperatures: within the run's own standard error and the bias that log-mean-exp has there."""
    analysis, x, exact = factor_analysis
    analysis.set_best_encoder()
    evidence = am.evidence(analysis.program(), x, start=start)
    error = (evidence.log_evidence - exact).mean()
    noise = np.sqrt(np.square(evidence.se).sum()) / len(x)
    bias = -0.5 * np.square(evidence.se).mean()
    assert abs(error - bias) < z_value(2) * noise
    if start == "guide":
        assert abs(error) <= 0.02


def test_factor_analysis_from_its_exact_posterior(factor_analysis):
    analysis, x, exact = factor_analysis
    program = am.Program(analysis.model, analysis.exact_guide)
    evidence = am.evidence(program, x, method=am.AIS(num_temperatures=20), start="guide")
    assert np.abs(evidence.log_weights - exact).max() < 1e-4  # float32, log p(x) near -40
    assert evidence.acceptance.min() > 0.5


def test_the_pilot_freezes_and_shares_no_noise_with_the_run(factor_analysis):
    analysis, x, _ = factor_analysis
    program = analysis.program()
    data = program.prepare(x[:8])
    with program.evaluating():
        start = PriorStart(program.log_joint(data))
        settings = am.AIS(num_chains=2, num_temperatures=12)
        plan = run_pilot(start, data, settings.budget, seed=3)
        run = run_ais(start, data, settings, plan=plan, seed=3)
    assert plan.betas[0] == 0 and plan.betas[-1] == 1 and bool((plan.betas.diff() > 0).all())
    assert plan.step_sizes.shape == (12, 8) and plan.scales.shape == (12, 8, 5, 5)
    torch.testing.assert_close(run.step_sizes, plan.step_sizes)


def test_weights_that_one_chain_carries_have_no_standard_error_and_a_warning(factor_analysis):
    analysis, x, exact = factor_analysis
    with pytest.warns(AmortizeWarning, match="probably too low"):
        evidence = am.evidence(analysis.program(), x, method=am.AIS(num_temperatures=3), start="prior")
    hopeless = np.isnan(evidence.se)
    assert hopeless.any() and (evidence.ess[hopeless] < 2).all()
    assert (evidence.log_evidence - exact)[hopeless].mean() < -0.5


@few_chains
def test_the_pilot_beats_a_linear_schedule_with_one_step_size(factor_analysis):
    analysis, x, exact = factor_analysis
    losses = []
    for method in (am.AIS(num_temperatures=40), am.AIS(num_temperatures=40, pilot=False)):
        evidence = am.evidence(analysis.program(), x, method=method, start="prior")
        losses.append((exact - evidence.log_weights).mean())
    assert losses[0] < 0.5 * losses[1]


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_generators_alone(factor_analysis):
    analysis, x, _ = factor_analysis
    method = am.AIS(num_chains=2, num_temperatures=5)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (am.evidence(analysis.program(), x[:8], method=method, seed=seed) for seed in (1, 1, 2))
    assert (first.log_weights == second.log_weights).all() and (first.log_weights != other.log_weights).any()
    assert torch.equal(torch.rand(3), expected)


def test_scaling_and_renaming_change_nothing():
    x = torch.tensor([0.3, -1.2, 0.8])

    def model(name, plate):
        def run(x):
            with plate(x):
                z = pyro.sample(name, dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 0.5), obs=x)

        return run

    plain = model("z", lambda x: pyro.plate("data", x.shape[0]))
    renamed = model("latent", lambda x: pyro.plate("rows", x.shape[0]))
    scaled = model("z", lambda x: pyro.plate("data", 3000, subsample=x))
    runs = [
        am.evidence(am.Program(m), x, method=am.AIS(num_chains=4, num_temperatures=5)) for m in (plain, renamed, scaled)
    ]
    np.testing.assert_allclose(runs[1].log_weights, runs[0].log_weights)
    np.testing.assert_allclose(runs[2].log_weights, runs[0].log_weights)


@few_chains
def test_a_datapoint_that_fails_is_marked_and_spoils_no_other():
    model, x, _ = two_that_fail()
    method = am.AIS(num_chains=8, num_temperatures=5)
    evidence = am.evidence(am.Program(model), x, method=method)
    alone = am.evidence(am.Program(model), x[[0, 2]], method=method)
    assert np.isnan(evidence.log_evidence[1]) and np.isneginf(evidence.log_evidence[3])
    assert evidence.num_nonfinite[1] > 0 and evidence.num_nonfinite[0] == 0
    assert np.isfinite(evidence.log_evidence[[0, 2]]).all()
    spread = np.hypot(evidence.se[[0, 2]], alone.se)
    assert (np.abs(evidence.log_evidence[[0, 2]] - alone.log_evidence) < z_value(2) * spread).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "num_chains"),
        ({"num_temperatures": 2.5}, "num_temperatures"),
        ({"schedule": "cosine"}, "schedule"),
        ({"schedule": (0.0, 0.5, 1.0)}, "schedule"),
        ({"kernel": "hmc"}, "kernel"),
        ({"step_size": -1.0}, "step_size"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message):
    with pytest.raises(ArgumentError, match=message):
        am.AIS(**settings)
