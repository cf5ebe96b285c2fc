"""Distortion and rate of a program in training: closed forms, other densities of the same draws, masks and plates."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.distributions import kl_divergence

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, DiscreteLatentError
from amortize.program import rates
from amortize.program.rates import RatedRun, require_rates
from amortize.program.trained import TrainedProgram
from amortize.random import pyro_rng
from tests.problems import PROBLEMS, linear_vae, reads_draws
from tests.programs import PROGRAMS
from tests.statistics import z_value

STEPS = 4
LENGTHS = torch.tensor([4, 1, 2, 3, 4])
X = torch.tensor(np.random.default_rng(0).normal(size=(5, STEPS)))


def model(x, lengths):
    """A normal latent and its observation at each step; steps past the end are masked."""
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[:, t])


def guide_of(*, masked: bool):
    """Off the prior, and far from it where nothing is seen."""

    def guide(x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(STEPS):
                seen = t < lengths
                with poutine.mask(mask=seen if masked else True):
                    pyro.sample(f"z{t}", dist.Normal(torch.where(seen, 0.8 * x[:, t], 5.0), 0.2**0.5))

    return guide


def run_of(program: am.Program, x, num_particles: int = 1, seed: int = 0) -> RatedRun:
    data = program.prepare(x)
    with pyro_rng(seed, "test"), program.evaluating():
        return RatedRun.of(program, program.structure(data), data, num_particles)


def suits(name: str) -> bool:
    """Whether the program of a case has a guide of latents that can all be differentiated through."""
    case = PROGRAMS[name]()
    if case.guide is None:
        return False
    program = case.program()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmortizeWarning)
        data = program.prepare(case.data)
        structure = program.structure(data)
    return not structure.discrete and program.bound is None and not program.whole and not program.guide.per_datapoint


# The same draws by other code


@pytest.mark.filterwarnings("ignore::amortize.errors.AmortizeWarning")
@pytest.mark.parametrize("name", [name for name in PROGRAMS if suits(name)])
def test_it_is_log_p_less_log_q_at_every_draw_where_no_divergence_is_known(name, monkeypatch):
    """The densities of a program in training, row by row, two particles of each datapoint."""
    monkeypatch.setattr(rates, "_divergence", lambda q, p: None)
    case = PROGRAMS[name]()
    program = case.program()
    data = program.prepare(case.data)
    trained = TrainedProgram(program, data, pathwise=True)
    with pyro_rng(0, "test"), program.evaluating(), torch.no_grad(), trained.filled():
        run = RatedRun.of(program, trained.structure, data, 2)
        folded = data.fold(2)
        log_joint, outside = trained.log_joint_at(folded, run.values)
        log_q = trained.guide.log_density(folded, run.values)
    torch.testing.assert_close(-run.distortion - run.rate, log_joint - log_q, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(run.outside, outside)


# Closed forms


def test_the_rate_of_a_diagonal_gaussian_is_its_divergence_latent_by_latent():
    analysis, x = linear_vae(20)
    mean, scale = analysis.encoder(x)
    run = run_of(analysis.program(), x)
    torch.testing.assert_close(run.rates["z"], 0.5 * (mean**2 + scale**2 - 1) - scale.log().expand_as(mean))
    loc, noise = analysis.decoder(run.values["z"])
    torch.testing.assert_close(run.distortion, -dist.Normal(loc, noise).log_prob(x).sum(-1))


def test_distortion_and_rate_are_the_elbo_of_a_linear_vae():
    analysis, x = linear_vae(20)
    with torch.no_grad():
        run = run_of(analysis.program(), x, 4000)
    elbo = (-run.distortion - run.rate).reshape(4000, 20)
    se = elbo.std(0) / 4000**0.5
    assert ((elbo.mean(0) - analysis.guide_elbo(x)).abs() < z_value(20) * se).all()


@pytest.mark.parametrize("divergence", ["known", "sampled"])
def test_an_exact_guide_loses_nothing(divergence, monkeypatch):
    """With log q - log p of the draw each row is log p(x); with the divergence, the mean is."""
    if divergence == "sampled":
        monkeypatch.setattr(rates, "_divergence", lambda q, p: None)
    for name in ("normal-normal", "pixel-plate", "state-space"):
        problem, count = PROBLEMS[name](), 1 if divergence == "sampled" else 4000
        run = run_of(problem.program(guide=True), problem.data, count)
        elbo = (-run.distortion - run.rate).reshape(count, -1).numpy()
        se = elbo.std(0) / count**0.5
        assert (np.abs(elbo.mean(0) - problem.log_evidence) < z_value(len(se)) * se + 1e-9).all()


def test_a_plate_of_latents_is_a_rate_of_several_variables():
    problem = PROBLEMS["pixel-plate"]()
    run = run_of(problem.program(guide=True), problem.data, 2)
    loc, scale = problem.data / 0.49 / (1 + 1 / 0.49), (1 + 1 / 0.49) ** -0.5
    expected = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0)).repeat(2, 1)
    torch.testing.assert_close(run.rates["z"], expected)  # (B, 3), particle-major
    assert run.values["z"].shape == (3, 12)


GUIDES = {
    "as one Gaussian": lambda loc: dist.MultivariateNormal(loc, scale_tril=0.5 * torch.eye(3).double()),
    "as a flow": lambda loc: dist.TransformedDistribution(
        dist.Normal(0.0 * loc, 1.0).to_event(1), dist.transforms.AffineTransform(loc, 0.5, event_dim=1)
    ),
    "variable by variable": lambda loc: dist.Normal(loc, 0.5).to_event(1),
}


@pytest.mark.parametrize("guide", GUIDES)
def test_whatever_the_form_of_the_guide_its_rate_is_the_same(guide):
    """Three latents and three datapoints: sizes that would broadcast."""
    x = torch.linspace(-1, 2, 9, dtype=torch.float64).reshape(3, 3)

    def latent(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def encode(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", GUIDES[guide](0.5 * x))

    rate = run_of(am.Program(latent, encode), x, 5000).rate.reshape(5000, 3)
    exact = kl_divergence(dist.Normal(0.5 * x, 0.5), dist.Normal(0.0, 1.0)).sum(-1)
    se = rate.std(0) / 5000**0.5
    assert ((rate.mean(0) - exact).abs() < z_value(3) * se + 1e-9).all()
    assert (se > 0).all() == (guide != "variable by variable")


def test_a_latent_whose_prior_reads_another_is_rated_given_its_draw():
    program, x = reads_draws(4)
    run = run_of(program, x)
    guide = program.guide
    with pyro_rng(0, "test"):
        trace = poutine.trace(guide).get_trace(x)
    a = run.values["a"]
    torch.testing.assert_close(a, trace.nodes["a"]["value"])
    expected = kl_divergence(trace.nodes["b"]["fn"], dist.LogNormal(0.5 * a, 0.7))
    torch.testing.assert_close(run.rates["b"].squeeze(-1), expected)
    assert {name: rate.shape for name, rate in run.rates.items()} == {"a": (4, 1), "b": (4, 1)}


# Masks, plates, particles


def test_what_model_and_guide_hide_costs_nothing_and_the_rest_its_divergence():
    run = run_of(am.Program(model, guide_of(masked=True)), (X, LENGTHS))
    for t in range(STEPS):
        seen = t < LENGTHS
        exact = kl_divergence(dist.Normal(0.8 * X[:, t], 0.2**0.5), dist.Normal(0.0, 1.0))
        torch.testing.assert_close(run.rates[f"z{t}"].squeeze(-1), torch.where(seen, exact, 0.0))
    alone = run_of(am.Program(model, guide_of(masked=True)), (X[1:2, :], LENGTHS[1:2]))
    assert [float(alone.rates[f"z{t}"]) for t in range(1, STEPS)] == [0.0, 0.0, 0.0]


def test_a_guide_that_does_not_mask_pays_for_what_it_draws():
    run = run_of(am.Program(model, guide_of(masked=False)), (X, LENGTHS), 4000)
    rate = run.rate.reshape(4000, 5)
    means = torch.where(torch.arange(STEPS) < LENGTHS[:, None], 0.8 * X, 5.0)  # it draws around 5 where nothing is seen
    exact = kl_divergence(dist.Normal(means, 0.2**0.5), dist.Normal(0.0, 1.0)).sum(-1)
    se = rate.std(0) / 4000**0.5
    assert ((rate.mean(0) - exact).abs() < z_value(5) * se + 1e-9).all()


def test_a_mask_on_a_latent_that_counts_hides_no_rate():
    def counts(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=x > 0):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.3))

    x = X[:, 0]
    exact = kl_divergence(dist.Normal(0.8 * x, 0.3), dist.Normal(0.0, 1.0))
    torch.testing.assert_close(run_of(am.Program(counts, guide), x).rate, exact)


def test_particles_are_draws_of_their_own_particle_major():
    analysis, x = linear_vae(4)
    run = run_of(analysis.program(), x, 3)
    z = run.values["z"].reshape(3, 4, 3)
    mean, scale = analysis.encoder(x)
    assert len(torch.unique(z.detach())) == z.numel()
    assert ((z - mean).abs() < 6 * scale).all()  # each beside the mean of its own datapoint
    torch.testing.assert_close(run.rate.reshape(3, 4)[0], run.rate.reshape(3, 4)[2])


@pytest.mark.parametrize("name", ["subsample=", "subsample_size="])
def test_a_subsampling_plate_changes_no_row(name):
    case = PROGRAMS[name]()
    run = run_of(case.program(), case.data)
    x = case.program().prepare(case.data).args[0]
    torch.testing.assert_close(run.rate, kl_divergence(dist.Normal(x, 0.5), dist.Normal(0.0, 1.0)))
    torch.testing.assert_close(run.distortion, -dist.Normal(run.values["z"], 0.5).log_prob(x))


def test_what_stands_outside_the_plate_and_terms_of_the_loss_alone_are_kept_apart():
    def prior(x):
        pyro.factor("outside", torch.tensor(-3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("aside", z.detach() * 0.0 + 2.0, has_rsample=True)

    run = run_of(am.Program(prior, guide), torch.zeros(4), 3)
    assert float(run.outside) == -3.0
    assert float(run.auxiliary) == 8.0  # the sum over four datapoints, the mean over particles
    torch.testing.assert_close(run.rate, torch.zeros(12))


# Points


def test_the_rate_of_a_point_is_what_its_prior_asks():
    x = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2)

    def latent(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Laplace(x.new_zeros(2), 0.5).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def code(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(3 * x, event_dim=1))

    run = run_of(am.Program(latent, code), x, 2)
    torch.testing.assert_close(run.rates["z"], -dist.Laplace(0.0, 0.5).log_prob(3 * x).repeat(2, 1))
    torch.testing.assert_close(run.distortion, -dist.Normal(3 * x, 1.0).log_prob(x).sum(-1).repeat(2))


# What has no rate


def test_programs_without_such_a_split_are_refused():
    x = torch.tensor([0.1, -0.3, 1.2])

    def latent(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def classes(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + k, 1.0), obs=x)

    automatic = am.Program(latent, pyro.infer.autoguide.AutoNormal(latent))
    with pytest.raises(ArgumentError, match="distortion and rate are those of an amortized guide"):
        require_rates(automatic, automatic.structure(automatic.prepare(x)))
    summed = am.Program(classes, normal_guide)
    with pytest.raises(DiscreteLatentError, match="'k'"):
        require_rates(summed, summed.structure(summed.prepare(x)))


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def test_draws_without_a_path_are_refused():
    def latent(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mixture = dist.Categorical(torch.ones(len(x), 2))
            parts = dist.Normal(torch.stack([x, -x], -1), 1.0)
            pyro.sample("z", dist.MixtureSameFamily(mixture, parts))

    with pytest.raises(DiscreteLatentError, match=r"'z'.*can't be drawn with a gradient"):
        run_of(am.Program(latent, guide), torch.zeros(3))
