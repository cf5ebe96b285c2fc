"""Chains whose mixing is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.base import array_stats

from amortize.diagnostics.chains import Mixing, chain_moments, doubts, mixing
from amortize.errors import ArgumentError
from tests.statistics import z_value


def autoregressive(rho: float, *, chains: int = 4, draws: int = 2000, num: int = 20, seed: int = 0) -> np.ndarray:
    """Standard normal chains (C, S, N, 1) whose neighbours have correlation ``rho``."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(draws, chains, num, 1))
    rows = [noise[0]]
    for step in noise[1:]:
        rows.append(rho * rows[-1] + np.sqrt(1 - rho**2) * step)
    return np.stack(rows, 1)


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.6])
def test_effective_draws_of_an_autoregression(rho):
    draws = autoregressive(rho)
    exact = 4 * 2000 * (1 - rho) / (1 + rho)
    assert abs(mixing(draws).ess_bulk.mean() / exact - 1) < 0.1
    assert abs(chain_moments(draws).ess.mean() / exact - 1) < 0.1


@pytest.mark.parametrize("rho", [-0.4, 0.0, 0.6])
def test_standard_errors_cover_the_truth(rho):
    """Of the sd too, where chains are anticorrelated: its error is not that of the mean."""
    moments = chain_moments(autoregressive(rho, draws=500, num=400))
    for error, se in ((moments.mean, moments.mean_se), (moments.sd - 1, moments.sd_se)):
        score = error / se
        assert (np.abs(score) < z_value(400) * 1.2).all()
        assert 0.85 < score.std() < 1.15


def test_it_is_arviz_that_computes():
    draws = autoregressive(0.5, draws=100, num=2)
    found = mixing(draws)
    for n in range(2):
        assert found.rhat[n, 0] == array_stats.rhat(draws[:, :, n, 0], method="rank")
        assert found.ess_tail[n, 0] == array_stats.ess(draws[:, :, n, 0], method="tail", prob=(0.05, 0.95))


def test_chains_in_different_places_or_of_different_width_are_found_out():
    draws = np.random.default_rng(1).normal(size=(4, 500, 3, 1))
    draws[0, :, 1] += 1.0
    draws[0, :, 2] *= 2.0
    rhat = mixing(draws).rhat[:, 0]
    assert rhat[0] < 1.01 < min(rhat[1:])


def test_what_does_not_move_or_is_not_finite_is_nan_and_spoils_no_other():
    draws = np.random.default_rng(2).normal(size=(2, 50, 4, 1))
    draws[:, :, 1], draws[0, 3, 2], draws[1, 5, 3] = 1.0, np.nan, np.inf
    for column in mixing(draws):
        assert np.isfinite(column[0, 0]) and np.isnan(column[1:, 0]).all()
    words = doubts(mixing(draws), np.zeros(4), num_chains=2)
    assert all("not finite" in word for word in words[1:])


@pytest.mark.parametrize(
    ("values", "divergent", "word"),
    [
        ((1.001, 900.0, 800.0), 0.0, ""),
        ((1.011, 900.0, 800.0), 0.0, "R-hat 1.011"),
        ((1.001, 399.0, 800.0), 0.0, "399"),
        ((1.001, 900.0, 10.0), 0.0, "10 effective"),
        ((1.001, 900.0, 800.0), 0.01, "1.00% of transitions"),
        ((np.nan, 900.0, 800.0), 0.0, "not finite"),
        ((1.001, np.nan, 800.0), 0.0, "nan effective"),
    ],
)
def test_doubts_name_their_reason(values, divergent, word):
    good = np.array([[1.0], [4000.0], [4000.0]])
    found = Mixing(*np.concatenate([good, np.array(values)[:, None]], 1)[:, None])  # the worst number counts
    (said,) = doubts(found, [divergent], num_chains=4)
    assert (said == "") == (word == "") and word in said


@pytest.mark.parametrize("shape", [(4, 10, 3), (1, 10, 3, 1), (2, 3, 1, 1)])
def test_shapes_are_checked(shape):
    with pytest.raises(ArgumentError, match="draws: expected"):
        mixing(np.zeros(shape))
