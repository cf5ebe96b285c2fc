"""Gaussians at the mode, against modes and curvatures known in closed form."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special

import amortize as am
from amortize.inference.families.laplace import _inverse_root
from tests.problems import PROBLEMS, linear_vae


def test_a_gaussian_posterior_is_found_exactly():
    analysis, x = linear_vae(20)
    local = am.fit_local(analysis.program(), x, family="laplace", init="prior")
    mean, covariance = (part.numpy() for part in analysis.posterior(x))
    np.testing.assert_allclose(local.loc, mean, atol=1e-3)
    found = local.scale_tril @ local.scale_tril.swapaxes(1, 2)
    np.testing.assert_allclose(found, np.broadcast_to(covariance, found.shape), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(local.elbo, analysis.log_evidence(x).numpy(), atol=1e-3)
    assert local.converged.all()


def test_a_gamma_posterior_at_the_mode_of_its_logarithm():
    problem = PROBLEMS["gamma-poisson"]()
    shape, rate = 2.0 + problem.data.numpy().sum(1), 4.7
    local = am.fit_local(problem.program(), problem.data, family="laplace")
    np.testing.assert_allclose(local.loc[:, 0], np.log(shape / rate), atol=1e-3)
    np.testing.assert_allclose(local.scale_tril[:, 0, 0], shape**-0.5, rtol=1e-3)
    # KL of N(m, s^2) to the exact log-gamma: E[b e^u - a u] + log Gamma(a) - a log b - entropy
    m, s = local.loc[:, 0], local.scale_tril[:, 0, 0]
    gap = rate * np.exp(m + s**2 / 2) - shape * m + special.gammaln(shape) - shape * np.log(rate)
    gap -= np.log(s) + 0.5 * np.log(2 * np.pi * np.e)
    assert (np.abs(problem.log_evidence - gap - local.elbo) < 5 * local.elbo_se).all()


def test_a_curvature_that_is_not_positive_gives_no_gaussian():
    precision = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, float("nan")], [0.0, 1.0]]])
    tril = _inverse_root(precision)
    torch.testing.assert_close(tril[0] @ tril[0].T, torch.linalg.inv(precision[0]))
    assert tril[1:].isnan().all()


def test_an_elbo_below_that_of_the_guide_is_no_failure():
    """Laplace doesn't raise the ELBO, so that an exact guide, to begin with, is better."""
    problem = PROBLEMS["beta-bernoulli"]()
    local = am.fit_local(problem.program(guide=True), problem.data, family="laplace")
    assert local.converged.all() and (local.num_restarts == 0).all()
    assert (local.elbo < problem.log_evidence + 5 * local.elbo_se).all()
