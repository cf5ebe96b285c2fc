"""Sequential Monte Carlo against answers known exactly."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError
from amortize.inference.annealing import Movers, Plan
from amortize.inference.particles import begin, resample, reweigh
from amortize.inference.path import GeometricPath
from amortize.inference.smc_pilot import next_beta
from amortize.program.density import Latents
from tests.mixtures import MIXTURES
from tests.problems import CONJUGATE, PROBLEMS
from tests.statistics import z_value

NUM_RUNS = 40
NUM_CHECKS = 2 * len(PROBLEMS) + 5
few_particles = pytest.mark.filterwarnings("ignore::amortize.errors.AmortizeWarning")


def repeated(data: torch.Tensor, num: int) -> torch.Tensor:
    """Each datapoint ``num`` times over: as many independent runs."""
    return data.repeat(num, *([1] * (data.dim() - 1)))


def check_unbiased(evidence: am.Evidence, exact: np.ndarray) -> None:
    """Z_hat / Z is 1 on average, within its error over independent runs (those of one datapoint share no noise)."""
    ratio = np.exp(evidence.log_evidence - np.tile(exact, len(evidence.se) // len(exact)))
    assert abs(ratio.mean() - 1) < z_value(NUM_CHECKS) * ratio.std(ddof=1) / np.sqrt(len(ratio))


@few_particles
@pytest.mark.parametrize("conditional_ess", [0.4, 0.9])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_estimate_is_unbiased(name, conditional_ess):
    problem = PROBLEMS[name]()
    method = am.SMC(
        num_particles=40, pilot_particles=40, kernel=am.HMC(num_leapfrog=3), conditional_ess=conditional_ess
    )
    run = am.evidence(problem.program(), repeated(problem.data, NUM_RUNS), method=method, start="prior", seed=1)
    check_unbiased(run, problem.log_evidence)


@few_particles
@pytest.mark.parametrize(
    "settings", [{"kernel": am.ULA(), "num_moves": 2}, {"kernel": am.MALA()}, {"ess_threshold": 1.0}]
)
def test_it_is_unbiased_with_other_kernels_and_when_resampled_all_the_time(settings):
    problem = PROBLEMS["normal-normal"]()
    method = am.SMC(**{"num_particles": 40, "pilot_particles": 40, "conditional_ess": 0.7, **settings})
    run = am.evidence(problem.program(), repeated(problem.data, NUM_RUNS), method=method, start="prior", seed=3)
    check_unbiased(run, problem.log_evidence)


@few_particles
def test_it_is_unbiased_where_temperatures_repeat(monkeypatch):
    """Steps that rounding makes 0 move the particles all the same, and an unadjusted move has its weight there too."""
    problem = PROBLEMS["normal-normal"]()

    def repeating(start, data, settings, *, seed):
        num, steps = data.num_datapoints, 6
        betas = torch.tensor([0.0, 0.3, 0.3, 0.3, 0.6, 0.6, 1.0], dtype=torch.float64)
        scales = torch.ones(steps, num, 1, dtype=torch.float64)
        plan = Plan(betas.unsqueeze(-1).expand(-1, num), torch.full((steps, num), 0.8, dtype=torch.float64), scales)
        return plan, torch.full((num,), steps)

    monkeypatch.setattr("amortize.inference.smc._pilot", repeating)
    method = am.SMC(num_particles=40, kernel=am.ULA())
    run = am.evidence(problem.program(), repeated(problem.data, NUM_RUNS), method=method, start="prior", seed=3)
    check_unbiased(run, problem.log_evidence)


@pytest.mark.parametrize("name", CONJUGATE)
def test_the_exact_posterior_as_start_has_no_spread(name):
    problem = PROBLEMS[name]()
    method = am.SMC(num_particles=8, pilot_particles=8, kernel=am.HMC(num_leapfrog=3))
    run = am.evidence(problem.program(guide=True), problem.data, method=method, start="guide")
    expected = np.broadcast_to(problem.log_evidence, run.log_weights.shape)
    np.testing.assert_allclose(run.log_weights, expected, rtol=1e-9, atol=1e-9)
    assert len(run.path.betas) == 2


@pytest.mark.parametrize(
    ("name", "conditional_ess"), [("state-space", 0.9), ("state-space", 0.5), ("gamma-poisson", 0.5)]
)
def test_the_standard_error_of_one_run_is_the_spread_over_runs(name, conditional_ess):
    """Its square, times Z_hat squared, estimates the variance of Z_hat; rounding lets it err upward, by up to 10 %."""
    problem, num = PROBLEMS[name](), 300
    method = am.SMC(
        num_particles=64, pilot_particles=64, kernel=am.HMC(num_leapfrog=3), conditional_ess=conditional_ess
    )
    run = am.evidence(problem.program(), repeated(problem.data[1:2], num), method=method, start="prior", seed=2)
    ratio = np.exp(run.log_evidence - problem.log_evidence[1])
    reported, spread = np.sqrt(np.mean((ratio * run.se) ** 2)), ratio.std(ddof=1)
    error = z_value(6) * np.sqrt(np.mean((ratio / ratio.mean() - 1) ** 4) / spread**4 - 1) / (2 * np.sqrt(num))
    assert np.isneginf(run.log_weights).any()  # families have died out: there was resampling
    assert -error < reported / spread - 1 < 0.1 + error


def test_the_mean_family_weight_is_the_estimate():
    problem = PROBLEMS["state-space"]()
    run = am.evidence(problem.program(), problem.data, method=am.SMC(conditional_ess=0.5), start="prior")
    mean = np.logaddexp.reduce(run.log_weights, 0) - np.log(len(run.log_weights))
    np.testing.assert_allclose(mean, run.log_evidence)
    error = run.log_evidence - problem.log_evidence
    assert (np.abs(error) < z_value(len(error)) * run.se).all()


def test_datapoints_have_their_own_temperatures_and_stay_in_order():
    problem = PROBLEMS["normal-normal"]()
    x = torch.tensor([25.0, 0.5, -12.0, 0.4, 25.0], dtype=torch.float64)
    method = am.SMC(num_particles=10_000, kernel=am.HMC(num_leapfrog=4))
    run = am.evidence(problem.program(), x, method=method, start="prior")
    exact = dist.Normal(0.5, 4.25**0.5).log_prob(x).numpy()
    assert (np.abs(run.log_evidence - exact) < z_value(5) * run.se).all()
    steps = (run.path.betas < 1).sum(0)
    assert steps[0] > steps[2] > steps[1] and abs(int(steps[0]) - int(steps[4])) <= 2
    assert (np.diff(run.path.betas, axis=0) >= 0).all() and (run.path.betas[[0, -1]] == [[0], [1]]).all()
    waiting = run.path.betas[:-1] == 1
    assert np.isnan(run.path.spread[1:][waiting]).any() and np.isfinite(run.path.spread[1:][~waiting]).all()
    assert run.num_gradients[1] < run.num_gradients[0]


@few_particles
def test_a_datapoint_that_fails_is_marked_and_spoils_no_other():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            log_p = torch.where(x > 5, x.new_tensor(float("nan")), -0.5 * (x - z) ** 2)
            log_p = torch.where((x > 2) & (x < 5) & (z > 1), x.new_tensor(float("nan")), log_p)
            pyro.factor("likelihood", torch.where(x < -5, x.new_tensor(-float("inf")), log_p))

    x = torch.tensor([0.5, 9.0, -1.0, -9.0, 3.0])
    run = am.evidence(am.Program(model), x, method=am.SMC(num_particles=500, kernel=am.HMC(num_leapfrog=4)))
    assert np.isnan(run.log_evidence[1]) and np.isneginf(run.log_evidence[3])
    assert run.num_nonfinite[1] >= 500 and run.num_nonfinite[4] > 0 and run.num_nonfinite[0] == 0
    good = [0, 2, 4]
    density = dist.Normal(0.0, 2**0.5).log_prob(x[good]) + 0.5 * np.log(2 * np.pi)
    exact = density.numpy()
    exact[2] += dist.Normal(1.5, 0.5**0.5).cdf(torch.tensor(1.0)).log()  # what is NaN counts for nothing
    assert (np.abs(run.log_evidence[good] - exact) < z_value(3) * run.se[good]).all()


@few_particles
@pytest.mark.parametrize("name", ["categorical", "bits", "two-sites"])
def test_discrete_latents_alone(name):
    case = MIXTURES[name]()
    exact = case.by_hand(None, *case.data).numpy()
    method = am.SMC(num_particles=60, pilot_particles=60, conditional_ess=0.6)
    x = repeated(case.data[0], NUM_RUNS)
    run = am.evidence(am.Program(case.model, discrete="sample"), x, method=method, seed=5)
    check_unbiased(run, exact)


@few_particles
def test_a_class_beside_a_latent():
    problem = PROBLEMS["gaussian-mixture"]()
    program = am.Program(problem.model, discrete="sample")
    method = am.SMC(num_particles=60, pilot_particles=60, conditional_ess=0.6, kernel=am.HMC(num_leapfrog=3))
    check_unbiased(am.evidence(program, repeated(problem.data, NUM_RUNS), method=method, seed=6), problem.log_evidence)


def test_the_same_seed_gives_the_same_numbers():
    problem = PROBLEMS["beta-bernoulli"]()
    method = am.SMC(num_particles=32, pilot_particles=32, kernel=am.HMC(num_leapfrog=2))
    runs = [am.evidence(problem.program(), problem.data, method=method, seed=seed) for seed in (1, 1, 2)]
    assert (runs[0].log_weights == runs[1].log_weights).all()
    assert (runs[0].log_evidence != runs[2].log_evidence).any()


def test_a_leap_to_the_posterior_is_owned_up_to():
    problem = PROBLEMS["normal-normal"]()
    method = am.SMC(num_particles=64, max_temperatures=2, kernel=am.HMC(num_leapfrog=2))
    with pytest.warns(AmortizeWarning, match="leap there in one step"):
        run = am.evidence(problem.program(), problem.data, method=method, start="prior")
    assert len(run.path.betas) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_particles": 1}, "num_particles"),
        ({"num_moves": 0}, "num_moves"),
        ({"kernel": "hmc"}, "kernel"),
        ({"conditional_ess": 1.0}, "conditional_ess"),
        ({"ess_threshold": 1.5}, "ess_threshold"),
        ({"pilot_particles": 0}, "pilot_particles"),
        ({"max_temperatures": 0}, "max_temperatures"),
        ({"backend": "jit"}, "backend"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message):
    with pytest.raises(ArgumentError, match=message):
        am.SMC(**settings)


# Steps by themselves


def cloud(count: int = 200, num: int = 3):
    """Particles of a path whose log ratio is u, with a -inf and a NaN in the last datapoint."""

    def terms(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return -0.5 * u.square().sum(-1), u.sum(-1)

    u = torch.randn(count * num, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u[num - 1], u[2 * num - 1] = -torch.inf, torch.nan
    movers = Movers(GeometricPath(terms), None, am.HMC())
    return begin(movers, Latents(u, torch.zeros(len(u), 0, dtype=torch.long)), num)


def test_the_next_temperature_has_the_conditional_ess_asked_for():
    """For a normal log ratio of variance 1, CESS = exp(-step^2); a particle without a finite ratio has no say."""
    particles, beta = cloud(20000), torch.zeros(3, dtype=torch.float64)
    following = next_beta(particles, beta, 0.6)
    np.testing.assert_allclose(following, np.sqrt(-np.log(0.6)), atol=0.03)
    assert next_beta(particles, beta, 0.2).tolist() == [1.0, 1.0, 1.0]


def test_lost_particles_are_counted_and_left_out():
    particles = cloud()
    still = reweigh(particles, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(still.log_weights, particles.log_weights) and still.num_lost.tolist() == [0, 0, 0]
    after = reweigh(particles, torch.full((3,), 2.0, dtype=torch.float64))
    assert after.num_lost.tolist() == [0, 0, 1] and bool(torch.isneginf(after.log_weights[:2, 2]).all())
    again = resample(after, 0.5, torch.Generator().manual_seed(1))
    assert bool(torch.isfinite(again.state.ratio).all()) and bool((again.founders[:, 2] > 1).all())
    torch.testing.assert_close(again.log_weights.logsumexp(0), after.log_weights.logsumexp(0))


def test_only_uneven_datapoints_are_resampled():
    particles = cloud()
    after = reweigh(particles, torch.tensor([2.0, 0.1, 0.0], dtype=torch.float64))
    again = resample(after, 0.5, torch.Generator().manual_seed(1))
    assert not torch.equal(again.founders[:, 0], after.founders[:, 0])
    assert torch.equal(again.founders[:, 1:], after.founders[:, 1:])
    assert torch.equal(again.log_weights[:, 1:], after.log_weights[:, 1:])
    assert torch.equal(again.state.u.reshape(200, 3)[:, 1], after.state.u.reshape(200, 3)[:, 1])
