"""The classifier two-sample test where the best classifier's accuracy is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from amortize.diagnostics.two_samples import c2st
from amortize.errors import ArgumentError
from tests.statistics import z_value

NUM = 1000


def repeated(draw, *, times: int = 6) -> tuple[float, float]:
    """Mean accuracy and the standard error of the mean, for standard normal draws against others."""
    found = []
    for seed in range(times):
        rng = np.random.default_rng(seed)
        other = draw(rng)
        found.append(c2st(rng.normal(size=other.shape), other, seed=seed))
    return float(np.mean([f.accuracy for f in found])), float(np.mean([f.se for f in found]) / np.sqrt(times))


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_equal_distributions_can_not_be_told_apart(dim):
    """On either side of one half: a classifier judged on what it was trained on would be far above."""
    accuracy, se = repeated(lambda rng: rng.normal(size=(NUM, dim)))
    assert abs(accuracy - 0.5) < z_value() * se


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_gaussians_as_well_as_can_be(dim, shift):
    accuracy, se = repeated(lambda rng: rng.normal(size=(NUM, dim)) + shift * np.eye(dim)[0])
    best = stats.norm.cdf(shift / 2)
    assert best - 0.02 - z_value() * se < accuracy < best + z_value() * se


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_gaussians_of_another_width(scale):
    accuracy, se = repeated(lambda rng: scale * rng.normal(size=(NUM, 1)))
    grid = np.linspace(-12, 12, 200001)
    gap = np.abs(stats.norm.pdf(grid) - stats.norm.pdf(grid, scale=scale)).sum() * (grid[1] - grid[0])
    best = 0.5 + gap / 4
    assert best - 0.02 - z_value() * se < accuracy < best + z_value() * se


def correlated(rng):
    return rng.normal(size=(NUM, 2)) @ np.linalg.cholesky([[1, 0.9], [0.9, 1]]).T


def bimodal(rng):
    """Mean 0 and sd 1, but two modes."""
    return 0.97 * rng.choice([-1, 1], size=(NUM, 1)) + np.sqrt(1 - 0.97**2) * rng.normal(size=(NUM, 1))


def banana(rng):
    """Uncorrelated, mean 0 and sd 1, but bent."""
    z = rng.normal(size=(NUM, 2))
    return np.stack([z[:, 0], 0.7 * (z[:, 0] ** 2 - 1) + np.sqrt(1 - 2 * 0.49) * z[:, 1]], 1)


@pytest.mark.parametrize("draw", [correlated, bimodal, banana])
def test_what_marginal_moments_do_not_show(draw):
    accuracy, se = repeated(draw, times=2)
    assert accuracy > 0.65 + z_value() * se


def test_neither_units_nor_outliers_nor_flat_directions_matter():
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(NUM, 2)), rng.normal(size=(NUM, 2)) + np.array([1.0, 0.0])
    first = c2st(one, two).accuracy
    turned = np.array([[1e6, 0.0], [3e5, 1e-6]])
    assert abs(c2st(one @ turned, two @ turned).accuracy - first) < 0.03
    flat = np.concatenate([one, np.zeros((NUM, 1))], 1), np.concatenate([two, np.zeros((NUM, 1))], 1)
    assert abs(c2st(*flat).accuracy - first) < 0.03
    two[0] = 1e5
    assert abs(c2st(one, two).accuracy - first) < 0.05


def test_draws_that_are_not_finite_are_nan():
    one = np.random.default_rng(0).normal(size=(30, 1))
    assert np.isnan(c2st(one, np.where(one > 1, np.inf, one)).accuracy)


@pytest.mark.parametrize("shapes", [((30, 2), (30, 3)), ((10, 2), (10, 2)), ((30,), (30,))])
def test_shapes_are_checked(shapes):
    with pytest.raises(ArgumentError, match="two samples of the same shape"):
        c2st(*(np.zeros(shape) for shape in shapes))
