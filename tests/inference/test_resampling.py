"""Systematic resampling: children on average in proportion to the weight, never further from it than rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from amortize.inference.resampling import effective_share, family_weights, rows_of, systematic

REAL = torch.float64
NUM_POINTS = 2000


def weights(count: int, num: int = 1, *, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    """Log weights (C, N), one in five of them zero."""
    generator = torch.Generator().manual_seed(seed)
    log_weights = spread * torch.randn(count, num, generator=generator, dtype=REAL)
    log_weights[torch.rand(count, num, generator=generator) < 0.2] = -math.inf
    log_weights[0] = 0.0
    return log_weights


def children(log_weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """How many children each particle has, (C, N)."""
    parents = systematic(log_weights, uniform)
    return torch.zeros_like(log_weights).scatter_add_(0, parents, torch.ones_like(log_weights))


@pytest.mark.parametrize("count", [2, 7, 64])
def test_counts_are_proportional_on_average_and_rounded_each_time(count):
    """Averaged over a fine grid of uniform numbers, which is exact to the grid's width."""
    log_weights = weights(count).expand(count, NUM_POINTS)
    uniform = (torch.arange(NUM_POINTS, dtype=REAL) + 0.5) / NUM_POINTS
    counts = children(log_weights, uniform)
    expected = count * log_weights[:, 0].softmax(0)
    assert bool(((counts - expected[:, None]).abs() < 1).all())
    np.testing.assert_allclose(counts.mean(1), expected, atol=2 / NUM_POINTS)
    assert bool((counts[torch.isneginf(log_weights)] == 0).all())


def test_equal_weights_pass_unchanged_and_children_keep_the_order():
    uniform = torch.tensor([0.1, 0.5, 0.999], dtype=REAL)
    parents = systematic(torch.full((10, 3), -3.0), uniform)
    assert torch.equal(parents, torch.arange(10)[:, None].expand(10, 3))
    assert bool((systematic(weights(50, 3), uniform).diff(dim=0) >= 0).all())


def test_datapoints_do_not_mix():
    log_weights, uniform = weights(20, 6), torch.linspace(0, 0.9, 6, dtype=REAL)
    together = systematic(log_weights, uniform)
    alone = [systematic(log_weights[:, n : n + 1], uniform[n : n + 1]) for n in range(6)]
    assert torch.equal(together, torch.cat(alone, 1))
    rows = torch.arange(20 * 6).reshape(20, 6)  # row c * N + n holds datapoint n
    assert torch.equal(rows.flatten()[rows_of(together)].reshape(20, 6), rows.gather(0, together))


def test_the_effective_share():
    log_weights = torch.tensor([[0.0, 0.0, -math.inf], [0.0, -math.inf, -math.inf]], dtype=REAL)
    share = effective_share(log_weights)
    assert share[:2].tolist() == [1.0, 0.5] and bool(torch.isnan(share[2]))


def test_family_weights_have_the_mean_of_the_weights():
    log_weights = weights(30, 4, seed=1)
    founders = torch.randint(30, (30, 4), generator=torch.Generator().manual_seed(2)).sort(0).values
    families = family_weights(log_weights, founders)
    torch.testing.assert_close(families.logsumexp(0), log_weights.logsumexp(0))
    missing = [sorted(set(range(30)) - set(founders[:, n].tolist())) for n in range(4)]
    assert all(bool(torch.isneginf(families[lost, n]).all()) for n, lost in enumerate(missing))
    founders = torch.arange(30)[:, None].expand(30, 4)
    torch.testing.assert_close(family_weights(log_weights, founders), log_weights)
