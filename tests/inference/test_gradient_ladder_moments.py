"""What draws of a gradient say of bias and variance, on draws whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from amortize.inference.ladder_moments import NUM_DIRECTIONS, Moments, two_sided
from tests.statistics import z_value

SIZE = 30
EXACT = torch.linspace(-1, 2, SIZE, dtype=torch.float64)
SCALES = torch.linspace(0.1, 3, SIZE, dtype=torch.float64)


def moments(shift: float, num_draws: int, seed: int = 0, exact: torch.Tensor | None = EXACT) -> Moments:
    found = Moments(SIZE, exact, seed=0)
    gen = torch.Generator().manual_seed(seed)
    for _ in range(num_draws):
        found.add((1 + shift) * EXACT + SCALES * torch.randn(SIZE, generator=gen, dtype=torch.float64))
    return found


@pytest.mark.parametrize(("value", "degrees"), [(9.0, 1), (3.0, 8), (30.0, 8), (200.0, 8)])
def test_two_sided_deviates_are_scipys(value, degrees):
    assert two_sided(value, degrees) == pytest.approx(stats.norm.isf(stats.chi2.sf(value, degrees) / 2), rel=1e-9)


def test_deviates_grow_beyond_what_probabilities_can_tell():
    assert 0 < two_sided(0.1, 8) < two_sided(1000.0, 8) < two_sided(3000.0, 8) < math.inf


@pytest.mark.parametrize("num_draws", [25, 60])
def test_sound_estimators_are_flagged_as_often_as_said(num_draws):
    """At five per cent, and no more often at three deviates than twice what a normal variable is."""
    repeats = 300
    z = np.array([moments(0.0, num_draws, seed).bias().z for seed in range(repeats)])
    share = (z > stats.norm.isf(0.025)).mean()
    assert abs(share - 0.05) < z_value() * math.sqrt(0.05 * 0.95 / repeats)
    assert (z > 5).sum() == 0


def test_a_bias_is_seen_and_measured():
    found = moments(0.2, 2000).bias()
    noise = found.bias_se
    assert found.z > 10 and found.largest_z > 10
    assert found.bias == pytest.approx(math.hypot(0.2, noise), abs=4 * noise / math.sqrt(SIZE))


def test_a_bias_across_the_exact_gradient_is_seen_too():
    """Along the exact gradient nothing is wrong; it is the directions of random signs that tell."""
    off = torch.zeros(SIZE, dtype=torch.float64)
    off[3], off[7] = EXACT[7], -EXACT[3]
    found = Moments(SIZE, EXACT, seed=0)
    gen = torch.Generator().manual_seed(0)
    for _ in range(500):
        found.add(EXACT + off + 0.3 * torch.randn(SIZE, generator=gen, dtype=torch.float64))
    assert found.bias().z > 10


def test_variance_is_the_trace():
    found = moments(0.0, 3000)
    trace = float(SCALES.square().sum())
    error = math.sqrt(2 * float(SCALES.pow(4).sum()) / 3000)
    assert abs(found.trace - trace) < z_value() * error
    assert found.bias().bias_se == pytest.approx(math.sqrt(found.trace / 3000) / float(EXACT.norm()))


def test_no_noise_is_no_bias_and_a_small_one_is_found():
    same, off = Moments(SIZE, EXACT, seed=0), Moments(SIZE, EXACT, seed=0)
    for _ in range(3):
        same.add(EXACT.clone())
        off.add(1.01 * EXACT)
    assert same.bias().bias == 0 and same.bias().z < 1e-6
    assert off.bias().z > 4 and off.bias().bias == pytest.approx(0.01)


def test_gradients_that_are_not_finite_are_counted_and_spoil_nothing():
    found = moments(0.0, 50)
    before = found.bias()
    found.add(torch.full((SIZE,), torch.nan, dtype=torch.float64))
    assert found.num_nonfinite == 1 and found.bias() == before


def test_without_an_exact_gradient_there_is_variance_alone():
    found = moments(0.0, 50, exact=None)
    assert math.isnan(found.bias().bias) and math.isnan(found.bias().z) and found.trace > 0
    assert NUM_DIRECTIONS * 2 < 20
