"""Latents under a mask: nothing is paid for what is hidden, in model, guide, annealing and local posteriors."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import stats

import amortize as am
from amortize.errors import GuideMismatchError

STEPS = 4
LENGTHS = torch.tensor([4, 1, 2, 3, 4])
X = torch.tensor(np.random.default_rng(0).normal(size=(5, STEPS)))
EXACT = np.array([stats.norm(0, 1.25**0.5).logpdf(row[:n]).sum() for row, n in zip(X.numpy(), LENGTHS, strict=True)])


def model(x, lengths):
    """A normal latent and its observation at each step, so that log p(x) is known; steps past the end are masked."""
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[:, t])


def positive_model(x, lengths):
    """The same on exp(z), whose support has a Jacobian."""
    with pyro.plate("data", len(x)):
        for t in range(STEPS):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z{t}", dist.LogNormal(x.new_zeros(()), 1.0))
                pyro.sample(f"x{t}", dist.Normal(z.log(), 0.5), obs=x[:, t])


def guide_of(family, *, masked=True, shift=0.0):
    """The exact posterior; where nothing is seen it is far from the prior."""

    def guide(x, lengths):
        with pyro.plate("data", len(x)):
            for t in range(STEPS):
                seen = t < lengths
                loc = torch.where(seen, 0.8 * x[:, t] + shift, 5.0)
                with poutine.mask(mask=seen if masked else True):
                    pyro.sample(f"z{t}", family(loc, 0.2**0.5))

    return guide


CASES = {"real": (model, dist.Normal), "positive": (positive_model, dist.LogNormal)}


@pytest.mark.parametrize("case", CASES)
def test_an_exact_guide_that_masks_has_weights_without_spread(case):
    program = am.Program(CASES[case][0], guide_of(CASES[case][1]))
    assert program.structure(program.prepare((X, LENGTHS))).hidden == tuple(f"z{t}" for t in range(STEPS))
    for method in (am.ImportanceSampling(20), am.AIS(num_chains=4, num_temperatures=5)):
        result = am.evidence(program, (X, LENGTHS), method=method)
        np.testing.assert_allclose(result.log_weights, np.broadcast_to(EXACT, result.log_weights.shape), atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_evidence_from_the_prior_is_that_of_the_steps_that_exist(case):
    method = am.AIS(num_chains=64, num_temperatures=60)
    result = am.evidence(am.Program(CASES[case][0]), (X, LENGTHS), method=method)
    assert (np.abs(result.log_evidence - EXACT) < 4 * result.se).all()


def test_the_elbo_is_pyros():
    program = am.Program(model, guide_of(dist.Normal, shift=0.3))
    weights = am.evidence(program, (X, LENGTHS), method=am.ImportanceSampling(4000)).log_weights
    total = weights.sum(1)
    pyros = np.array([-Trace_ELBO().loss(program.model, program.guide, X, LENGTHS) for _ in range(1000)])
    error = np.hypot(total.std() / len(total) ** 0.5, pyros.std() / len(pyros) ** 0.5)
    assert abs(total.mean() - pyros.mean()) < 4 * error


@pytest.mark.parametrize("family", ["mean-field", "full-covariance"])
def test_local_posteriors_lose_nothing_to_what_is_hidden(family):
    local = am.fit_local(am.Program(model), (X, LENGTHS), family=family)
    np.testing.assert_allclose(local.elbo, EXACT, atol=0.01)


def test_a_guide_without_the_mask_pays_for_what_it_draws():
    program = am.Program(model, guide_of(dist.Normal, masked=False))
    weights = am.evidence(program, (X, LENGTHS), method=am.ImportanceSampling(500)).log_weights
    full = LENGTHS.numpy() == STEPS
    np.testing.assert_allclose(weights.mean(0)[full], EXACT[full], atol=1e-9)
    assert (weights.mean(0)[~full] < EXACT[~full] - 5).all()


def test_another_mask_in_the_guide_is_refused():
    def guide(x, lengths):
        guide_of(dist.Normal)(x, lengths - 1)

    with pytest.raises(GuideMismatchError, match="'z0' is under another mask"):
        am.evidence(am.Program(model, guide), (X, LENGTHS))


def test_a_mask_on_a_latent_that_counts_is_dropped():
    def counts(x, lengths):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=lengths > 2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[:, 0])

    program = am.Program(counts)
    assert program.structure(program.prepare((X, LENGTHS))).hidden == ()
    result = am.evidence(program, (X, LENGTHS), method=am.AIS(num_chains=64, num_temperatures=40))
    assert (np.abs(result.log_evidence - stats.norm(0, 1.25**0.5).logpdf(X[:, 0].numpy())) < 4 * result.se).all()


def test_masked_latents_beside_discrete_ones_that_are_tiled():
    def mixed(x, lengths):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(x.new_tensor([0.3, 0.7])))
            for t in range(STEPS):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z{t}", dist.Normal(x.new_zeros(()), 1.0))
                    pyro.sample(f"x{t}", dist.Normal(z + k, 0.5), obs=x[:, t])

    parts = [
        [np.log(p) + stats.norm(k, 1.25**0.5).logpdf(row[:n]).sum() for k, p in enumerate((0.3, 0.7))]
        for row, n in zip(X.numpy(), LENGTHS, strict=True)
    ]
    result = am.evidence(am.Program(mixed), (X, LENGTHS), method=am.AIS(num_chains=128, num_temperatures=80))
    assert (np.abs(result.log_evidence - np.logaddexp.reduce(parts, 1)) < 4 * result.se).all()
