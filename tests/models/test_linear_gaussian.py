"""The linear-Gaussian closed forms against torch's distributions, quadrature and brute-force optimisation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from amortize.models import LinearGaussian

F64 = torch.float64


def problem(latent_dim: int, data_dim: int, seed: int = 0) -> tuple[LinearGaussian, torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)
    weight = torch.randn(data_dim, latent_dim, generator=gen, dtype=F64)
    bias = torch.randn(data_dim, generator=gen, dtype=F64)
    variance = 0.2 + torch.rand(data_dim, generator=gen, dtype=F64)
    x = 2.0 * torch.randn(6, data_dim, generator=gen, dtype=F64)
    return LinearGaussian(weight, bias, variance), x


def log_joint(exact: LinearGaussian, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Log p(x, z) by torch's Normal, for z (..., N, D)."""
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    loc = z @ exact.weight.T + exact.bias
    return prior + torch.distributions.Normal(loc, exact.variance.sqrt()).log_prob(x).sum(-1)


def gauss_hermite(dim: int, num_nodes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes (K, D) and log weights (K,) of the product rule for N(0, I)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    points = torch.tensor(list(itertools.product(nodes, repeat=dim)), dtype=F64)
    products = torch.tensor(list(itertools.product(weights, repeat=dim)), dtype=F64).prod(-1)
    return points, (products / products.sum()).log()


SIZES = [(1, 1), (1, 3), (2, 3), (3, 2), (5, 20)]


@pytest.mark.parametrize(("latent_dim", "data_dim"), SIZES)
def test_evidence_is_the_marginal_gaussian(latent_dim, data_dim):
    exact, x = problem(latent_dim, data_dim)
    covariance = exact.weight @ exact.weight.T + torch.diag(exact.variance)
    truth = MultivariateNormal(exact.bias, covariance).log_prob(x)
    torch.testing.assert_close(exact.log_evidence(x), truth, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("latent_dim", "data_dim"), [(1, 2), (2, 3)])
def test_evidence_and_posterior_by_quadrature(latent_dim, data_dim):
    exact, x = problem(latent_dim, data_dim)
    axis = torch.linspace(-12.0, 12.0, 1201 if latent_dim == 1 else 401, dtype=F64)
    grid = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, 1, latent_dim)
    log_cell = latent_dim * math.log(float(axis[1] - axis[0]))
    log_p = log_joint(exact, x, grid)
    evidence = log_p.logsumexp(0) + log_cell
    torch.testing.assert_close(exact.log_evidence(x), evidence, rtol=1e-10, atol=1e-10)

    share = (log_p + log_cell - evidence).exp()
    mean = torch.einsum("kn,kd->nd", share, grid[:, 0])
    spread = grid - mean
    covariance = torch.einsum("kn,knd,kne->nde", share, spread, spread)
    torch.testing.assert_close(exact.posterior_mean(x), mean, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(exact.covariance.expand_as(covariance), covariance, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("latent_dim", "data_dim"), SIZES)
def test_posterior_is_the_conditional_of_the_joint_gaussian(latent_dim, data_dim):
    exact, x = problem(latent_dim, data_dim)
    marginal = exact.weight @ exact.weight.T + torch.diag(exact.variance)
    gain = torch.linalg.solve(marginal, exact.weight).T
    torch.testing.assert_close(exact.posterior_mean(x), (x - exact.bias) @ gain.T, rtol=1e-10, atol=1e-11)
    conditional = torch.eye(latent_dim, dtype=F64) - gain @ exact.weight
    torch.testing.assert_close(exact.covariance, conditional, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("per_datapoint", [False, True])
def test_elbo_by_quadrature_that_is_exact_for_quadratics(per_datapoint):
    exact, x = problem(2, 3)
    gen = torch.Generator().manual_seed(1)
    mean = torch.randn(6, 2, generator=gen, dtype=F64)
    root = (
        torch.randn(6, 2, 2, generator=gen, dtype=F64) if per_datapoint else torch.randn(2, 2, generator=gen, dtype=F64)
    )
    covariance = root @ root.mT + 0.1 * torch.eye(2, dtype=F64)
    nodes, log_weights = gauss_hermite(2, 4)
    factor = torch.linalg.cholesky(covariance).expand(6, 2, 2)
    z = mean + torch.einsum("nde,ke->knd", factor, nodes)
    log_q = MultivariateNormal(mean, covariance).log_prob(z)
    truth = (log_weights.exp()[:, None] * (log_joint(exact, x, z) - log_q)).sum(0)
    torch.testing.assert_close(exact.elbo(x, mean, covariance), truth, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("latent_dim", "data_dim"), SIZES)
def test_elbo_is_evidence_less_the_divergence(latent_dim, data_dim):
    exact, x = problem(latent_dim, data_dim)
    gen = torch.Generator().manual_seed(2)
    mean = torch.randn(6, latent_dim, generator=gen, dtype=F64)
    covariance = torch.diag(0.1 + torch.rand(latent_dim, generator=gen, dtype=F64))
    posterior = MultivariateNormal(exact.posterior_mean(x), exact.covariance)
    truth = exact.log_evidence(x) - kl_divergence(MultivariateNormal(mean, covariance), posterior)
    torch.testing.assert_close(exact.elbo(x, mean, covariance), truth, rtol=1e-11, atol=1e-10)
    best = exact.elbo(x, exact.posterior_mean(x), exact.covariance)
    torch.testing.assert_close(best, exact.log_evidence(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(("latent_dim", "data_dim"), [(1, 3), (2, 3), (5, 20)])
def test_no_diagonal_gaussian_beats_the_mean_field_optimum(latent_dim, data_dim):
    exact, x = problem(latent_dim, data_dim)
    mean = torch.zeros(6, latent_dim, dtype=F64, requires_grad=True)
    log_scale = torch.zeros(6, latent_dim, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [mean, log_scale],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -exact.elbo(x, mean, torch.diag_embed((2.0 * log_scale).exp())).sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = exact.elbo(x, mean, torch.diag_embed((2.0 * log_scale).exp())).detach()
    best = exact.log_evidence(x) - exact.mean_field_gap()
    torch.testing.assert_close(found, best, rtol=0.0, atol=1e-8)
    if latent_dim == 1:
        assert abs(float(exact.mean_field_gap())) < 1e-12


def test_evidence_keeps_its_digits_when_the_noise_is_small():
    # x lies in the span of W, so that r' diag(1/psi) r and its correction are both 1e14 times the answer's
    # square
    psi = 1e-12
    weight = torch.tensor([[3.0], [4.0]], dtype=F64)
    exact = LinearGaussian(weight, torch.zeros(2, dtype=F64), torch.full((2,), psi, dtype=F64))
    x = 2.0 * weight.T
    variances = [psi + 25.0, psi]  # along W and across it; x is 10 along
    truth = -0.5 * (100.0 / variances[0] + sum(map(math.log, variances)) + 2 * math.log(2 * math.pi))
    assert float(exact.log_evidence(x)) == pytest.approx(truth, abs=1e-3)
