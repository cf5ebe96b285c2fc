"""Mixtures against evidence by quadrature, where full covariance leaves a gap, and where it leaves none."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.families import mixture, mixture_start
from amortize.inference.families.family import Fit, Trace
from amortize.inference.families.mixture import Mixture, MixtureDensity
from tests.problems import Square
from tests.statistics import z_value

SQUARE = Square(mean=0.3, noise=0.25)


def one_mode_guide(x):
    """Knows the modes above 0 only."""
    with pyro.plate("data", x.shape[0]):
        loc = x.clamp_min(0.1).sqrt()
        pyro.sample("z", dist.Normal(loc, torch.full_like(loc, 0.05)).to_event(1))


@pytest.fixture(scope="module")
def x():
    return torch.tensor([[-0.4], [0.0], [0.3], [0.6], [1.0], [2.0]], dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted(x):
    return am.fit_local(am.Program(SQUARE.model), x, family="mixture")


def members(num=3, num_components=3, dim=2, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shape = (num, num_components)
    tril = torch.tril(torch.randn(*shape, dim, dim, generator=gen).double(), -1)
    tril = tril + torch.diag_embed(0.3 + torch.rand(*shape, dim, generator=gen).double())
    weights = torch.randn(shape, generator=gen).double().log_softmax(-1)
    return MixtureDensity(weights, 2 * torch.randn(*shape, dim, generator=gen).double(), tril)


def test_the_density_is_that_of_torch_and_of_its_own_draws():
    density = members()
    parts = torch.distributions.MultivariateNormal(density.loc, scale_tril=density.scale_tril)
    truth = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=density.log_weights), parts
    )  # fmt: skip
    u = density.draw(40_000, torch.Generator().manual_seed(1))
    assert density.shape == (3, 2) and u.shape == (40_000, 3, 2)
    torch.testing.assert_close(density.log_density(u[:50]), truth.log_prob(u[:50]))
    error = (u.mean(0) - truth.mean) / (truth.variance / len(u)).sqrt()
    assert error.abs().max() < z_value(6)
    below = (u[..., 0] < 0).double().mean(0)
    share = torch.distributions.Normal(density.loc[..., 0], density.scale_tril[..., 0, 0]).cdf(torch.tensor(0.0))
    exact = (share * density.log_weights.exp()).sum(-1)
    assert ((below - exact).abs() < z_value(3) * (exact * (1 - exact) / len(u)).sqrt()).all()


def test_members_that_are_not_finite_can_be_drawn_and_spoil_no_other():
    density = members()
    weights = density.log_weights.clone()
    weights[1] = math.nan
    broken = MixtureDensity(weights, density.loc, density.scale_tril)
    u = broken.draw(5, torch.Generator().manual_seed(0))
    value = broken.log_density(u)
    assert value[:, 1].isnan().all() and torch.isfinite(value[:, [0, 2]]).all()


def test_draws_of_each_component_are_weighed_like_draws_of_the_whole():
    density = members()
    noise = density.noise(20_000, torch.Generator().manual_seed(0))
    u, log_q = density.stratified(noise)
    torch.testing.assert_close(log_q[:60], density.log_density(u[:60]))
    each = log_q.reshape(20_000, 3, 3)
    drawn, scored = density.draw_scored(20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(scored[:60], density.log_density(drawn[:60]))
    weights = density.log_weights.exp().T
    mean, variance = (weights * each.mean(0)).sum(0), (weights.square() * each.var(0)).sum(0)
    error = (mean - scored.mean(0)).abs() / ((variance + scored.var(0)) / 20_000).sqrt()
    assert error.max() < z_value(3)


def test_rounding_makes_no_member_seem_better_than_it_is():
    """Corruption: in single precision L is too near singular to be solved with, and its own draws are scored right."""
    dim = 14
    tril = torch.eye(dim) * 0.1 + torch.tril(torch.ones(dim, dim), -1)
    density = MixtureDensity(torch.zeros(1, 1), torch.zeros(1, 1, dim), tril[None, None])
    entropy = dim * (math.log(0.1) + 0.5 * (1 + math.log(2 * math.pi)))
    u, log_q = density.draw_scored(2000, torch.Generator().manual_seed(0))
    _, stratified = density.stratified(density.noise(2000, torch.Generator().manual_seed(0)))
    assert not math.isclose(float(density.log_density(u).mean()), -entropy, abs_tol=1e3)
    for found in (log_q, stratified):
        assert abs(float(found.mean()) + entropy) < z_value(2) * math.sqrt(0.5 * dim / 2000)


def test_two_modes_leave_full_covariance_a_gap_and_mixtures_none(x, fitted):
    exact = SQUARE.log_evidence(x)
    full = am.fit_local(am.Program(SQUARE.model), x, family="full-covariance")
    assert ((exact - full.elbo)[2:] > 0.25).all()
    gap = exact - fitted.elbo
    assert fitted.converged.all()
    assert (gap < 0.04).all() and (gap > -z_value(6) * fitted.elbo_se - 1e-3).all()


def test_modes_have_their_shares(x, fitted):
    above = (fitted.draws(20_000, seed=1)["z"][..., 0] > 0).mean(0)
    assert (abs(above - SQUARE.moments(x)[0, :, 0])[3:] < 0.04).all()


def test_four_modes_in_two_dimensions(x):
    pairs = torch.cat([x[3:], x[3:].flip(0)], 1)
    exact = SQUARE.log_evidence(pairs)
    full = am.fit_local(am.Program(SQUARE.model), pairs, family="full-covariance")
    local = am.fit_local(am.Program(SQUARE.model), pairs, family="mixture")
    gap, left = exact - full.elbo, exact - local.elbo
    assert (gap > 0.4).all()
    assert (left < 0.25 * gap).all() and (left > -z_value(3) * local.elbo_se - 1e-3).all()


def test_a_guide_that_knows_one_mode_does_not_hide_the_other(x):
    local = am.fit_local(am.Program(SQUARE.model, one_mode_guide), x[4:], family=Mixture(num_components=2))
    assert local.settings["init"] == "guide"
    assert (SQUARE.log_evidence(x[4:]) - local.elbo < 0.04).all()


def test_where_the_posterior_is_gaussian_it_is_found():
    analysis = am.models.FactorAnalysis.random(latent_dim=4, data_dim=8, seed=0, dtype=torch.float64)
    data = analysis.simulate(8, seed=1)
    local = am.fit_local(analysis.program(), data, family=Mixture(num_components=2))
    error = local.elbo - analysis.log_evidence(data).detach().numpy()
    assert abs(error.mean()) < 0.01 and (error < z_value(8) * local.elbo_se + 1e-3).all()


def test_it_never_ends_below_its_gaussian(x, monkeypatch):
    """Corruption: an ascent that goes astray leaves the Gaussian that it began with."""

    def astray(problem, theta, draw, *, name, rate):
        ended = mixture_ascend(problem, theta, draw, name=name, rate=rate)
        return type(ended)(ended.theta + 3, *[getattr(ended, key) for key in list(vars(ended))[1:]])

    mixture_ascend = mixture.ascend
    monkeypatch.setattr(mixture, "ascend", astray)
    problem_x = x[4:]
    local = am.fit_local(am.Program(SQUARE.model), problem_x, family="mixture", num_steps=150)
    loc = local.parameters["loc"]
    assert (loc == loc[:, :1]).all()
    assert np.isfinite(local.elbo).all() and (SQUARE.log_evidence(problem_x) - local.elbo < 3).all()


def test_a_datapoint_that_is_nowhere_finite_spoils_no_other(x):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            fit = -0.5 * ((x[:, 0] - z.square()) / SQUARE.noise).square()
            pyro.factor("likelihood", torch.where(x[:, 0] > 5, torch.full_like(fit, math.nan), fit))

    data = torch.tensor([[1.0], [9.0], [0.5]], dtype=torch.float64)
    local = am.fit_local(am.Program(model), data, family=Mixture(num_components=2), num_steps=150)
    assert not np.isfinite(local.elbo[1]) and not local.converged[1]
    assert np.isfinite(local.elbo[[0, 2]]).all()


def test_the_cost_counts_every_gaussian():
    """Two datapoints: one Gaussian each, then three more each beside each other."""

    def fit(num, steps, elbo):
        count = torch.full((num,), steps)
        trace = Trace(np.array([1.0]), np.array([8.0 * steps]), np.array([elbo]))
        return Fit({}, torch.ones(num, dtype=torch.bool), count, 8 * count, trace=trace)

    both = mixture_start._added(fit(2, 100, [-5.0, -1.0]), fit(6, 50, [-4.0, -3.0, -2.0, math.nan, -9.0, -3.0]), 3)
    assert both.num_steps.tolist() == [150, 150] and both.num_gradients.tolist() == [2000, 2000]
    assert both.trace.num_gradients.tolist() == [800, 2000] and both.trace.seconds.tolist() == [1, 2]
    assert both.trace.elbo.tolist() == [[-5, -1], [-2, -1]]


def test_its_trace_and_cost_agree(fitted):
    assert fitted.trace_num_gradients[-1] == fitted.num_gradients.max()
    assert fitted.trace_elbo.shape == (len(fitted.trace_seconds), 6)
    assert (np.diff(fitted.trace_seconds) > 0).all()


def test_what_is_the_same_or_hopeless_becomes_a_spare():
    """Components 0 and 2 are one, 3 is hopeless; 1 stands by itself."""
    loc = torch.tensor([[[0.0], [5.0], [0.1], [9.0]]], dtype=torch.float64)
    tril = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    elbo = torch.tensor([[-1.0, -1.5, -1.2, -40.0]], dtype=torch.float64)
    assert mixture_start._hosts(loc, tril, elbo).tolist() == [[0, 1, 0, 0]]
    kl = mixture_start._kl(loc, tril)
    torch.testing.assert_close(kl[0, 0], torch.tensor([0.0, 12.5, 0.005, 40.5], dtype=torch.float64))


@pytest.mark.parametrize("number", [1, 2.5])
def test_the_number_of_components_is_checked(number):
    with pytest.raises(ArgumentError, match="num_components"):
        Mixture(num_components=number)
