from __future__ import annotations

import time

import numpy as np
import pytest

from amortize.diagnostics import MIN_TAIL, khat_threshold, log_mean_exp, psis
from amortize.diagnostics.psis import tail_length
from amortize.errors import ArgumentError


def exponential_ratios(k: float, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Log weights whose weights are Pareto with true shape k: P(w > t) = t^(-1/k)."""
    return np.random.default_rng(seed).exponential(k, size=shape)


@pytest.mark.parametrize("num_draws", [100, 225, 400, 900, 2500])  # M is the same rounded up or down
def test_agrees_with_arviz_column_by_column(num_draws):
    array_stats = pytest.importorskip("arviz_stats.base").array_stats
    rng = np.random.default_rng(num_draws)
    scale = np.linspace(0.05, 5.0, 40)
    log_weights = rng.normal(-300.0, 1.0, size=(num_draws, 40)) * scale
    smoothed, khat = psis(log_weights)
    for n in range(40):
        expected, expected_khat = array_stats.psislw(-log_weights[:, n])  # it takes minus the log weight
        assert khat[n] == pytest.approx(float(expected_khat), abs=1e-9)
        normalised = smoothed[:, n] - log_mean_exp(smoothed[:, [n]]) - np.log(num_draws)
        np.testing.assert_allclose(normalised, expected, atol=1e-9)


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_recovers_a_known_shape(k):
    num_draws, repeats = 4000, 500
    khat = psis(exponential_ratios(k, (num_draws, repeats))).khat
    asymptotic_sd = (1 + k) / np.sqrt(tail_length(num_draws))
    prior_pull = 10 / (tail_length(num_draws) + 10) * (0.5 - k)
    assert abs(khat.mean() - k - prior_pull) < 0.2 * asymptotic_sd
    assert khat.std() < 1.2 * asymptotic_sd


def test_the_sign_is_that_of_the_log_weight():
    heavy = exponential_ratios(0.9, (2000, 20))
    assert psis(heavy).khat.mean() > 0.7
    assert psis(-heavy).khat.mean() < 0.1  # weights bounded by one


def test_only_the_tail_changes_and_order_is_kept():
    raw = exponential_ratios(0.8, (1000, 10), seed=3) - 50.0
    smoothed, _ = psis(raw)
    order = np.argsort(raw, axis=0)
    body, tail = order[: -tail_length(1000)], order[-tail_length(1000) :]
    kept, given = np.take_along_axis(smoothed, body, 0), np.take_along_axis(raw, body, 0)
    np.testing.assert_allclose(kept, given, rtol=1e-14)
    assert (np.diff(np.take_along_axis(smoothed, tail, 0), axis=0) >= 0).all()
    assert (smoothed.max(axis=0) <= raw.max(axis=0) + 1e-12).all()


def test_shift_shifts_and_permutation_permutes():
    raw = exponential_ratios(0.6, (500, 30))
    shift = np.linspace(-900, 900, 30)
    smoothed, khat = psis(raw)
    moved = psis(raw + shift)
    np.testing.assert_allclose(moved.log_weights, smoothed + shift, atol=1e-9)
    np.testing.assert_allclose(moved.khat, khat, atol=1e-8)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(psis(raw[:, order]).khat, khat[order])


def test_input_is_left_alone():
    raw = exponential_ratios(0.6, (500, 3))
    before = raw.copy()
    psis(raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_failed_datapoint_is_marked_and_spoils_no_other(poison):
    raw = exponential_ratios(0.6, (500, 4))
    clean = psis(raw)
    raw[7, 1] = poison
    spoiled = psis(raw)
    assert np.isnan(spoiled.khat[1])
    np.testing.assert_array_equal(np.delete(spoiled.khat, 1), np.delete(clean.khat, 1))
    np.testing.assert_array_equal(np.delete(spoiled.log_weights, 1, 1), np.delete(clean.log_weights, 1, 1))


class TestDegenerate:
    def test_too_few_draws_to_say(self):
        raw = exponential_ratios(0.5, (16, 3))
        smoothed, khat = psis(raw)
        assert tail_length(16) < MIN_TAIL
        assert np.isnan(khat).all()
        np.testing.assert_array_equal(smoothed, raw)

    def test_constant_weights_have_every_moment(self):
        exact = np.full((1000, 1), -123.4)
        rounded = (exact + np.random.default_rng(0).normal(0, 3e-6, size=exact.shape)).astype(np.float32)
        np.testing.assert_array_equal(psis(np.hstack([exact, rounded])).khat, [0.0, 0.0])

    def test_all_zero(self):
        smoothed, khat = psis(np.full((100, 1), -np.inf))
        assert np.isnan(khat).all()
        assert np.isneginf(smoothed).all()

    def test_zero_weights_in_the_body_change_nothing(self):
        raw = exponential_ratios(0.7, (1000, 1))
        some = raw.copy()
        some[np.argsort(raw[:, 0])[:300], 0] = -np.inf
        np.testing.assert_array_equal(psis(some).khat, psis(raw).khat)

    def test_collapsed_weights(self):
        raw = np.full((1000, 2), -np.inf)
        raw[:3, 0] = [0.0, 1.0, 2.0]
        raw[:, 1] = np.linspace(-1e6, 0, 1000)  # the largest outweighs the rest by 1000 nats
        smoothed, khat = psis(raw)
        assert np.isposinf(khat).all()
        np.testing.assert_array_equal(smoothed, raw)

    def test_ties_at_the_threshold(self):
        raw = np.zeros((1000, 2))
        raw[:40, 0] = exponential_ratios(0.5, (40, 1))[:, 0]
        raw[:3, 1] = 1.0
        smoothed, khat = psis(raw)
        assert np.isfinite(khat[0])
        assert np.isnan(khat[1])
        np.testing.assert_array_equal(smoothed[40:, 0], raw[40:, 0])


def test_smoothing_steadies_the_estimate():
    """E[w] = 1 / (1 - k) for Pareto weights; with k = .7 the raw mean has no variance."""
    raw = exponential_ratios(0.7, (500, 2000), seed=5)
    truth = -np.log1p(-0.7)
    raw_error = log_mean_exp(raw) - truth
    smooth_error = log_mean_exp(psis(raw).log_weights) - truth
    assert smooth_error.std() < 0.8 * raw_error.std()


def test_threshold():
    assert khat_threshold(1000) == pytest.approx(2 / 3)
    assert khat_threshold(10**6) == 0.7
    assert khat_threshold(50) < khat_threshold(500)
    with pytest.raises(ArgumentError, match="num_draws"):
        khat_threshold(1)


def test_twenty_thousand_datapoints_take_seconds():
    raw = exponential_ratios(0.6, (1000, 20_000))
    start = time.perf_counter()
    psis(raw)
    assert time.perf_counter() - start < 20  # about 1.5 s; one column at a time it takes half a minute
