"""Annealed posteriors: the parts that add up to the evidence, and bounds against evidence known exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.families.annealed_parts import Parts, best_weights, weighed
from amortize.inference.families.mixture import MixtureDensity
from tests.problems import Square, linear_vae
from tests.statistics import z_value


def mixtures(num: int = 3) -> Parts:
    gen = torch.Generator().manual_seed(0)
    tril = torch.randn(num, 2, 2, 2, generator=gen, dtype=torch.float64).tril()
    tril.diagonal(dim1=-2, dim2=-1).exp_()
    weights = torch.randn(num, 2, generator=gen, dtype=torch.float64).log_softmax(-1)
    return Parts(weights, torch.randn(num, 2, 2, generator=gen, dtype=torch.float64), tril)


def test_shares_are_the_mixtures_own():
    """And those of one place add up to 1."""
    parts, rows = mixtures(), torch.arange(6)
    u = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    share = parts.rows(rows).log_share(u.repeat_interleave(2, 1).flatten(0, 1)).reshape(4, 3, 2)
    torch.testing.assert_close(share.logsumexp(-1), torch.zeros(4, 3, dtype=torch.float64))
    for own in (0, 1):
        alone = MixtureDensity(parts.log_weights[:, own : own + 1], parts.loc[:, [own]], parts.scale_tril[:, [own]])
        whole = MixtureDensity(parts.log_weights, parts.loc, parts.scale_tril)
        torch.testing.assert_close(share[..., own], alone.log_density(u) - whole.log_density(u))


def test_parts_add_up():
    """With exact bounds the whole is the evidence; a lost part has no weight; a lost datapoint is marked."""
    masses = torch.tensor([[0.3, 0.5], [0.2, float("nan")], [float("nan"), float("-inf")]], dtype=torch.float64).log()
    whole = weighed(best_weights(masses), masses, torch.full_like(masses, 0.1))
    np.testing.assert_allclose(whole.bound[:2].exp(), [0.8, 0.2])
    assert whole.bound[2].isnan()
    np.testing.assert_allclose(whole.se[0], 0.1 * np.hypot(3 / 8, 5 / 8))
    other = weighed(torch.tensor([[0.5, 0.5]], dtype=torch.float64).log(), masses[:1], masses[:1])
    assert other.bound[0] < whole.bound[0]


@pytest.mark.parametrize("kind", ["ula", "mcd", "uha", "ldvi", "dais"])
def test_every_kind_is_a_bound_that_comes_near_a_gaussian_posterior(kind):
    analysis, x = linear_vae(4)
    family = am.Annealed(kind=kind, num_steps=2, num_parts=1, train_draws=8, hidden=4)
    local = am.fit_local(analysis.program(), x, family=family, init="prior", num_steps=150)
    error = local.elbo - analysis.log_evidence(x).numpy()
    assert (error < z_value(4) * local.elbo_se + 1e-6).all()
    assert (error > -0.05).all()


def test_two_modes_are_reached_and_the_gap_closed():
    x = torch.tensor([0.5, 2.0], dtype=torch.float64)
    square = Square()
    program, exact = am.Program(square.model), square.log_evidence(x)
    family = am.Annealed(num_steps=4, num_parts=2)
    local = am.fit_local(program, x, family=family, num_steps=300)
    full = am.fit_local(program, x, family="full-covariance")
    assert (exact - full.elbo > 0.3).all()
    error = local.elbo - exact
    assert (error < z_value(2) * local.elbo_se).all() and (error > -0.1).all()
    draws = local.draws(1000, seed=3)["z"]
    assert draws.shape == (1000, 2)
    share = (draws > 0).mean(0)
    assert (np.abs(share - 0.5) < 0.1).all()
    np.testing.assert_allclose(np.abs(draws[:, 1]).mean(), 1.38, atol=0.05)
    assert (local.draws(1000, seed=3)["z"] == draws).all()
    assert local.trace_elbo.shape[1] == 2 and (np.diff(local.trace_num_gradients) > 0).all()


def test_settings_are_checked():
    for settings in ({"kind": "hmc"}, {"num_steps": 0}, {"num_parts": 0}, {"hidden": 0}):
        with pytest.raises(ArgumentError, match=next(iter(settings))):
            am.Annealed(**settings)
