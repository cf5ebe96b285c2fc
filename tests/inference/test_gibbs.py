"""Gibbs sweeps over discrete latents leave the tempered density invariant, and annealing with them is unbiased."""

from __future__ import annotations

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import amortize as am
from amortize.inference.annealing import make_conditionals
from amortize.inference.gibbs import gibbs
from amortize.inference.starts import PriorStart
from amortize.program.density import Latents
from amortize.random import generator
from tests.mixtures import CENTRES, REAL, WEIGHTS
from tests.statistics import FALSE_ALARM_RATE, z_value

BITS = 8
CODES = torch.tensor(list(itertools.product([0.0, 1.0], repeat=BITS)), dtype=REAL)
LOADINGS = 0.8 * torch.randn(BITS, 4, generator=torch.Generator().manual_seed(0), dtype=REAL)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=REAL) + LOADINGS[:4].sum(0)

few_chains = pytest.mark.filterwarnings("ignore:for .* draws carries nearly all:amortize.errors.AmortizeWarning")


def bits(x):
    with pyro.plate("data", x.shape[0]):
        b = pyro.sample("b", dist.Bernoulli(torch.full((BITS,), 0.4, dtype=REAL)).to_event(1))
        pyro.sample("x", dist.Normal(b @ LOADINGS, 0.8).to_event(1), obs=x)


def log_joint_of_bits(beta: float = 1.0) -> torch.Tensor:
    """Log p(b) + beta log p(x | b) of every code, (256, N)."""
    prior = dist.Bernoulli(torch.tensor(0.4, dtype=REAL)).log_prob(CODES).sum(-1)
    return prior[:, None] + beta * dist.Normal((CODES @ LOADINGS)[:, None], 0.8).log_prob(X).sum(-1)


def exact_bits() -> np.ndarray:
    return log_joint_of_bits().logsumexp(0).numpy()


def class_and_latent(x):
    """A class, a latent around its centre, three more bits, and what is seen of them together."""
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(CENTRES[k], 0.6))
        b = pyro.sample("b", dist.Bernoulli(torch.full((3,), 0.3, dtype=REAL)).to_event(1))
        pyro.sample("x", dist.Normal(z[:, None] + b @ LOADINGS[:3], 1.2).to_event(1), obs=x)


def exact_class_and_latent(x: np.ndarray) -> np.ndarray:
    """Given k and b, x is normal with a common part of variance 0.36."""
    codes, covariance = np.array(list(itertools.product([0, 1], repeat=3))), 0.36 + 1.44 * np.eye(4)
    terms = [
        np.log(WEIGHTS[k].item()) + stats.bernoulli(0.3).logpmf(code).sum()
        + stats.multivariate_normal(CENTRES[k].item() + code @ LOADINGS[:3].numpy(), covariance).logpdf(x)
        for k in range(3) for code in codes
    ]  # fmt: skip
    return special.logsumexp(terms, axis=0)


def sweep(model, x, latents: Latents, *, beta: float = 1.0, num_sweeps: int = 1):
    """Sweeps over rows that are copies of the datapoints of ``x``; the last one's move."""
    program = am.Program(model, discrete="sample")
    data = program.prepare(x)
    noise, beta = generator(0, "gibbs"), latents.u.new_full((len(latents.u),), beta)
    with program.evaluating():
        start = PriorStart(program.log_joint(data))
        conditionals = make_conditionals(start, data.fold(len(latents.u) // len(x)), 0)
        assert conditionals is not None
        for _ in range(num_sweeps):
            move = gibbs(latents, conditionals, beta, noise)
            latents = latents._replace(choices=move.choices)
    return move


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_a_sweep_from_exact_draws_leaves_them_exact(beta):
    num = 3000
    probability = log_joint_of_bits(beta).softmax(0).numpy()
    rng = np.random.default_rng(0)
    drawn = np.stack([rng.choice(256, num, p=p / p.sum()) for p in probability.T], 1)
    choices = CODES[torch.tensor(drawn).flatten()].long()
    moved = sweep(bits, X, Latents(torch.zeros(len(choices), 0, dtype=REAL), choices), beta=beta)
    after = (moved.choices @ 2 ** torch.arange(BITS - 1, -1, -1)).reshape(num, -1).numpy()
    assert (moved.num_changed > 0).double().mean() > 0.3
    for n, p in enumerate(probability.T):
        common = p * num > 10
        seen = np.append(np.bincount(after[:, n], minlength=256)[common], np.isin(after[:, n], np.where(~common)).sum())
        expected = np.append(p[common], p[~common].sum()) / p.sum() * num
        assert stats.chisquare(seen, expected).pvalue > FALSE_ALARM_RATE / (2 * len(X))


def test_a_sweep_reaches_the_posterior_from_anywhere_in_a_few():
    """A wrong kernel may leave exact draws alone by standing still: from all zeros, marginals become the exact ones."""
    num = 1000
    latents = Latents(torch.zeros(num * len(X), 0, dtype=REAL), torch.zeros(num * len(X), BITS, dtype=torch.long))
    seen = sweep(bits, X, latents, num_sweeps=30).choices.double().reshape(num, len(X), BITS).mean(0)
    exact = log_joint_of_bits().softmax(0).T @ CODES
    error = (exact * (1 - exact) / num).sqrt()
    assert bool(((seen - exact).abs() < z_value(seen.numel()) * error).all())


@few_chains
@pytest.mark.parametrize("num_temperatures", [3, 10])
def test_weights_of_bits_are_unbiased(num_temperatures):
    method = am.AIS(num_chains=1000, num_temperatures=num_temperatures)
    run = am.evidence(am.Program(bits, discrete="sample"), X, method=method, start="prior", seed=1)
    ratio = np.exp(run.log_weights - exact_bits())
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(ratio.size)


@few_chains
@pytest.mark.parametrize("num_temperatures", [3, 10])
def test_weights_of_a_class_beside_a_latent_are_unbiased(num_temperatures):
    method = am.AIS(num_chains=1000, num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=4))
    run = am.evidence(am.Program(class_and_latent, discrete="sample"), X, method=method, start="prior", seed=2)
    ratio = np.exp(run.log_weights - exact_class_and_latent(X.numpy()))
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(ratio.size)


@pytest.mark.parametrize("model", [bits, class_and_latent])
def test_annealing_with_gibbs_comes_within_two_hundredths(model):
    """1000 chains, 60 temperatures, standard error 0.006; summed out instead, the bits agree to rounding."""
    truth = exact_bits() if model is bits else exact_class_and_latent(X.numpy())
    method = am.AIS(num_chains=1000, num_temperatures=60, kernel=am.HMC(num_leapfrog=5))
    run = am.evidence(am.Program(model, discrete="sample"), X, method=method, seed=3)
    error = run.log_evidence - truth
    assert abs(error.mean()) <= 0.02
    assert (np.abs(error) < z_value(len(X)) * run.se).all()
    if model is bits:
        np.testing.assert_allclose(am.evidence(am.Program(model), X).log_evidence, truth)


def test_sweeps_alone_reject_nothing_and_are_not_called_frozen():
    method = am.AIS(num_chains=16, num_temperatures=30)
    run = am.evidence(am.Program(bits, discrete="sample"), X[:3], method=method, start="prior", seed=0)
    assert np.isnan(run.acceptance).all()
    assert not any("frozen" in warning for warning in run.warnings)


def exact_guide(x):
    """The posterior of class_and_latent without its bits, sampled: k, then z given k."""
    loc, variance = x.mean(-1), 0.36 + 0.49 / 4
    share = 0.36 / variance
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(logits=WEIGHTS.log() - (loc[:, None] - CENTRES) ** 2 / variance / 2))
        pyro.sample("z", dist.Normal(CENTRES[k] + share * (loc - CENTRES[k]), (0.36 * (1 - share)) ** 0.5))


def class_alone(x):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(CENTRES[k], 0.6))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 4), 0.7).to_event(1), obs=x)


@pytest.mark.parametrize("discrete", ["sample", "enumerate"])
@pytest.mark.parametrize("num_temperatures", [1, 10])
def test_the_exact_posterior_as_start_has_no_spread(discrete, num_temperatures):
    program = am.Program(class_alone, exact_guide, discrete=discrete)
    method = am.AIS(num_chains=4, num_temperatures=num_temperatures, kernel=am.HMC(num_leapfrog=3))
    run = am.evidence(program, X, method=method, start="guide")
    covariance = 0.36 + 0.49 * np.eye(4)
    terms = [
        np.log(WEIGHTS[k].item()) + stats.multivariate_normal([CENTRES[k].item()] * 4, covariance).logpdf(X.numpy())
        for k in range(3)
    ]
    expected = np.broadcast_to(special.logsumexp(terms, axis=0), run.log_weights.shape)
    np.testing.assert_allclose(run.log_weights, expected, rtol=1e-9, atol=1e-9)


def forbidden(x):
    """Two switches of which not both may be on, nor both off where x is large; no density at all where it is huge."""
    with pyro.plate("data", x.shape[0]):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5, dtype=REAL)))
        b = pyro.sample("b", dist.Bernoulli(torch.where(a > 0, 0.0, 0.5).to(REAL)))
        z = pyro.sample("z", dist.Normal(a + 2 * b, 1.0))
        off = torch.where((a + b == 0) & (x > 1), -torch.inf, 0.0) + torch.where(x > 9, -torch.inf, 0.0)
        pyro.factor("off", off.to(REAL))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@few_chains
def test_forbidden_states_are_left_out_and_make_no_nan():
    x = torch.tensor([0.3, 1.5, -0.7, 10.0], dtype=REAL)
    method = am.AIS(num_chains=500, num_temperatures=20)
    run = am.evidence(am.Program(forbidden, discrete="sample"), x, method=method, seed=4)
    centres, weights = np.array([0.0, 1.0, 2.0]), np.array([0.25, 0.5, 0.25])
    density = weights * stats.norm(centres, np.sqrt(2)).pdf(x.numpy()[:, None])
    density[1, 0] = 0.0
    good = slice(0, 3)
    assert not np.isnan(run.log_weights).any() and np.isneginf(run.log_evidence[3])
    error = run.log_evidence[good] - np.log(density.sum(1))[good]
    assert (np.abs(error) < z_value(3) * run.se[good]).all()


def test_a_row_without_a_possible_alternative_stays():
    x = torch.tensor([10.0, 0.5], dtype=REAL)
    choices = torch.tensor([[1, 0], [1, 0]])
    moved = sweep(forbidden, x, Latents(torch.zeros(2, 1, dtype=REAL), choices))
    assert moved.choices[0].tolist() == [1, 0] and moved.num_changed[0] == 0
    assert moved.choices[1].tolist() != [1, 1]
