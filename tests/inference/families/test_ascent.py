"""The optimiser of families given by a draw, on posteriors whose best member is known, and on ones that break."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import amortize as am
from amortize.inference.families.ascent import Drawn, _Batch, ascend
from amortize.inference.families.density import GaussianDensity
from amortize.inference.families.family import Problem
from amortize.inference.families.values import values
from amortize.inference.starts import PriorStart
from amortize.random import generator
from tests.statistics import z_value


def problem_of(model, x, *, num_draws=8, num_steps=3000, seed=0):
    program = am.Program(model)
    data = program.prepare(x)
    log_joint = program.log_joint(data)
    return Problem(log_joint, PriorStart(log_joint), data, num_draws, num_steps, seed)


def normal(x):
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def evidence(x):
    return stats.norm(0, math.sqrt(1.25)).logpdf(x.numpy()).sum(1)


@pytest.fixture(scope="module")
def x():
    return torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5


def member(theta):
    return GaussianDensity(theta[:, :2], torch.diag_embed(theta[:, 2:].exp()))


def gaussian(theta, index, noise, *, num_draws=8):
    eps = torch.randn(num_draws // 2, len(theta), 2, generator=noise, dtype=theta.dtype)
    u = theta[:, :2] + theta[:, 2:].exp() * torch.cat([eps, -eps])
    return Drawn(u, member(theta.detach()).log_density(u))


def zeros(x, width=4):
    return torch.zeros(len(x), width, dtype=x.dtype)


@pytest.fixture(scope="module")
def ended(x):
    return ascend(problem_of(normal, x), zeros(x), gaussian, name="test")


def test_the_exact_posterior_is_found(x, ended):
    error = values(member(ended.theta), problem_of(normal, x), "test").mean(0).numpy() - evidence(x)
    assert ended.stopped.all()
    assert np.abs(error).max() < 0.002
    torch.testing.assert_close(ended.theta[:, :2], x / 1.25, atol=0.03, rtol=0)
    torch.testing.assert_close(ended.theta[:, 2:], torch.full_like(x, 0.5 * math.log(0.2)), atol=0.03, rtol=0)


def test_steps_gradients_and_the_trace_tell_the_same_story(x, ended):
    assert (ended.num_gradients >= 8 * ended.num_steps).all()
    assert ended.trace.num_gradients[-1] == ended.num_gradients.max()
    assert ended.trace.elbo.shape == (len(ended.trace.seconds), len(x))
    assert (np.diff(ended.trace.seconds) > 0).all() and (np.diff(ended.trace.num_gradients) > 0).all()
    assert (ended.trace.elbo[0] <= ended.trace.elbo[-1] + 0.05).all()


def test_one_that_begins_far_away_is_not_stopped_before_it_has_come(x):
    """A hundred of the posterior's sds away, where each window gains a lot."""
    theta = zeros(x)
    theta[:6, :2] = 45.0
    problem = problem_of(normal, x)
    ended = ascend(problem, theta, gaussian, name="test", rate=0.2)
    error = values(member(ended.theta), problem, "test").mean(0).numpy() - evidence(x)
    assert ended.stopped.all() and (np.abs(error) < 0.02).all()
    assert ended.num_steps[:6].min() > ended.num_steps[6:].max()


def test_too_few_steps_are_not_called_a_stop(x):
    ended = ascend(problem_of(normal, x, num_steps=30), zeros(x), gaussian, name="test")
    assert not ended.stopped.any() and (ended.num_steps == 30).all()


def test_steps_that_are_far_too_long_do_not_lose_what_there_was(x):
    """Begun at the optimum with a rate of ten sds: the best is kept."""
    best = torch.cat([x / 1.25, torch.full_like(x, 0.5 * math.log(0.2))], -1)
    problem = problem_of(normal, x, num_steps=400)
    ended = ascend(problem, best, gaussian, name="test", rate=5.0)
    error = values(member(ended.theta), problem, "test").mean(0).numpy() - evidence(x)
    assert (error > -0.01).all()


def test_a_datapoint_that_is_nowhere_finite_stays_put_unstopped_and_spoils_no_other(x):
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            fit = dist.Normal(z, 0.5).to_event(1).log_prob(x)
            pyro.factor("likelihood", torch.where(x[:, 0] > 50, torch.full_like(fit, math.nan), fit))

    broken = x.clone()
    broken[3] = 99.0
    ended = ascend(problem_of(model, broken), zeros(x), gaussian, name="test")
    good = torch.arange(len(x)) != 3
    assert not ended.stopped[3] and (ended.theta[3] == 0).all() and ended.num_steps[3] < 100
    assert ended.stopped[good].all()
    torch.testing.assert_close(ended.theta[good, :2], x[good] / 1.25, atol=0.03, rtol=0)


def test_draws_that_are_only_sometimes_finite_are_stepped_over(x):
    """Below a cliff the density is NaN: the others' steps lead on."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            fit = dist.Normal(z, 0.5).to_event(1).log_prob(x)
            pyro.factor("likelihood", torch.where(z[:, 0] < -2.5, torch.full_like(fit, math.nan), fit))

    ended = ascend(problem_of(model, x.abs()), zeros(x), gaussian, name="test")
    torch.testing.assert_close(ended.theta[:, :2], x.abs() / 1.25, atol=0.05, rtol=0)


def test_a_member_that_hides_some_of_its_log_density_is_seen_through(x):
    """Corruption: with log q halved, wider members seem better, and the true ELBO tells."""

    def lying(theta, index, noise):
        drawn = gaussian(theta, index, noise)
        return drawn._replace(log_q=0.5 * drawn.log_q)

    problem = problem_of(normal, x)
    ended = ascend(problem, zeros(x), lying, name="test")
    error = values(member(ended.theta), problem, "test").mean(0).numpy() - evidence(x)
    assert (error < -0.1).all()


def test_datapoints_do_not_depend_on_their_neighbours(x, ended):
    alone = ascend(problem_of(normal, x[4:5]), zeros(x)[4:5], gaussian, name="test")
    torch.testing.assert_close(ended.theta[4], alone.theta[0], atol=0.05, rtol=0)


def test_the_same_seed_gives_the_same_numbers(x):
    ends = [ascend(problem_of(normal, x, seed=s, num_steps=120), zeros(x), gaussian, name="t").theta for s in (3, 3, 4)]
    assert (ends[0] == ends[1]).all() and (ends[0] != ends[2]).any()


def two_points(theta, index, noise):
    """Weighted draws of N(-1, 1/4) and N(1, 1/4), the weight of the second sigmoid(theta)."""
    eps = torch.randn(1, len(theta), 1, generator=noise, dtype=theta.dtype)
    u = torch.cat([-1 + 0.5 * eps, 1 + 0.5 * eps])
    weight = torch.cat([torch.sigmoid(-theta), torch.sigmoid(theta)], -1).T
    own = [stats.norm.logpdf(u.numpy()[..., 0], loc, 0.5) for loc in (-1, 1)]
    log_q = np.logaddexp(*(np.log(w) + v for w, v in zip(weight.detach().numpy(), own, strict=True)))
    return Drawn(u, torch.as_tensor(log_q), weight)


def test_the_gradient_of_weights_is_that_of_the_elbo(x):
    """Against a difference of exact ELBOs, by quadrature."""

    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    value, theta = 0.7, 0.4

    def exact(theta):
        grid = np.linspace(-8, 8, 20001)
        share = 1 / (1 + math.exp(-theta))
        q = (1 - share) * stats.norm.pdf(grid, -1, 0.5) + share * stats.norm.pdf(grid, 1, 0.5)
        log_p = stats.norm.logpdf(grid) + stats.norm.logpdf(value, grid, 1)
        return np.trapezoid(np.where(q > 0, q * (log_p - np.log(np.maximum(q, 1e-300))), 0), grid)

    repeats = 4000
    data = torch.full((repeats, 1), value, dtype=torch.float64)
    problem = problem_of(model, data, num_draws=2)
    at = torch.full((repeats, 1), theta, dtype=torch.float64)
    slopes = _Batch(problem, two_points, torch.arange(repeats), at).gradient(at, generator(0, "noise")).flatten()
    truth = (exact(theta + 1e-4) - exact(theta - 1e-4)) / 2e-4
    error = float(slopes.std()) / math.sqrt(repeats)
    assert abs(float(slopes.mean()) - truth) < z_value() * error
    assert error < 0.1 * abs(truth)
