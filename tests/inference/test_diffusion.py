"""Trained bridges as a method of evidence, against answers known exactly."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, DiscreteLatentError, TrainingError
from amortize.inference.bridge import KINDS
from amortize.inference.diffusion import TrainedDiffusion
from tests.problems import PROBLEMS
from tests.statistics import z_value

CASES = [("normal-normal", kind) for kind in KINDS] + [
    ("gamma-poisson", "mcd"),
    ("dirichlet-multinomial", "ldvi"),
    ("dependent-support", "uha"),
    ("pixel-plate", "dais"),
    ("state-space", "mcd"),
]
few_draws = pytest.mark.filterwarnings("ignore:for .* draws carries nearly all:amortize.errors.AmortizeWarning")


def short(**settings):
    """Little training, eagerly: tracing would take longer."""
    return am.Diffusion(
        **({"num_steps": 4, "num_iterations": 15, "hidden": (16,), "train_draws": 4, "backend": "eager"} | settings)
    )


def standard_error(values):
    return values.std(ddof=1) / np.sqrt(len(values))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_mean_weight_is_the_evidence_whatever_training_did(name, kind):
    problem = PROBLEMS[name]()
    method = short(kind=kind, num_draws=4000)
    evidence = am.evidence(problem.program(), problem.data, method=method, start="prior", seed=1)
    ratio = np.exp(evidence.log_weights - problem.log_evidence)
    assert abs(ratio.mean() - 1) < z_value(len(CASES)) * ratio.std(ddof=1) / np.sqrt(ratio.size)
    assert (evidence.lower <= evidence.log_evidence).all()  # by Jensen, on any draws
    np.testing.assert_allclose(evidence.lower, evidence.log_weights.mean(0))
    assert "trained on these data" in evidence.method


@pytest.fixture(scope="module")
def analysis():
    """Factor analysis whose encoder is off, so that its ELBO leaves something to gain."""
    model = am.models.FactorAnalysis.random(latent_dim=3, data_dim=8, seed=0)
    model.set_best_encoder()
    with torch.no_grad():
        model.encoder.bias += 0.1
        model.encoder.log_scale -= 0.3
    return model


@pytest.fixture(scope="module")
def fitted(analysis):
    """Trained on 256 datapoints from the guide, in batches."""
    settings = am.Diffusion(num_steps=6, num_iterations=250, num_draws=200, batch_size=64, train_draws=2, hidden=(32,))
    return settings.fit(analysis.program(), analysis.simulate(256, seed=1), seed=0)


def test_a_bridge_is_amortized_over_datapoints(analysis, fitted):
    """On data it has not seen it is a bound, and tighter than the guide's."""
    x = analysis.simulate(100, seed=2)
    evidence = am.evidence(analysis.program(), x, method=fitted, seed=5)
    exact, elbo = analysis.log_evidence(x).numpy(), analysis.guide_elbo(x).numpy()
    below = exact - evidence.lower
    assert below.mean() > -z_value(3) * standard_error(below)
    gain = evidence.lower - elbo
    assert gain.mean() > z_value(3) * standard_error(gain)
    assert below.mean() < 0.5 * (exact - elbo).mean()
    error = evidence.log_evidence - exact
    assert abs(error.mean()) < z_value(3) * standard_error(error) + 0.01


def test_training_raises_the_bound(analysis, fitted):
    x = analysis.simulate(100, seed=3)
    untrained = short(num_steps=6, num_iterations=1, learning_rate=1e-9, num_draws=200)
    before = am.evidence(analysis.program(), x, method=untrained, seed=5).lower
    after = am.evidence(analysis.program(), x, method=fitted, seed=6).lower
    assert (after - before).mean() > z_value() * standard_error(after - before)
    history = fitted.history
    assert len(history) == 250 and history[-50:].mean() > history[:10].mean()


def test_steps_and_score_have_moved_and_the_program_has_not(analysis, fitted):
    assert fitted.model.steps().betas.diff().std() > 0
    assert fitted.model.score.linear.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in fitted.model.parameters())
    assert all(parameter.requires_grad for parameter in analysis.parameters())


def test_the_same_seed_gives_the_same_numbers(analysis):
    x = analysis.simulate(8, seed=4)
    runs = [
        am.evidence(analysis.program(), x, method=short(num_iterations=3), seed=seed).log_weights for seed in (7, 7, 8)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).all()


def test_a_datapoint_is_estimated_alike_alone_and_among_others(analysis, fitted):
    x = analysis.simulate(40, seed=2)
    whole = am.evidence(analysis.program(), x, method=fitted, seed=1)
    alone = am.evidence(analysis.program(), x[7:9], method=fitted, seed=2)
    error = np.hypot(whole.se[7:9], alone.se)
    assert (np.abs(whole.log_evidence[7:9] - alone.log_evidence) < z_value(2) * error).all()


def test_gradients_are_counted(analysis, fitted):
    x = analysis.simulate(8, seed=2)
    used = am.evidence(analysis.program(), x, method=fitted)
    assert (used.num_gradients == 200 * 7).all()
    own = am.evidence(analysis.program(), x, method=short(num_draws=50))
    assert (own.num_gradients == 50 * 5 + (4 * 15 + 8) * 4 * 5).all()  # eight first step sizes are tried
    fewest = 50 * 5 + (4 * 15 + 8) * 4 * 5 + 8 * 100
    fits = am.evidence(analysis.program(), x, method=short(num_draws=50, base="full-covariance"))
    assert (fits.num_gradients > fewest).all()  # the Gaussians are fitted first


# Starts


def test_a_trained_full_covariance_base_finds_a_gaussian_posterior():
    """Then nothing is left between the bound and the evidence but the integrator's error, which training shrinks."""
    analysis = am.models.FactorAnalysis.random(latent_dim=3, data_dim=8, seed=0, dtype=torch.float64)
    x = analysis.simulate(5, seed=1)
    method = short(kind="uha", base="full-covariance", num_iterations=150, num_draws=500, backend="fx")
    evidence = am.evidence(analysis.program(guide=None), x, method=method, seed=0)
    gap = analysis.log_evidence(x).numpy() - evidence.lower
    assert (gap > -z_value(5) * evidence.se).all() and (gap < 0.03).all()
    assert "full-covariance base" in evidence.method


def test_a_local_posterior_is_kept_as_the_start(analysis):
    x = analysis.simulate(6, seed=1)
    program = analysis.program()
    local = am.fit_local(program, x, family="full-covariance")
    fitted = short(num_draws=200).fit(program, x, start=local)
    evidence = am.evidence(program, x, method=fitted, start=local)
    assert evidence.start == "local posterior"
    assert (np.abs(evidence.log_evidence - analysis.log_evidence(x).numpy()) < 0.02).all()


def test_a_trained_base_begins_at_a_local_posterior_of_its_family(analysis):
    x = analysis.simulate(6, seed=1)
    program = analysis.program()
    local = am.fit_local(program, x)
    fitted = short(base="mean-field", num_iterations=1, learning_rate=1e-9).fit(program, x, start=local)
    chart = fitted.model.base.chart(torch.arange(6))
    np.testing.assert_allclose(chart.loc, local.loc, atol=1e-5)
    np.testing.assert_allclose(chart.scale, local.scale_tril.diagonal(axis1=1, axis2=2), atol=1e-5)
    assert fitted.history[-1] == pytest.approx(local.elbo.mean(), abs=1.0)


def test_a_trained_base_serves_its_own_datapoints_only(analysis):
    x = analysis.simulate(6, seed=1)
    program = analysis.program()
    fitted = short(base="mean-field").fit(program, x)
    assert np.isfinite(am.evidence(program, x, method=fitted).lower).all()
    for other in (analysis.simulate(6, seed=2), analysis.simulate(9, seed=1)):
        with pytest.raises(ArgumentError, match="belongs to the datapoints it was trained on"):
            am.evidence(program, other, method=fitted)


def test_a_bridge_is_used_from_the_start_it_was_trained_from(analysis, fitted):
    with pytest.raises(ArgumentError, match="trained from the start 'guide' and is used from 'prior'"):
        am.evidence(analysis.program(), analysis.simulate(4), method=fitted, start="prior")
    other = am.models.FactorAnalysis.random(latent_dim=2, data_dim=8)
    with pytest.raises(ArgumentError, match="3 latent dimensions"):
        am.evidence(other.program(), analysis.simulate(4), method=fitted)


def test_a_bridge_is_used_on_data_of_the_width_it_was_trained_on(fitted):
    other = am.models.FactorAnalysis.random(latent_dim=3, data_dim=5)
    with pytest.raises(ArgumentError, match="trained on data of 8 numbers a datapoint"):
        am.evidence(other.program(), other.simulate(4), method=fitted)


# Data of other kinds


def test_a_whole_data_set_is_one_datapoint():
    """Linear regression: its weights' posterior is Gaussian, its evidence known."""
    gen = np.random.default_rng(0)
    x, y = torch.tensor(gen.normal(size=(20, 2))), torch.tensor(gen.normal(size=20))

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    exact = dist.MultivariateNormal(torch.zeros(20).double(), torch.eye(20) + x @ x.T).log_prob(y).item()
    method = short(kind="ldvi", base="mean-field", num_iterations=50, num_draws=1000, backend="fx")
    evidence = am.evidence(am.Program(model, whole=True), (x, y), method=method)
    assert abs(evidence.log_evidence[0] - exact) < z_value() * evidence.se[0] + 1e-3
    assert evidence.lower[0] < exact


def missing(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
        pyro.sample(
            "x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).mask(~x.isnan()).to_event(1), obs=x.nan_to_num()
        )


def test_missing_numbers_are_inputs_of_the_score():
    x = np.random.default_rng(0).normal(size=(64, 3))
    x[::2, 0] = np.nan
    program = am.Program(missing, allow_nan=True)
    fitted = short().fit(program, x, start="prior")
    assert fitted.model.features.dim == 4
    assert np.isfinite(am.evidence(program, x, method=fitted, start="prior").log_weights).all()


@few_draws
def test_a_datapoint_without_a_density_is_left_out_and_marked():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = np.array([0.3, np.nan, -0.5])
    with pytest.warns(AmortizeWarning, match="1 of 3 datapoints have no finite density"):
        fitted = short().fit(am.Program(model, allow_nan=True), x, start="prior")
    evidence = am.evidence(am.Program(model, allow_nan=True), x, method=fitted, start="prior")
    assert np.isnan(evidence.log_evidence[1]) and np.isfinite(evidence.log_evidence[[0, 2]]).all()


def test_arguments_that_can_not_be_replaced_in_place_run_all_the_same():
    """A list of strings, one a datapoint, is taken by a function of the user's."""

    def model(x, names):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
            shift = torch.tensor([float(len(name)) for name in names])
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    names = ["a", "bb", "ccc", "dddd"]
    program = am.Program(model, fold={1: lambda names, rows: [names[int(row)] for row in rows]})
    x = torch.tensor([1.0, 2.5, 2.0, 4.0])
    method = short(batch_size=2, num_iterations=5).fit(program, (x, names), start="prior")
    evidence = am.evidence(program, (x, names), method=method, start="prior")
    exact = dist.Normal(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2**0.5).log_prob(x).numpy()
    assert (np.abs(evidence.log_evidence - exact) < z_value(4) * evidence.se).all()


# Refusals


def test_sampled_discrete_latents_are_refused():
    problem = PROBLEMS["gaussian-mixture"]()
    with pytest.raises(DiscreteLatentError, match="'k' are sampled"):
        am.evidence(problem.program(), problem.data, method=short(), start="prior", discrete="sample")
    summed = am.evidence(problem.program(), problem.data, method=short(num_draws=1000), start="prior")
    assert (np.abs(summed.log_evidence - problem.log_evidence) < z_value(6) * summed.se).all()


def test_data_without_any_density_are_an_error():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0]), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = am.Program(model, allow_nan=True)
    with pytest.raises((TrainingError, am.errors.ContractError), match=r"finite|NaN"):
        short().fit(program, np.full(3, np.nan), start="prior")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hmc"}, "kind"),
        ({"base": "flow"}, "base"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_draws": 1.5}, "num_draws"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"train_draws": 0}, "train_draws"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"hidden": ()}, "hidden"),
        ({"hidden": (0,)}, "hidden"),
        ({"backend": "jax"}, "backend"),
    ],
)
def test_settings_are_checked_where_they_are_made(settings, message):
    with pytest.raises(ArgumentError, match=message):
        am.Diffusion(**settings)


def test_settings_are_written_down(fitted):
    assert am.Diffusion(kind="uha").settings()["kind"] == "uha"
    assert isinstance(fitted, TrainedDiffusion)
    assert fitted.settings()["diffusion"]["num_steps"] == 6
    assert set(fitted.settings()) == {"diffusion", "start"}


def test_a_path_that_left_the_range_of_numbers_has_weight_zero():
    """Where x > 0 the density is no number beyond two deviations: what comes there is lost, and it is counted."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.factor("hole", torch.where((z > 2) & (x > 0), torch.nan, 0.0) * z)

    program = am.Program(model)
    settings = am.Diffusion(kind="ula", num_steps=2, num_iterations=1, num_draws=400)
    bridge = settings.fit(program, torch.zeros(4), start="prior")
    evidence = am.evidence(program, torch.ones(1), method=bridge, start="prior")
    lost = int(evidence.num_nonfinite[0])
    assert 0 < lost < 100 and np.isneginf(evidence.log_weights[:, 0]).sum() == lost
    assert abs(evidence.log_evidence[0]) < 0.2 and np.isneginf(evidence.lower[0])
