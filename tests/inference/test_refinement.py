"""Refinement of guides: exact ELBOs, gaps closed, and nothing made worse."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError, DiscreteLatentError, GuideMismatchError
from amortize.inference.refining_langevin import looks
from tests.statistics import z_value

METHODS = ("gradient", "svi", "langevin")


@pytest.fixture(scope="module")
def lagging():
    """Factor analysis whose encoder is off by about half a standard deviation in every dimension."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=8, seed=0)
    analysis.set_best_encoder()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in analysis.encoder.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=noise))
    return analysis, analysis.simulate(24, seed=1)


@pytest.fixture(scope="module")
def refined(lagging):
    analysis, x = lagging
    return {method: am.refine(analysis.program(), x, method=method, num_steps=16, seed=1) for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_step_0_is_the_guide(lagging, refined, method):
    analysis, x = lagging
    error = refined[method].elbo[0] - analysis.guide_elbo(x).numpy()
    assert (np.abs(error) < z_value(len(x)) * refined[method].elbo_se[0]).all()
    assert (refined[method].gain[0] == 0).all() and refined[method].steps[0] == 0


def exact_elbo(analysis, x, result) -> np.ndarray:
    """That of the Gaussians which the maps in ``parameters`` make of the guide's."""
    parts = {name: torch.from_numpy(array) for name, array in result.parameters.items()}
    loc, scale = (value.detach().double() for value in analysis.encoder(x))
    white = (loc - parts["loc"]) / parts["scale"]
    mean = parts["loc"] + parts["scale"] * (parts["shift"] + parts["log_scale"].exp() * white)
    spread = scale * parts["log_scale"].exp()
    elbos = [
        analysis.closed_form().elbo(x[n : n + 1].double(), mean[n : n + 1], torch.diag(spread[n].square()))
        for n in range(len(x))
    ]
    return torch.cat(elbos).detach().numpy()


@pytest.mark.parametrize("method", ["gradient", "svi"])
def test_the_elbo_is_that_of_the_mapped_guide(lagging, refined, method):
    analysis, x = lagging
    result = refined[method]
    error = result.elbo[-1] - exact_elbo(analysis, x, result)
    assert (np.abs(error) < z_value(len(x)) * result.elbo_se[-1]).all()


def test_without_the_jacobian_the_elbo_is_another(lagging, monkeypatch):
    monkeypatch.setattr("amortize.inference.refining.log_det", lambda maps: torch.zeros_like(maps.shift[:, 0]))
    analysis, x = lagging
    result = am.refine(analysis.program(), x, num_steps=6, seed=1)
    error = result.elbo[-1] - exact_elbo(analysis, x, result)
    assert (np.abs(error) > z_value(len(x)) * result.elbo_se[-1]).any()


@pytest.mark.parametrize(("method", "share"), [("gradient", 0.8), ("svi", 0.9)])
def test_most_of_the_amortization_gap_is_closed_and_no_more(lagging, refined, method, share):
    analysis, x = lagging
    exact = exact_elbo(analysis, x, refined[method])
    guide, best = analysis.guide_elbo(x).numpy(), analysis.best_mean_field_elbo(x).numpy()
    assert (exact <= best + 1e-6).all()
    assert share < (exact - guide).sum() / (best - guide).sum() <= 1


def test_full_maps_go_beyond_the_mean_field(lagging):
    analysis, x = lagging
    result = am.refine(analysis.program(), x, stretch="full", method="svi", num_steps=25)
    gap = analysis.log_evidence(x).numpy() - result.elbo[-1]
    assert gap.mean() < 0.3 * analysis.approximation_gap(x).mean().item()
    assert (gap > -z_value(len(x)) * result.elbo_se[-1] - 1e-3).all()


def test_langevin_steps_raise_a_lower_bound(lagging, refined):
    analysis, x = lagging
    result, evidence = refined["langevin"], analysis.log_evidence(x).numpy()
    assert (result.elbo <= evidence + z_value(result.elbo.size) * result.elbo_se).all()
    assert (np.diff(result.curve.elbo[1:]) > 0).all() and result.refined.all()
    left = evidence.mean() - result.curve.elbo
    assert left.iloc[-1] < 0.5 * left.iloc[0]


def quartic(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z**2, 0.5), obs=x)


def test_langevin_steps_do_not_run_off_in_tails_lighter_than_a_gaussians():
    def wide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(0.3 * x, 2.0))

    x = torch.linspace(-1.0, 5.0, 24, dtype=torch.float64)
    result = am.refine(am.Program(quartic, wide), x, method="langevin", num_steps=8)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, 0.5).log_prob(x[:, None])
    evidence = (joint.logsumexp(-1) + (z[1] - z[0]).log()).numpy()
    assert (result.gain > -z_value(result.gain.size) * result.gain_se - 1e-9).all()
    assert result.gain.min() > -1.0  # whole drifts lose hundreds of nats and more
    assert (result.elbo <= evidence + z_value(result.elbo.size) * result.elbo_se).all()
    assert result.gain[-1].mean() > 10.0


def test_langevin_is_looked_at_in_doublings():
    assert looks(1) == [0, 1] and looks(8) == [0, 1, 2, 4, 8] and looks(20) == [0, 1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("method", METHODS)
def test_an_exact_guide_is_left_where_it_is(method):
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=5, seed=0)
    x = analysis.simulate(30, seed=2)
    result = am.refine(analysis.program("exact"), x, method=method, num_steps=4)
    np.testing.assert_allclose(result.elbo[-1], analysis.log_evidence(x), atol=0.02)
    assert result.refined.mean() < 0.2 and (result.gain[-1][~result.refined] == 0).all()


class Curved(torch.nn.Module):
    """A banana, narrow across, under a guide that is far too wide and off: steps of a Gaussian's size overshoot."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a.square(), 0.2))
            pyro.sample("x", dist.Normal(a + b, 0.1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("a", dist.Normal(0.2 * x, 1.0))
            pyro.sample("b", dist.Normal(0.5 * x, 1.0))


@pytest.mark.parametrize("method", METHODS)
def test_no_datapoint_is_made_worse(method):
    curved, x = Curved(), torch.linspace(-1, 5, 40, dtype=torch.float64)
    result = am.refine(am.Program(curved.model, curved.guide), x, method=method, num_steps=8, num_draws=32)
    assert (result.gain >= -3 * result.gain_se).all()
    assert (result.gain[-1] > 3 * result.gain_se[-1]).mean() > 0.5


def test_steps_too_long_without_a_check_do_harm(monkeypatch):
    """What the check is for: the same steps, each of them taken."""
    monkeypatch.setattr("amortize.inference.refining.beyond_noise", lambda gain: torch.ones(40, dtype=torch.bool))
    monkeypatch.setattr("amortize.inference.refining.MOST_RATE", 1.0)
    monkeypatch.setattr("amortize.inference.refining._Check.__call__", lambda self, maps: maps.shift.new_zeros(2, 40))
    curved, x = Curved(), torch.linspace(-1, 5, 40, dtype=torch.float64)
    result = am.refine(am.Program(curved.model, curved.guide), x, num_steps=8, num_draws=16)
    assert (result.gain < -3 * result.gain_se).any()


class Chained(torch.nn.Module):
    """Positive latents, the second site's guide reading the first draw, and a class that the guide samples."""

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.full((), 0.4, dtype=x.dtype)))
            a = pyro.sample("a", dist.Normal(2 * k - 1, 1.0))
            b = pyro.sample("b", dist.LogNormal(0.5 * a, 0.7))
            pyro.sample("x", dist.Normal(a + b, 0.6), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(logits=0.5 * x))
            a = pyro.sample("a", dist.Normal(0.2 * x + k - 0.5, 0.9))
            pyro.sample("b", dist.LogNormal(0.3 * (x - a), 0.8))


@pytest.mark.parametrize("discrete", ["sample", "enumerate"])
def test_any_guide_can_be_refined(discrete):
    chained, x = Chained(), torch.linspace(-1, 3, 12, dtype=torch.float64)
    program = am.Program(chained.model, chained.guide, discrete=discrete)
    draws = am.posterior(program, x, num_draws=4000)
    exact = (draws["lp"] - draws["log_q"]).mean(0)
    for method in METHODS:
        result = am.refine(program, x, method=method, num_steps=6)
        assert (np.abs(result.elbo[0] - exact) < z_value(12) * 1.1 * result.elbo_se[0]).all()
        assert (result.gain[-1] >= -3 * result.gain_se[-1]).all() and result.gain[-1].mean() > 0.1
        sites = result.draws(50)
        assert sites["b"].shape == (50, 12) and (sites["b"] > 0).all() and set(np.unique(sites["k"])) <= {0.0, 1.0}


def test_autoguides_can_be_refined():
    analysis = am.models.FactorAnalysis.random(latent_dim=2, data_dim=5, seed=0)
    x = analysis.simulate(6, seed=2)
    program = am.Program(analysis.model, pyro.infer.autoguide.AutoNormal(analysis.model))
    result = am.refine(program, x, num_steps=8)
    assert (result.gain[-1] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_nearer_to_the_posterior(lagging, refined, method):
    analysis, x = lagging
    exact = analysis.posterior(x)[0].numpy()
    off = [
        np.abs(draws["z"].mean(0) - exact).mean()
        for draws in (am.posterior(analysis.program(), x), refined[method].draws())
    ]
    assert off[1] < 0.5 * off[0]


def test_a_datapoint_that_is_nowhere_finite_spoils_no_other():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("likelihood", torch.where(x > 5, torch.full_like(x, float("nan")), -0.5 * (x - z) ** 2))

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    for method in METHODS:
        result = am.refine(am.Program(model, guide), torch.tensor([1.5, 9.0, -1.0]), method=method, num_steps=5)
        assert np.isnan(result.elbo[:, 1]).all() and not result.refined[1]
        assert np.isfinite(result.elbo[:, [0, 2]]).all() and (result.gain[-1][[0, 2]] > 0).all()
        assert np.isfinite(result.curve.elbo).all()


def test_the_curve_says_what_it_took(refined):
    for result in refined.values():
        curve = result.curve
        assert list(curve.columns) == ["step", "elbo", "elbo_se", "gain", "gain_se", "seconds", "num_gradients"]
        assert curve.num_gradients.iloc[0] == 0 and (np.diff(curve.num_gradients) > 0).all()
        np.testing.assert_allclose(curve.gain, (result.elbo - result.elbo[0]).mean(1), atol=1e-3)


def test_the_same_seed_gives_the_same_numbers(lagging):
    analysis, x = lagging
    runs = [am.refine(analysis.program(), x, num_steps=3, seed=seed) for seed in (3, 3, 4)]
    assert (runs[0].elbo == runs[1].elbo).all() and (runs[0].elbo != runs[2].elbo).any()
    draws = [run.draws(5, seed=1)["z"] for run in runs]
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "newton"}, "method"),
        ({"stretch": "round"}, "stretch"),
        ({"stretch": "full", "method": "langevin"}, "no map"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_draws": 1}, "num_draws"),
        ({"seed": -1}, "seed"),
    ],
)
def test_arguments_are_checked(lagging, arguments, message):
    analysis, x = lagging
    with pytest.raises(ArgumentError, match=message):
        am.refine(analysis.program(), x, **arguments)


def test_there_must_be_a_guide_and_something_to_move(lagging):
    analysis, x = lagging
    with pytest.raises(GuideMismatchError, match="no guide"):
        am.refine(am.Program(analysis.model), x)

    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("k", dist.Bernoulli(logits=x))

    with pytest.raises(DiscreteLatentError, match="nothing to refine"):
        am.refine(am.Program(model, guide), torch.zeros(4))
