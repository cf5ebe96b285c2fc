"""The Frechet distance: exact on Gaussians, a standard error that repeats bear out, and sets it must tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from amortize.diagnostics.frechet import frechet_distance, frechet_of_moments
from amortize.errors import ArgumentError
from tests.statistics import z_value


def covariance(rng, num):
    root = rng.normal(size=(num, num))
    return root @ root.T / num


def test_commuting_covariances_in_closed_form():
    """Where they share their axes, it is the sum of squared differences of the standard deviations."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    one, two, shift = rng.uniform(0.1, 2, 5), rng.uniform(0.1, 2, 5), rng.normal(size=5)
    found = frechet_of_moments(np.zeros(5), axes * one**2 @ axes.T, shift, axes * two**2 @ axes.T)
    assert found == pytest.approx((shift**2).sum() + ((one - two) ** 2).sum(), rel=1e-12)


def test_an_affine_map_is_the_optimal_one_if_it_is_symmetric():
    """Of x and A x with A symmetric and positive, the distance is E |x - A x|^2."""
    rng = np.random.default_rng(1)
    start, symmetric = covariance(rng, 4), covariance(rng, 4) + np.eye(4)
    found = frechet_of_moments(np.zeros(4), start, np.zeros(4), symmetric @ start @ symmetric)
    moved = symmetric - np.eye(4)
    assert found == pytest.approx(np.trace(moved @ start @ moved), rel=1e-10)


def test_it_is_symmetric_and_zero_for_the_same_set():
    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(40, 6)), rng.gamma(2.0, size=(50, 6))
    assert frechet_distance(one, two).squared == pytest.approx(frechet_distance(two, one).squared, rel=1e-9)
    assert frechet_distance(one, two).se == pytest.approx(frechet_distance(two, one).se, rel=1e-6)
    same = frechet_distance(one, one)
    assert 0 <= same.squared < 1e-10
    assert same.se < 1e-6


def test_features_without_spread_and_fewer_rows_than_features():
    rng = np.random.default_rng(3)
    one = np.concatenate([rng.normal(size=(30, 2)), np.ones((30, 1))], 1)
    assert frechet_distance(one, one + np.array([0.0, 3.0, 4.0])).squared == pytest.approx(25.0, rel=1e-9)
    few = rng.normal(size=(4, 9))
    assert frechet_distance(few, few - 1.0).squared == pytest.approx(9.0, rel=1e-9)
    assert frechet_distance(np.zeros((3, 2)), np.zeros((5, 2))) == (0.0, 0.0)


@pytest.mark.parametrize("skewed", [False, True])
def test_the_standard_error_is_the_spread_of_repeats(skewed):
    rng = np.random.default_rng(4)
    mixing = np.array([[1.0, 0.4, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, 1.3]])

    def pair():
        one = rng.exponential(size=(400, 3)) if skewed else rng.normal(size=(400, 3))
        return one, rng.normal(size=(300, 3)) @ mixing + np.array([0.5, 0.0, -0.3])

    found = [frechet_distance(*pair()) for _ in range(400)]
    spread = np.std([each.squared for each in found], ddof=1)
    stated = np.sqrt(np.mean([each.se**2 for each in found]))
    # a standard deviation of R numbers has a relative error of about sqrt((kurtosis - 1) / 4 R), here up to 1 / sqrt(R)
    assert abs(stated / spread - 1) < z_value(2) / np.sqrt(len(found))


def test_a_larger_sample_has_less_bias_and_comes_to_the_truth():
    rng = np.random.default_rng(5)
    truth = frechet_of_moments(np.zeros(4), np.eye(4), np.full(4, 0.5), 4 * np.eye(4))
    assert truth == 5.0
    few, many = (
        [frechet_distance(rng.normal(size=(num, 4)), 2 * rng.normal(size=(num, 4)) + 0.5).squared for _ in range(40)]
        for num in (20, 4000)
    )
    error = np.std(many, ddof=1) / np.sqrt(len(many))
    assert abs(np.mean(many) - truth) < z_value() * error + 0.02  # the bias of 4000 rows, about (F + 1) F / M
    assert np.mean(few) > truth


def test_what_is_not_finite_and_what_does_not_fit():
    assert all(np.isnan(value) for value in frechet_distance([[0.0], [np.inf]], [[0.0], [1.0]]))
    for shapes in [((4, 2), (4, 3)), ((1, 2), (4, 2)), ((4,), (4,)), ((4, 0), (4, 0))]:
        with pytest.raises(ArgumentError, match="expected features"):
            frechet_distance(np.zeros(shapes[0]), np.zeros(shapes[1]))
    with pytest.raises(ArgumentError, match=r"two means \(F,\)"):
        frechet_of_moments([0.0], [[1.0]], [0.0, 1.0], [[1.0]])
    with pytest.raises(ArgumentError, match="symmetric"):
        frechet_of_moments([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], [0.0, 0.0], np.eye(2))
    with pytest.raises(ArgumentError, match="finite"):
        frechet_of_moments([np.nan], [[1.0]], [0.0], [[1.0]])
