"""Wasserstein-1 against closed forms, and its error and noise against repeats."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from amortize.diagnostics.distances import wasserstein
from amortize.errors import ArgumentError
from tests.statistics import z_value


def test_it_is_scipys():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(70, 3)), rng.gumbel(size=(110, 3))
    expected = [stats.wasserstein_distance(one[:, m], two[:, m]) for m in range(3)]
    np.testing.assert_allclose(wasserstein(one, two).distance, expected, rtol=1e-12)


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 1.5), (0.0, 0.4)])
def test_gaussians_by_their_closed_form(shift, scale):
    """|shift| for a shift, |scale - 1| E|z| for a change of scale; errors are those of repeats."""
    rng = np.random.default_rng(1)
    found = wasserstein(rng.normal(size=(3000, 200)), shift + scale * rng.normal(size=(2000, 200)))
    exact = shift + abs(scale - 1) * np.sqrt(2 / np.pi)
    bias = 0.3 * found.noise.mean()  # the noise of the tails, where neither is above the other
    assert abs(found.distance.mean() - exact) < bias + z_value() * found.se.mean() / np.sqrt(200)
    assert 0.85 < found.distance.std() / found.se.mean() < 1.15


def test_equal_distributions_are_as_far_apart_as_the_noise_says():
    rng = np.random.default_rng(2)
    found = wasserstein(rng.normal(size=(900, 300)), rng.normal(size=(600, 300)))
    assert abs(found.distance.mean() / found.noise.mean() - 1) < 0.15


def test_draws_that_count_for_less_give_a_larger_error():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(400, 1)), rng.normal(size=(400, 1)) + 3
    whole, quarter = wasserstein(one, two), wasserstein(one, two, first_size=[100], second_size=[100])
    np.testing.assert_allclose(quarter.se, 2 * whole.se)
    np.testing.assert_allclose(quarter.noise, 2 * whole.noise)


def test_draws_that_are_not_finite_are_nan_and_spoil_no_other():
    one, two = np.zeros((5, 3)), np.ones((4, 3))
    one[2, 1], two[0, 2] = np.nan, np.inf
    found = wasserstein(one, two)
    assert found.distance[0] == 1 and all(np.isnan(column[1:]).all() for column in found)


def test_shapes_are_checked():
    with pytest.raises(ArgumentError, match="first, second: expected"):
        wasserstein(np.zeros((5, 2)), np.zeros((5, 3)))
