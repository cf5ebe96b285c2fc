"""Training objectives of each datapoint by itself: values, plates, and what kinds of programs they take."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ReweightedWakeSleep
from torch import nn

import amortize as am
from amortize.errors import (
    ContractError,
    DiscreteLatentError,
    GuideDataError,
    GuideMismatchError,
)
from amortize.inference.objectives import BOUNDS
from amortize.random import pyro_rng
from tests.problems import linear_vae
from tests.statistics import z_value

BY_SCORE = {"wake-sleep", "nvil", "vimco", "leave-one-out", "reinforce", "exact-elbo", "disarm", "relax"}
DISCRETE_ONLY = {"concrete-elbo", "exact-elbo", "disarm", "relax"}  # for guides that sample discrete latents alone
ANY = sorted(set(BOUNDS) - DISCRETE_ONLY)
PATHWISE = sorted(set(BOUNDS) - BY_SCORE)


def loss_on(objective, program: am.Program, x):
    data = program.prepare(x)
    return objective.on(program, data, seed=0), data


def conjugate(x, *, full_size: int | None = None) -> am.Program:
    """A standard normal observed with noise 1, and its exact posterior: each bound is log p(x_n) at every draw."""

    def plate(x):
        return pyro.plate("data", x.shape[0]) if full_size is None else pyro.plate("data", full_size, subsample=x)

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.zeros((), dtype=x.dtype))
        with plate(x):
            pyro.sample("z", dist.Normal(x / 2 + shift, 0.5**0.5))

    return am.Program(model, guide)


def log_p(x):
    return dist.Normal(torch.zeros((), dtype=x.dtype), 2**0.5).log_prob(x)


# Values


@pytest.mark.parametrize("objective", [am.IWAE(4), am.IWAE(4, gradient="standard"), am.WakeSleep(4)])
def test_the_bound_is_a_sum_over_datapoints_of_log_mean_weights(objective):
    """By hand, from the very draws that were made."""
    analysis, x = linear_vae(5)
    loss, data = loss_on(objective, analysis.program(), x)
    kept = []
    draw = loss.trained.particles
    loss.trained.particles = lambda *args, **kwargs: kept.append(draw(*args, **kwargs)) or kept[-1]
    with pyro_rng(0, "test"):
        bound = loss(data).bound
    z = kept[0].drawn.values["z"].detach().reshape(4, 5, 3)
    loc, scale = analysis.decoder(z)
    weights = dist.Normal(loc, scale).log_prob(x).sum(-1) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    weights = weights - dist.Normal(*analysis.encoder(x)).log_prob(z).sum(-1)
    torch.testing.assert_close(bound, weights.exp().mean(0).log().detach())


def test_the_bound_rises_with_the_particles_and_stays_below_the_evidence():
    analysis, x = linear_vae(200)
    truth = analysis.log_evidence(x).mean().item()
    means, errors = [], []
    for count in (1, 4, 16, 64):
        loss, data = loss_on(am.IWAE(count), analysis.program(), x)
        draws = np.array([loss.measured(data, 1, seed=seed).mean() for seed in range(8)])
        means.append(draws.mean())
        errors.append(draws.std(ddof=1) / len(draws) ** 0.5)
    assert abs(means[0] - analysis.guide_elbo(x).mean().item()) < z_value() * errors[0]
    assert (np.diff(means) > 0).all() and means[-1] < truth + z_value() * errors[-1]
    assert truth - means[-1] < 0.25 * (truth - means[0])


def test_pyros_wake_sleep_multiplies_weights_over_the_plate_and_is_lower():
    analysis, x = linear_vae(60)
    program = analysis.program()
    loss, data = loss_on(am.WakeSleep(num_particles=10), program, x)
    ours = loss.measured(data, 20, seed=0).sum()
    pyros = ReweightedWakeSleep(num_particles=10, vectorize_particles=False)
    with pyro_rng(0, "pyro"):
        theirs = -np.mean([pyros.loss(program.model, program.guide, x)[0] for _ in range(20)])
    assert theirs < ours - 5  # by about the gap of a datapoint, times their number
    assert ours < analysis.log_evidence(x).sum().item() + 1


@pytest.mark.parametrize("name", ANY)
def test_minibatches_and_subsampling_plates_have_the_same_value(name):
    """With an exact guide the importance-weighted bounds and A-MCVAE have no variance; the others stay below."""
    x = torch.linspace(-2, 2, 12, dtype=torch.float64)
    for rows in (slice(None), slice(0, 5)):
        bounds, exact = [], log_p(x[rows])
        for full_size in (None, 12_000):
            loss, data = loss_on(BOUNDS[name](), conjugate(x, full_size=full_size), x)
            with pyro_rng(0, "test"):
                terms = loss(data.rows(rows))
            torch.testing.assert_close(terms.loss.detach(), -terms.bound.mean())
            bounds.append(terms.bound)
        torch.testing.assert_close(*bounds)
        if name in ("iwae", "wake-sleep", "a-mcvae"):
            torch.testing.assert_close(bounds[0], exact)
        else:
            excess = bounds[0] - exact
            assert excess.mean() < z_value(2) * excess.std() / len(excess) ** 0.5


# Programs


class Mixture(nn.Module):
    """A group, a location in it, and data around it; the guide may sample the group or leave it out."""

    def __init__(self, *, samples_group: bool) -> None:
        super().__init__()
        self.samples_group = samples_group
        self.slope = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.centres = nn.Parameter(torch.tensor([-2.0, 1.0], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(x.new_ones(2) / 2))
            z = pyro.sample("z", dist.Normal(self.centres[k], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            if self.samples_group:
                pyro.sample("k", dist.Categorical(logits=torch.stack([-self.slope * x, self.slope * x], -1)))
            pyro.sample("z", dist.Normal(0.8 * x, 0.6))

    def log_evidence(self, x):
        parts = dist.Normal(self.centres, 1.25**0.5).log_prob(x.unsqueeze(-1))
        return (parts.logsumexp(-1) - np.log(2)).detach()


@pytest.mark.parametrize("objective", [am.IWAE(200), am.WakeSleep(200), am.LMCVAE(), am.AMCVAE()])
def test_discrete_latents_that_the_guide_leaves_out_are_summed_out(objective):
    mixture = Mixture(samples_group=False)
    x = torch.linspace(-3, 3, 40, dtype=torch.float64)
    loss, data = loss_on(objective, am.Program(mixture.model, mixture.guide), x)
    bound, exact = loss.measured(data, 20, seed=0).mean(), mixture.log_evidence(x).mean().item()
    tight = isinstance(objective, (am.IWAE, am.WakeSleep))
    assert exact - (0.01 if tight else 0.3) < bound < exact + 0.005


@pytest.mark.parametrize("name", PATHWISE)
def test_discrete_draws_have_no_path_and_are_refused(name):
    mixture = Mixture(samples_group=True)
    with pytest.raises(DiscreteLatentError, match=r"'k'.*'wake-sleep'"):
        am.fit(am.Program(mixture.model, mixture.guide), torch.linspace(-3, 3, 40).double(), objective=name)


def test_the_mean_field_elbo_has_no_score_for_discrete_draws_and_refuses_them():
    mixture, x = Mixture(samples_group=True), torch.linspace(-3, 3, 40).double()
    with pytest.raises(DiscreteLatentError, match=r"draws 'k'.*'graph-elbo'"):
        am.fit(am.Program(mixture.model, mixture.guide), x, objective="mean-field-elbo")


def test_wake_sleep_trains_a_guide_that_samples_discrete_latents():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(4 * k - 2, 1.0), obs=x)

    for sleep in (0.0, 0.5):

        def guide(x):
            slope = pyro.param("slope", torch.tensor(0.0))
            with pyro.plate("data", x.shape[0]):
                pyro.sample("k", dist.Bernoulli(logits=slope * x))

        program = am.Program(model, guide)
        x = torch.tensor([-2.0, -1.0, 1.0, 2.0]).repeat(25)
        objective = am.WakeSleep(num_particles=4, sleep=sleep)
        am.fit(program, x, objective=objective, num_steps=40, training=am.Training(learning_rate=0.3))
        assert 2 < float(program.param("slope")) < 7  # the exact posterior has slope 4


@pytest.mark.parametrize("name", ANY)
def test_hidden_and_constrained_latents_have_bounds_too(name):
    """A positive latent, and a masked sequence whose hidden end says nothing."""

    class Ragged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def model(self, x, seen):
            with pyro.plate("data", x.shape[0]):
                s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.3))
                with pyro.poutine.mask(mask=seen):
                    z = pyro.sample("z", dist.Normal(x.new_zeros(()), s))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x, seen):
            with pyro.plate("data", x.shape[0]):
                pyro.sample("s", dist.LogNormal(x.new_zeros(()), 0.3))
                with pyro.poutine.mask(mask=seen):
                    pyro.sample("z", dist.Normal(self.slope * x, 0.7))

    ragged = Ragged()
    x, seen = torch.linspace(-2, 2, 10).double(), torch.arange(10) < 7
    loss, data = loss_on(BOUNDS[name](), am.Program(ragged.model, ragged.guide), (x, seen))
    bound = loss.measured(data, 50, seed=0)
    exact = am.evidence(
        am.Program(ragged.model, ragged.guide), (x, seen), method=am.ImportanceSampling(20_000)
    ).log_evidence
    # unadjusted steps move what says nothing, too, and refinement does by the noise of its four draws
    unseen = {"iwae": 1e-9, "wake-sleep": 1e-9, "a-mcvae": 1e-9, "semi-amortized": 0.15}.get(name, 0.02)
    assert (np.abs(bound[7:]) < unseen).all()
    assert -0.02 < (exact - bound)[:7].mean() < 0.1


@pytest.mark.parametrize("name", ANY)
def test_a_latent_may_have_any_name(name):
    """Also the letter that the package's own code gives to all unconstrained latents."""

    def fitted(site):
        def model(x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample(site, dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            slope = pyro.param("slope", torch.tensor(0.3, dtype=torch.float64))
            with pyro.plate("data", x.shape[0]):
                pyro.sample(site, dist.Normal(slope * x, 0.7))

        pyro.clear_param_store()
        program = am.Program(model, guide)
        return am.fit(program, torch.linspace(-2, 2, 10).double(), objective=name, num_steps=2).history.elbo.to_numpy()

    assert (fitted("u") == fitted("z")).all()


@pytest.mark.parametrize("name", ["iwae", "wake-sleep", "a-mcvae", "mcd"])
def test_autoguides_and_whole_data_sets_train(name):
    from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    x = torch.linspace(-2, 2, 8)

    def local(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def regression(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(slope * torch.linspace(-1, 1, 8), 1.0), obs=x)

    for program in (
        am.Program(local, AutoNormal(local)),
        am.Program(regression, AutoMultivariateNormal(regression), whole=True),
    ):
        fitted = am.fit(program, x, objective=name, num_steps=20, training=am.Training(learning_rate=0.02))
        exact = am.evidence(program, x, method=am.ImportanceSampling(5000)).log_evidence.mean()
        assert fitted.history.elbo[:8].mean() < fitted.history.elbo[-8:].mean() < exact + 0.3


def test_a_guide_of_a_whole_data_set_has_both_gradients():
    scale = nn.Parameter(torch.tensor(0.5))

    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(slope, 1.0), obs=x)

    def guide(x):
        pyro.sample("slope", dist.Normal(x.sum() / 9, pyro.param("scale", scale)))

    x, slopes, num = torch.linspace(-1, 2, 8), [], 120
    for kind in ("dreg", "standard"):
        program = am.Program(model, guide, whole=True)
        loss, data = loss_on(am.IWAE(3, gradient=kind), program, x)
        rows = []
        for seed in range(num):
            program.zero_grad()
            with pyro_rng(seed, kind):
                loss(data).loss.backward()
            rows.append(float(next(program.parameters()).grad))
        slopes.append(rows)
    first, second = slopes
    se = np.hypot(np.std(first, ddof=1), np.std(second, ddof=1)) / num**0.5
    assert abs(np.mean(first) - np.mean(second)) < z_value() * se


@pytest.mark.parametrize("name", ANY)
def test_running_statistics_follow_each_batch_once(name):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))
            self.decoder = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4))

        def model(self, x):
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    normed = Normed()
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    am.fit(am.Program(normed.model, normed.guide), x, objective=name, num_steps=7)
    assert normed.encoder[1].num_batches_tracked == 7 and normed.decoder[1].num_batches_tracked == 7


def test_what_has_no_bound_is_refused():
    x = torch.linspace(-1, 1, 8)

    def model(x, scale=1.0):
        with pyro.plate("data", x.shape[0]), pyro.poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def amortized(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def own(x):
        loc = pyro.param("locs", torch.zeros(8))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def point(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Delta(loc.expand(x.shape[0])))

    with pytest.raises(ContractError, match=r"poutine\.scale"):
        am.fit(am.Program(lambda x: model(x, 0.3), amortized), x, objective="iwae")
    with pytest.raises(GuideDataError, match="entry a datapoint"):
        am.fit(am.Program(model, own), x, objective="iwae")
    with pytest.raises(GuideMismatchError, match="Delta"):
        am.fit(am.Program(model, point), x, objective="iwae")

    def bits(x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(DiscreteLatentError, match="has none"):
        loss_on(am.LMCVAE(), am.Program(bits, lambda x: None), x)
