"""Annealed Langevin: weights that are exact though its kernel is not, against answers known exactly."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.annealing import anneal, make_movers
from amortize.inference.kernels import Parameters
from amortize.inference.langevin import plan_langevin
from amortize.inference.path import GeometricPath
from amortize.inference.starts import GuideStart, PriorStart
from amortize.random import generator
from tests.problems import PROBLEMS, two_that_fail
from tests.statistics import z_value

few_chains = pytest.mark.filterwarnings("ignore::amortize.errors.AmortizeWarning")
CHAINS = 1000
REVERSIBLE = ["normal-normal", "gamma-poisson", "state-space"]
"""Problems where inverse weights have a variance to speak of at few temperatures."""


def check_unbiased(ratio: np.ndarray, num_checks: int) -> None:
    """Z_hat / Z of independent paths, or its inverse in reverse: mean 1."""
    assert abs(ratio.mean() - 1) < z_value(num_checks) * ratio.std(ddof=1) / np.sqrt(ratio.size)


@few_chains
@pytest.mark.parametrize("name", PROBLEMS)
def test_mean_weight_is_the_evidence(name):
    problem = PROBLEMS[name]()
    method = am.Langevin(num_chains=CHAINS, num_temperatures=6)
    evidence = am.evidence(problem.program(), problem.data, method=method, start="prior", seed=1)
    check_unbiased(np.exp(evidence.log_weights - problem.log_evidence), len(PROBLEMS))


@pytest.mark.parametrize("name", REVERSIBLE)
def test_in_reverse_the_mean_inverse_weight_is_one_over_the_evidence(name):
    problem = PROBLEMS[name]()
    program, settings = problem.program(guide=True), am.Langevin(num_temperatures=20)
    data = program.prepare(problem.data)
    with program.evaluating():
        start = PriorStart(program.log_joint(data))
        plan, _ = plan_langevin(start, data, settings, seed=0)
        folded = data.fold(CHAINS)
        exact = GuideStart(program.guide_density(data)).draw(folded, 0, "exact")
        movers = make_movers(start, folded, am.ULA(), seed=0, backend="fx")
        run = anneal(movers, exact, plan, generator(0, "reverse"), reverse=True)
    check_unbiased(np.exp(problem.log_evidence - run.log_weights.numpy()), len(REVERSIBLE))


@few_chains
def test_with_discrete_latents_moved_by_gibbs():
    problem = PROBLEMS["gaussian-mixture"]()
    method = am.Langevin(num_chains=CHAINS, num_temperatures=10)
    evidence = am.evidence(problem.program(), problem.data, method=method, start="prior", discrete="sample")
    check_unbiased(np.exp(evidence.log_weights - problem.log_evidence), 1)


@few_chains
@pytest.mark.parametrize("kernel", [am.MALA(), am.HMC(num_leapfrog=1)])
def test_adjusted_steps_from_the_exact_posterior_have_no_spread(kernel):
    problem = PROBLEMS["normal-normal"]()
    method = am.AIS(num_chains=4, num_temperatures=10, kernel=kernel)
    evidence = am.evidence(problem.program(guide=True), problem.data, method=method, start="guide")
    np.testing.assert_allclose(evidence.log_weights, np.broadcast_to(problem.log_evidence, (4, 6)), rtol=1e-9)


@few_chains
def test_from_the_exact_posterior_only_the_corrections_spread():
    """They vanish with the step size, cubed; at a long step they are large, and the mean weight is right even so."""
    problem, spreads = PROBLEMS["normal-normal"](), {}
    for step_size in (0.05, 0.1, 1.0):
        method = am.Langevin(num_chains=CHAINS, num_temperatures=5, pilot=False, step_size=step_size)
        evidence = am.evidence(problem.program(guide=True), problem.data, method=method, start="guide")
        check_unbiased(np.exp(evidence.log_weights - problem.log_evidence), 3)
        spreads[step_size] = evidence.log_weights.std(0).mean()
    assert spreads[0.05] < 1e-3 < 0.1 < spreads[1.0]
    assert 2**2 < spreads[0.1] / spreads[0.05] < 2**4


def test_the_correction_is_the_log_metropolis_ratio():
    """Written out with the Gaussian densities of the step and of the step back, at each row's own map and step size."""
    gen = torch.Generator().manual_seed(0)
    precision = torch.tensor([[2.0, -0.7, 0.0], [-0.7, 1.5, 0.3], [0.0, 0.3, 0.8]], dtype=torch.float64)
    path = GeometricPath(lambda u: (-0.5 * u.square().sum(-1), -torch.cosh(u).sum(-1) - (u @ precision * u).sum(-1)))
    maps = torch.eye(3, dtype=torch.float64) + 0.3 * torch.randn(4, 3, 3, generator=gen, dtype=torch.float64)
    u = torch.randn(20, 3, generator=gen, dtype=torch.float64)
    beta, step = torch.full((20, 1), 0.6, dtype=torch.float64), torch.rand(20, 1, generator=gen, dtype=torch.float64)
    state = path.evaluate(u)
    moved, info = am.ULA().transition(state, path, Parameters(beta, step, maps, am.ULA()), gen)
    by_row = maps.repeat(5, 1, 1)

    def log_step(here, there):
        drift = torch.einsum("bij,bkj,bk->bi", by_row, by_row, here.gradient(beta))
        loc = here.u + 0.5 * step**2 * drift
        return dist.MultivariateNormal(loc, step.unsqueeze(-1) ** 2 * by_row @ by_row.mT).log_prob(there.u)

    change = moved.log_density(beta.squeeze(-1)) - state.log_density(beta.squeeze(-1))
    torch.testing.assert_close(info.log_correction, change + log_step(moved, state) - log_step(state, moved))
    torch.testing.assert_close(info.acceptance, info.log_correction.clamp(max=0).exp())
    assert info.log_correction.std() > 0.1


@pytest.fixture(scope="module")
def factor_analysis():
    analysis = am.models.FactorAnalysis.random(latent_dim=5, data_dim=20, seed=0)
    x = torch.tensor(analysis.program().simulate(torch.zeros(16, 20))[1]["x"])
    analysis.set_best_encoder()
    return analysis, x, analysis.log_evidence(x).detach().double().numpy()


@few_chains
def test_the_search_finds_step_sizes_that_no_fixed_acceptance_has(factor_analysis):
    """Long steps are right for few temperatures from far away, short ones for many from nearby."""
    analysis, x, exact = factor_analysis
    losses = {}
    for start, num_temperatures in (("prior", 50), ("guide", 100)):
        for acceptance in (None, 0.85, 0.99):
            method = am.Langevin(num_temperatures=num_temperatures, target_acceptance=acceptance, backend="fx")
            evidence = am.evidence(analysis.program(), x, method=method, start=start)
            losses[start, acceptance] = (exact - evidence.log_weights).mean()
    assert losses["prior", None] < 0.5 * losses["prior", 0.99]
    assert losses["guide", None] < 0.5 * losses["guide", 0.85]


def test_factor_analysis_at_a_fair_budget(factor_analysis):
    analysis, x, exact = factor_analysis
    method = am.Langevin(num_temperatures=200)
    evidence = am.evidence(analysis.program(), x, method=method, start="guide")
    assert abs((evidence.log_evidence - exact).mean()) < 0.05
    assert evidence.path is not None and evidence.path.acceptance.shape == (200, 16)
    weighted, pilot = 16 * 200, 2 * 4 * 200
    tried = (evidence.num_gradients - weighted - pilot) / (4 * 200)
    assert (tried == np.round(tried)).all() and (tried >= 2).all()


@few_chains
def test_a_datapoint_that_fails_is_marked_and_spoils_no_other():
    model, x, exact = two_that_fail()
    evidence = am.evidence(am.Program(model), x, method=am.Langevin(num_chains=64, num_temperatures=20))
    assert np.isnan(evidence.log_evidence[1]) and np.isneginf(evidence.log_evidence[3])
    error = np.abs(evidence.log_evidence[[0, 2]] - exact[[0, 2]])
    assert (error < z_value(2) * evidence.se[[0, 2]]).all() and evidence.num_nonfinite[1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "Langevin num_chains"),
        ({"schedule": "cubic"}, "Langevin schedule"),
        ({"target_acceptance": 1.0}, "target_acceptance"),
        ({"step_size": 0.0}, "Langevin step_size"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message):
    with pytest.raises(ArgumentError, match=message):
        am.Langevin(**settings)
