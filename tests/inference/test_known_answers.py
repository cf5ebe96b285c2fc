"""Evidence against answers known exactly: closed forms, enumeration, Kalman filter; guides with discrete sites."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from tests.mixtures import CENTRES, MIXTURES, MOVES, REAL, WEIGHTS
from tests.problems import PROBLEMS
from tests.statistics import z_value

BUDGETS = {"gaussian-mixture": (4000, 40)}
"""Chains and temperatures from the prior: where the posterior has several modes, chains must be many."""


@pytest.mark.parametrize("name", PROBLEMS)
def test_annealing_from_the_prior_comes_within_two_hundredths(name):
    """The error of the mean over datapoints, and each datapoint within its standard error."""
    problem = PROBLEMS[name]()
    chains, temperatures = BUDGETS.get(name, (96, 60))
    method = am.AIS(num_chains=chains, num_temperatures=temperatures, kernel=am.HMC(num_leapfrog=5))
    run = am.evidence(problem.program(), problem.data, method=method, start="prior", seed=1)
    error = run.log_evidence - problem.log_evidence
    assert abs(error.mean()) <= 0.02
    assert (np.abs(error) < z_value(len(error)) * run.se).all()


# Guides of a mixture with a latent: the class left out, sampled, and with the latent below it

X = torch.tensor([0.4, -1.1, 1.7], dtype=REAL)
SPREAD, NOISE = 0.6, 0.5


def mixture(x):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(CENTRES[k], SPREAD))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def class_left_out(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("z", dist.Normal(0.8 * x, 0.7))


def class_beside(x):
    with pyro.plate("data", x.shape[0]):
        pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=REAL)))
        pyro.sample("z", dist.Normal(0.8 * x, 0.7))


def class_above(x):
    with pyro.plate("data", x.shape[0]):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5], dtype=REAL)))
        pyro.sample("z", dist.Normal(0.5 * (x + CENTRES[k]), 0.7))


def log_q(guide, z, x):
    """The guide's density of z by hand, the class summed out."""
    if guide is class_above:
        weights = torch.tensor([0.2, 0.3, 0.5], dtype=REAL).log()
        return (weights + dist.Normal(0.5 * (x[:, None] + CENTRES), 0.7).log_prob(z[..., None])).logsumexp(-1)
    return dist.Normal(0.8 * x, 0.7).log_prob(z)


def log_p(z, x):
    prior = (WEIGHTS.log() + dist.Normal(CENTRES, SPREAD).log_prob(z[..., None])).logsumexp(-1)
    return prior + dist.Normal(z, NOISE).log_prob(x)


@pytest.mark.parametrize("guide", [class_left_out, class_beside, class_above])
def test_a_guides_density_sums_over_what_the_model_sums_over(guide):
    draws = am.posterior(am.Program(mixture, guide), X, num_draws=50)
    z = torch.tensor(draws["z"])
    torch.testing.assert_close(torch.tensor(draws["log_q"]), log_q(guide, z, X))
    torch.testing.assert_close(torch.tensor(draws["lp"]), log_p(z, X))


@pytest.mark.parametrize("guide", [class_left_out, class_beside, class_above])
def test_importance_sampling_from_such_guides_is_unbiased(guide):
    run = am.evidence(am.Program(mixture, guide), X, method=am.ImportanceSampling(num_draws=4000))
    spread = (SPREAD**2 + NOISE**2) ** 0.5
    exact = (WEIGHTS.log() + dist.Normal(CENTRES, spread).log_prob(X[:, None])).logsumexp(-1).numpy()
    ratio = np.exp(run.log_weights - exact)
    error = ratio.std(0, ddof=1) / np.sqrt(len(ratio))
    assert (np.abs(ratio.mean(0) - 1) < z_value(len(X)) * error).all()


# Draws of discrete latents


def test_discrete_draws_have_the_exact_conditional_given_the_latent():
    draws = am.posterior(am.Program(mixture, class_above), X, num_draws=4000)
    z = torch.tensor(draws["z"])
    p = (WEIGHTS.log() + dist.Normal(CENTRES, SPREAD).log_prob(z[..., None])).softmax(-1).numpy()
    for k in range(3):  # given each draw's z, the indicator of k has mean p and variance p (1 - p)
        excess = (draws["k"] == k) - p[..., k]
        error = np.sqrt((p[..., k] * (1 - p[..., k])).sum(0)) / len(excess)
        assert (np.abs(excess.mean(0)) < z_value(9) * error).all()


def smoothed(x: np.ndarray) -> np.ndarray:
    """P(k_t | x) of a hidden Markov chain by forward and backward recursions, (T, 3); x (T,)."""
    moves, like = MOVES.numpy(), np.exp(-0.5 * ((x[:, None] - CENTRES.numpy()) / 0.5) ** 2)
    forward, backward = [moves[0] * like[0]], [np.ones(3)]
    for row in like[1:]:
        forward.append((forward[-1] / forward[-1].sum()) @ moves * row)
    for row in like[:0:-1]:
        message = moves @ (row * backward[0])
        backward.insert(0, message / message.sum())
    both = np.array(forward) * np.array(backward)
    return both / both.sum(1, keepdims=True)


@pytest.mark.parametrize(("name", "num_draws"), [("hidden-markov", 2000), ("ragged", 2000)])
def test_draws_of_a_chain_have_the_smoothed_marginals(name, num_draws):
    """Contraction; beyond the end of a masked sequence states go on by the prior."""
    case = MIXTURES[name]()
    draws = am.posterior(am.Program(case.model), case.data, num_draws=num_draws)
    x = case.data[0].numpy()
    steps = x.shape[1]
    lengths = case.data[1].tolist() if len(case.data) > 1 else [steps] * len(x)
    for n, length in enumerate(lengths):
        exact = list(smoothed(x[n, :length]))
        while len(exact) < steps:
            exact.append(exact[-1] @ MOVES.numpy())
        for t, p in enumerate(exact):
            seen = np.bincount(draws[f"k_{t}"][:, n], minlength=3) / num_draws
            error = np.sqrt(p * (1 - p) / num_draws) + 1e-6
            assert (np.abs(seen - p) < z_value(3 * steps * len(x)) * error).all()


def test_neighbours_in_a_chain_are_drawn_together():
    """Pairs (k_0, k_1) against their exact joint; tiling and contraction are both long-run exact."""
    case = MIXTURES["two-sites"]()
    draws = am.posterior(am.Program(case.model), case.data, num_draws=4000)
    loc = CENTRES[:, None] + 0.5 * CENTRES
    joint = WEIGHTS.log()[:, None] + MOVES.log() + dist.Normal(loc, 0.7).log_prob(case.data[0][:, None, None])
    exact = joint.flatten(1).softmax(-1).numpy()
    for n, p in enumerate(exact):
        seen = np.bincount(3 * draws["j"][:, n] + draws["k"][:, n], minlength=9) / 4000
        assert (np.abs(seen - p) < z_value(9 * len(exact)) * np.sqrt(p * (1 - p) / 4000) + 1e-6).all()


def test_sampled_sites_come_from_the_guide():
    draws = am.posterior(am.Program(mixture, class_above, discrete="sample"), X, num_draws=4000)
    for k, p in enumerate((0.2, 0.3, 0.5)):
        error = np.sqrt(p * (1 - p) / 4000)
        assert (np.abs((draws["k"] == k).mean(0) - p) < z_value(9) * error).all()
    z, k = torch.tensor(draws["z"]), torch.tensor(draws["k"])
    expected = dist.Normal(0.5 * (X + CENTRES[k]), 0.7).log_prob(z) + torch.tensor([0.2, 0.3, 0.5]).log()[k]
    torch.testing.assert_close(torch.tensor(draws["log_q"]), expected, rtol=1e-6, atol=1e-6)


# Training


class MixtureVAE(torch.nn.Module):
    """Three classes in a latent of one dimension; the guide knows nothing of the class."""

    def __init__(self):
        super().__init__()
        self.centres = torch.nn.Parameter(torch.tensor([-0.5, 0.0, 0.5]))
        self.loc, self.scale = torch.nn.Linear(2, 1), torch.nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", x.shape[0]):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            z = pyro.sample("z", dist.Normal(self.centres[k], 0.4))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 0.3).expand((*z.shape, 2)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(self.loc(x).squeeze(-1), self.scale.exp()))


def test_a_mixture_vae_is_trained_with_its_class_summed_out():
    rng = torch.Generator().manual_seed(0)
    k = torch.randint(3, (300,), generator=rng)
    z = torch.tensor([-3.0, 0.0, 3.0])[k] + 0.4 * torch.randn(300, generator=rng)
    x = z[:, None] + 0.3 * torch.randn(300, 2, generator=rng)
    vae = MixtureVAE()
    program = am.Program(vae.model, vae.guide)
    with pytest.raises(ArgumentError, match=r"leaves out 'k'.*'enum-elbo'"):
        am.fit(program, x, objective="elbo", num_steps=1)
    settings = am.Training(learning_rate=0.03)
    fitted = am.fit(program, x, objective="enum-elbo", num_steps=300, training=settings)
    assert fitted.history["elbo"].iloc[-20:].mean() > fitted.history["elbo"].iloc[:5].mean() + 5
    centres = sorted(vae.centres.tolist())
    assert np.abs(np.array(centres) - [-3.0, 0.0, 3.0]).max() < 0.3
