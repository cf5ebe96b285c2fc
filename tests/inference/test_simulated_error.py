"""The error measured on simulated data, transferred to the real ones, against the true error."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, ReplayError
from amortize.inference import simulated_error as module
from tests.mixtures import MIXTURES
from tests.statistics import z_value

PLAIN = am.AIS(num_chains=4, num_temperatures=6, kernel=am.HMC(num_leapfrog=4), backend="fx")


@pytest.fixture(scope="module")
def analysis():
    return am.models.FactorAnalysis.random(latent_dim=2, data_dim=6, seed=0)


@pytest.fixture(scope="module")
def measured(analysis):
    """Data of the model itself, and their evidence from the prior with few temperatures."""
    x = analysis.simulate(60, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AmortizeWarning)
        warnings.filterwarnings("ignore", message="for .* draws carries nearly all", category=AmortizeWarning)
        return x, am.evidence(analysis.program(), x, method=PLAIN, start="prior", error="simulated")


def test_the_transferred_error_is_at_least_the_true_one(analysis, measured):
    x, evidence = measured
    errors = analysis.log_evidence(x).detach().double().numpy() - evidence.log_evidence
    noise = np.hypot(errors.std(ddof=1) / np.sqrt(len(x)), evidence.simulated.se)
    assert errors.mean() > 0.1  # short runs from the prior are visibly too low
    assert evidence.simulated.mean > errors.mean() - z_value() * noise
    assert evidence.simulated.mean < 10 * errors.mean()


def test_the_error_says_what_it_is(measured):
    _, evidence = measured
    found = evidence.simulated
    assert "(Monte Carlo)" in str(evidence) and "transferred, no bound" in str(evidence)
    assert found.errors.shape == (60,) and found.mean == pytest.approx(found.errors.mean())
    assert found.se == pytest.approx(found.errors.std(ddof=1) / np.sqrt(60))
    assert found.warnings == () and found.outside == 0
    assert found.sandwich.exact and evidence.upper is None  # nothing is a bound on the real data


def test_without_it_nothing_is_simulated(analysis, measured):
    x, with_error = measured
    evidence = am.evidence(analysis.program(), x, method=am.ImportanceSampling(num_draws=10), start="prior")
    assert evidence.simulated is None and "simulated" not in str(evidence)
    again = am.evidence(analysis.program(), x, method=PLAIN, start="prior")
    np.testing.assert_array_equal(again.log_evidence, with_error.log_evidence)


def test_data_unlike_the_models_own_are_warned_of(analysis):
    x = 20 + analysis.simulate(60, seed=3)
    with pytest.warns(AmortizeWarning) as seen:
        evidence = am.evidence(analysis.program(), x, method=PLAIN, start="prior", error="simulated")
    assert evidence.simulated.outside > 0.9 and "doubtful: the evidence of" in str(evidence)
    assert any("lies far outside that of data simulated from the model" in str(warning.message) for warning in seen)


def test_data_that_are_harder_are_warned_of(analysis):
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=6, seed=0)
    analysis.set_best_encoder()
    x = analysis.simulate(60, seed=3)
    fine = am.evidence(analysis.program(), x, method=am.ImportanceSampling(num_draws=50), error="simulated")
    assert fine.simulated.harder == pytest.approx(1, abs=0.5)
    assert module._harder(np.full(4, 1.0), np.full(4, 0.2)) == 5
    assert module._harder(np.full(4, 1e-3), np.full(4, 1e-9)) == 1
    assert "harder" in module._doubts(0.0, 5.0)[0] and module._doubts(0.0, 1.5) == ()


@pytest.mark.parametrize(
    "method",
    [am.ImportanceSampling(num_draws=100), am.SMC(num_particles=32, pilot_particles=16)],
    ids=["importance sampling", "SMC"],
)
def test_any_method_has_a_simulated_error(analysis, method):
    """The estimate is the method's own; where it has no run in reverse, AIS bounds log p(x) from above."""
    x = analysis.simulate(40, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        found = am.evidence(analysis.program(), x, method=method, start="prior", error="simulated").simulated
    truth = analysis.log_evidence(torch.cat(found.sandwich.data)).detach().double().numpy()
    slack = found.upper - truth
    assert slack.mean() > -z_value() * slack.std(ddof=1) / np.sqrt(len(slack))
    assert (np.abs(found.estimate - truth) < 5).all()
    assert found.sandwich.method == ("ImportanceSampling" if isinstance(method, am.ImportanceSampling) else "AIS")


def normal(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_few_datapoints_are_simulated_often_and_of_many_some(monkeypatch):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    method = am.AIS(num_chains=4, num_temperatures=4, pilot=False, backend="eager")
    found = am.evidence(am.Program(normal), x, method=method, error="simulated").simulated
    assert len(found.errors) == 35
    monkeypatch.setattr(module, "MOST", 4)
    monkeypatch.setattr(module, "FEWEST", 4)
    found = am.evidence(am.Program(normal), x, method=method, error="simulated").simulated
    assert len(found.errors) == 4


def test_local_posteriors_are_fitted_to_simulated_data():
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    local = am.fit_local(am.Program(normal), x, num_steps=300)
    method = am.ImportanceSampling(num_draws=50)
    found = am.evidence(am.Program(normal), x, method=method, start=local, error="simulated").simulated
    assert abs(found.mean) < 0.05


def test_exact_evidence_has_no_error_to_simulate():
    case = MIXTURES["two-sites"]()
    assert am.evidence(am.Program(case.model), case.data, error="simulated").simulated is None


class Untried(am.ImportanceSampling):
    """Fails where it is asked for estimates."""

    def estimate(self, start, data, *, seed):
        raise AssertionError("estimated before it was known that data can be simulated")


def test_wrong_arguments_are_named_before_anything_is_estimated():
    x = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="error: expected one of"):
        am.evidence(am.Program(normal), x, error="bread")

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", -(x - z).abs())

    method = Untried()
    with pytest.raises(ReplayError, match="'likelihood' is a pyro"):
        am.evidence(am.Program(model), torch.zeros(4), method=method, error="simulated")


def test_what_serves_its_own_data_only_can_not_be_tried_on_simulated_ones(analysis):
    x = analysis.simulate(4, seed=1)
    bridge = am.Diffusion(num_steps=2, num_iterations=2, base="mean-field").fit(analysis.program(), x)
    with pytest.raises(ArgumentError, match=r"error: 'simulated' tries the method .* base='start'"):
        am.evidence(analysis.program(), x, method=bridge, error="simulated")


def test_a_stop_while_simulating_keeps_the_estimates(monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "bdmc", stopped)
    x = torch.zeros(4, dtype=torch.float64)
    with pytest.warns(AmortizeWarning, match="stopped before the error on simulated data"):
        evidence = am.evidence(am.Program(normal), x, method=am.ImportanceSampling(num_draws=10), error="simulated")
    assert np.isfinite(evidence.log_evidence).all() and evidence.simulated is None
