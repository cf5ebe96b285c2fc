"""Whitening maps: what they learn, and that they turn a Gaussian into a standard one."""

from __future__ import annotations

import pytest
import torch

from amortize.inference.whitening import DENSE_DIM, learn, log_size, pull, push, spread_over_chains


def covariance(dim: int) -> torch.Tensor:
    root = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


def test_a_learned_map_whitens():
    truth = covariance(4)
    scale = learn(truth.expand(2, 3, 4, 4), torch.full((3, 4), 0.7, dtype=torch.float64), 10**9)
    torch.testing.assert_close(scale @ scale.mT, truth.expand(2, 3, 4, 4))
    torch.testing.assert_close(
        log_size(scale), torch.full((2, 3), 0.5 * truth.logdet().item() / 4, dtype=torch.float64)
    )


def test_many_dimensions_keep_their_scales_only():
    dim = DENSE_DIM + 1
    u = torch.randn(200, 5, dim, generator=torch.Generator().manual_seed(1)) * torch.arange(1, dim + 1)
    variance = spread_over_chains(u.flatten(0, 1), 5)
    assert variance.shape == (5, dim)
    scale = learn(variance.expand(2, 5, dim), torch.ones(5, dim), 199)
    torch.testing.assert_close(
        scale[0].mean(0).clamp(max=9.9), torch.arange(1.0, dim + 1).clamp(max=9.9), rtol=0.1, atol=0
    )
    assert scale.max() <= 10


def test_covariances_over_chains_are_the_samples():
    root = torch.linalg.cholesky(covariance(3))
    u = torch.randn(20_000, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ root.T
    torch.testing.assert_close(
        spread_over_chains(u.flatten(0, 1), 2), covariance(3).expand(2, 3, 3), atol=0.05, rtol=0.05
    )


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 4)])
def test_pull_is_the_adjoint_of_push(shape):
    gen = torch.Generator().manual_seed(3)
    scale, v, g = torch.randn(shape, generator=gen), torch.randn(6, 4, generator=gen), torch.randn(6, 4, generator=gen)
    torch.testing.assert_close((push(scale, v) * g).sum(-1), (v * pull(scale, g)).sum(-1))


def test_a_pilot_that_broke_down_falls_back_to_the_start():
    start = torch.tensor([[0.5, 2.0]])
    scale = learn(torch.full((1, 1, 2, 2), float("nan")), start, 10)
    torch.testing.assert_close(scale @ scale.mT, torch.diag_embed(start.square())[None])
    assert bool((learn(torch.full((1, 1, 2), float("inf")), start, 10) > 0).all())


def test_few_draws_shrink_correlations_and_keep_variances():
    truth = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    scale = learn(truth.expand(1, 1, 2, 2), torch.ones(1, 2), 2)
    found = (scale @ scale.mT)[0, 0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.45], [0.45, 1.0]]))
