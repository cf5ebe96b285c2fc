"""Low-rank Gaussians against the exact best of their rank, found by other means."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import amortize as am
from amortize.errors import ArgumentError
from amortize.inference.families import low_rank
from amortize.inference.families.low_rank import LowRank, LowRankDensity, nearest
from tests.statistics import z_value


def best_gap(precision, rank, *, num_starts=4):
    """The least KL(N(0, diag + V V^T) || N(0, precision^-1)), in nats: L-BFGS in float64 from several places."""
    dim, found = len(precision), []
    log_det = torch.linalg.slogdet(precision)[1]
    for seed in range(num_starts):
        gen = torch.Generator().manual_seed(seed)
        log_scale = (-0.5 * precision.diagonal().log()).clone().requires_grad_()
        noise = torch.randn(dim, rank, generator=gen, dtype=torch.float64)
        factor = (0.5 * noise * log_scale.detach().exp()[:, None]).requires_grad_()
        search = torch.optim.LBFGS([log_scale, factor], max_iter=300, line_search_fn="strong_wolfe")

        def kl(log_scale=log_scale, factor=factor):
            cov = torch.diag((2 * log_scale).exp()) + factor @ factor.T
            return 0.5 * ((precision * cov).sum() - dim - torch.linalg.slogdet(cov)[1] - log_det)

        def closure(search=search, kl=kl):
            search.zero_grad()
            value = kl()
            value.backward()
            return value

        search.step(closure)
        found.append(float(kl().detach()))
    return min(found)


@pytest.fixture(scope="module")
def factor_analysis():
    analysis = am.models.FactorAnalysis.random(latent_dim=6, data_dim=8, seed=0, dtype=torch.float64)
    x = analysis.simulate(12, seed=1)
    covariance = analysis.posterior(x)[1].detach()
    return analysis, x, covariance if covariance.ndim == 2 else covariance[0]


@pytest.fixture(scope="module")
def gaps(factor_analysis):
    precision = torch.linalg.inv(factor_analysis[2])
    return {rank: best_gap(precision, rank) for rank in (1, 2)}


def members(num=3, dim=4, rank=2, seed=0):
    gen = torch.Generator().manual_seed(seed)
    loc, factor = torch.randn(num, dim, generator=gen).double(), torch.randn(num, dim, rank, generator=gen).double()
    return LowRankDensity(loc, 0.2 + torch.rand(num, dim, generator=gen).double(), factor)


def test_the_density_is_that_of_torch_and_of_its_own_draws():
    density = members()
    truth = torch.distributions.LowRankMultivariateNormal(density.loc, density.factor, density.scale.square())
    u = density.draw(40_000, torch.Generator().manual_seed(1))
    assert density.shape == (3, 4) and u.shape == (40_000, 3, 4)
    torch.testing.assert_close(density.log_density(u[:50]), truth.log_prob(u[:50]))
    error = (u.mean(0) - density.loc) / (truth.variance / len(u)).sqrt()
    assert error.abs().max() < z_value(12)
    np.testing.assert_allclose(torch.cov(u[:, 0].T), truth.covariance_matrix[0], atol=0.15)


def test_one_row_that_is_broken_is_nan_and_spoils_no_other():
    whole = members()
    scale = whole.scale.clone()
    scale[1] = math.nan
    u = whole.draw(5, torch.Generator().manual_seed(1))
    value = LowRankDensity(whole.loc, scale, whole.factor).log_density(u)
    assert value[:, 1].isnan().all()
    torch.testing.assert_close(value[:, [0, 2]], whole.log_density(u)[:, [0, 2]])


def test_long_directions_are_not_lost_to_rounding():
    """In single precision, with directions a thousand times longer than the rest."""
    exact = members(dim=20)
    exact = LowRankDensity(exact.loc, exact.scale, 300 * exact.factor)
    u = exact.draw(200, torch.Generator().manual_seed(1)).float()
    rounded = LowRankDensity(exact.loc.float(), exact.scale.float(), exact.factor.float())
    error = rounded.log_density(u).double() - exact.log_density(u.double())
    assert error.abs().max() < 0.1 and abs(float(error.mean())) < 0.01


@pytest.mark.parametrize("rank", [1, 2])
def test_the_nearest_is_the_best_there_is(factor_analysis, gaps, rank):
    covariance = factor_analysis[2]
    scale, factor = (part[0] for part in nearest(torch.linalg.cholesky(covariance)[None], rank))
    found = torch.diag(scale.square()) + factor @ factor.T
    ratio = torch.linalg.solve(covariance, found)
    kl = 0.5 * (ratio.trace() - len(ratio) - torch.linalg.slogdet(ratio)[1])
    assert gaps[rank] - 1e-6 < float(kl) < gaps[rank] + 2e-3


def test_the_nearest_of_enough_directions_is_exact(factor_analysis):
    covariance = factor_analysis[2]
    scale, factor = (part[0] for part in nearest(torch.linalg.cholesky(covariance)[None], len(covariance) - 1))
    torch.testing.assert_close(torch.diag(scale.square()) + factor @ factor.T, covariance, atol=2e-3, rtol=0)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_fit_reaches_the_best_of_its_rank(factor_analysis, gaps, rank):
    analysis, x, _ = factor_analysis
    local = am.fit_local(analysis.program(), x, family=LowRank(rank=rank))
    best = analysis.log_evidence(x).detach().numpy() - gaps[rank]
    error = local.elbo - best
    assert gaps[rank] > 0.03  # more than what is allowed below
    assert local.converged.all() and abs(error.mean()) < 0.02
    assert (error < z_value(12) * local.elbo_se + 1e-3).all()
    assert local.parameters["factor"].shape == (12, 6, rank)


def test_many_dimensions_begin_at_mean_field_and_get_as_far(factor_analysis, gaps, monkeypatch):
    analysis, x, _ = factor_analysis
    monkeypatch.setattr(low_rank, "FULL_DIM", 5)
    local = am.fit_local(analysis.program(), x, family=LowRank(rank=2))
    error = local.elbo - (analysis.log_evidence(x).detach().numpy() - gaps[2])
    assert local.converged.all() and abs(error.mean()) < 0.02


def scales_apart(x):
    """Correlations of .99 between latents whose scales are a thousand apart; one direction is the truth."""
    scale = 10.0 ** torch.linspace(-1.5, 1.5, 4, dtype=x.dtype)
    cov = (torch.full((4, 4), 0.99, dtype=x.dtype) + 0.01 * torch.eye(4, dtype=x.dtype)) * torch.outer(scale, scale)
    with pyro.plate("data", x.shape[0]):
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(4, dtype=x.dtype), cov))
        pyro.sample("x", dist.Normal(z / scale, 1.0).to_event(1), obs=x)


def test_neither_scales_nor_strong_correlations_are_in_the_way():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    local = am.fit_local(am.Program(scales_apart), x, family=LowRank(rank=1))
    cov = 0.99 + 1.01 * torch.eye(4, dtype=x.dtype)
    exact = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=x.dtype), cov).log_prob(x).numpy()
    assert local.converged.all() and np.abs(local.elbo - exact).max() < 0.005


def test_a_single_latent_has_a_family_too():
    def model(x):
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    local = am.fit_local(am.Program(model), x, family="low-rank")
    exact = torch.distributions.Normal(0.0, math.sqrt(2.0)).log_prob(x).numpy()
    np.testing.assert_allclose(local.elbo, exact, atol=0.005)
    assert local.family_settings == {"rank": 5}


@pytest.mark.parametrize("rank", [0, 1.5, "2"])
def test_the_rank_is_checked(rank):
    with pytest.raises(ArgumentError, match="rank"):
        LowRank(rank=rank)
