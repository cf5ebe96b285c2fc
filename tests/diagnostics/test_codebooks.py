"""Codebook usage: known perplexities, a standard error that is one, and a collapse that is seen."""

from __future__ import annotations

import numpy as np
import pytest

from amortize.diagnostics.codebooks import code_information, codebook_usage
from amortize.errors import ArgumentError
from tests.statistics import z_value


def test_a_uniform_codebook_has_perplexity_k_and_a_collapsed_one_has_1():
    uniform = codebook_usage(np.arange(24).reshape(6, 4) % 8, 8)
    assert uniform.perplexity == pytest.approx(8.0, abs=1e-12) and uniform.num_dead == 0
    collapsed = codebook_usage(np.full((6, 4), 3), 8)
    assert collapsed.perplexity == pytest.approx(1.0, abs=1e-12)
    assert collapsed.dead.tolist() == [0, 1, 2, 4, 5, 6, 7] and collapsed.perplexity_se == 0.0


def test_known_shares():
    usage = codebook_usage([0, 0, 1, 2], 5)
    assert usage.shares.tolist() == [0.5, 0.25, 0.25, 0.0, 0.0]
    assert usage.perplexity == pytest.approx(np.exp(1.5 * np.log(2)), abs=1e-12)
    assert usage.histogram.tolist() == [0.5, 0.25, 0.25, 0.0, 0.0] and usage.num_dead == 2


def test_positions_are_told_apart_where_each_has_codes_of_its_own():
    codes = np.array([[0, 2], [1, 2], [0, 3], [1, 3]])
    usage = codebook_usage(codes, 4)
    assert usage.perplexity == pytest.approx(4.0)
    np.testing.assert_allclose(usage.position_perplexities, [2.0, 2.0])
    np.testing.assert_array_equal(usage.counts, [[2, 2, 0, 0], [0, 0, 2, 2]])


def test_a_grid_is_flattened_and_the_order_of_datapoints_is_no_matter():
    codes = np.random.default_rng(0).integers(0, 5, (20, 3, 2))
    grid, shuffled = codebook_usage(codes, 5), codebook_usage(codes[::-1], 5)
    np.testing.assert_array_equal(grid.counts, shuffled.counts)
    np.testing.assert_array_equal(grid.counts, codebook_usage(codes.reshape(20, 6), 5).counts)
    assert grid.perplexity_se == pytest.approx(shuffled.perplexity_se)


@pytest.mark.parametrize("tied", [False, True], ids=["positions apart", "positions tied"])
def test_the_standard_error_is_the_spread_of_fresh_samples(tied):
    """Where a datapoint's positions are all alike they're no further evidence, and the error must say so."""
    rng, shares, repeats = np.random.default_rng(1), np.array([0.5, 0.3, 0.15, 0.05]), 400
    seen, errors = [], []
    for _ in range(repeats):
        codes = rng.choice(4, size=(300, 1 if tied else 6), p=shares)
        usage = codebook_usage(np.repeat(codes, 6, axis=1) if tied else codes, 4)
        seen.append(usage.perplexity)
        errors.append(usage.perplexity_se)
    spread = np.std(seen, ddof=1)
    assert abs(np.mean(errors) / spread - 1.0) < z_value() * np.sqrt(0.5 / (repeats - 1))


def test_information_is_that_of_a_known_channel():
    """A symmetric channel: the code is the datapoint's with probability 1 - e, and any other alike."""
    error = 0.1
    channel = np.where(np.eye(4, dtype=bool), 1 - error, error / 3)
    exact = np.log(4) + (1 - error) * np.log(1 - error) + error * np.log(error / 3)
    lottery = np.full((4, 4), 0.25)
    told = code_information(np.stack([channel, lottery], axis=1))
    np.testing.assert_allclose(told, [exact, 0.0], atol=1e-12)


def test_information_of_hard_codes_is_the_entropy_of_their_usage():
    codes = np.random.default_rng(2).integers(0, 5, (50, 3))
    usage = codebook_usage(codes, 5)
    np.testing.assert_allclose(np.exp(code_information(np.eye(5)[codes])), usage.position_perplexities)
    np.testing.assert_allclose(usage.information, code_information(np.eye(5)[codes]))


def test_information_of_a_guide_stands_beside_its_codes():
    assert codebook_usage([[0, 1], [1, 0]], 2, information=[0.1, 0.2]).information.tolist() == [0.1, 0.2]
    with pytest.raises(ArgumentError, match="information: expected one number for each of 2 positions"):
        codebook_usage([[0, 1], [1, 0]], 2, information=[0.1])


def test_in_words():
    words = str(codebook_usage([[0, 0], [1, 0], [0, 1], [1, 1]], 3))
    assert words == "perplexity 2.0 +- 0.0 of 3 codes, 2 used, 1 dead; 0.69 nats a position tell of the datapoint"


@pytest.mark.parametrize(
    ("codes", "num_codes", "words"),
    [
        ([[0.0, 1.0]], 3, r"codes: expected integers \(N, ...\)"),
        (np.zeros((0, 4), int), 3, "one datapoint or more"),
        (2, 3, "codes: expected integers"),
        ([[0, 3]], 3, "0 to 2"),
        ([[-1, 0]], 3, "got -1 to 0"),
        ([[0, 0]], 1, "num_codes: expected an integer of at least 2"),
    ],
)
def test_what_is_no_code_is_refused(codes, num_codes, words):
    with pytest.raises(ArgumentError, match=words):
        codebook_usage(codes, num_codes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((2, 3), 1 / 3), "shape"),
        (np.full((2, 1, 3), 0.5), "sum to 1"),
        ([[[1.5, -0.5]]], "from 0 up"),
        ([[[np.nan, 1.0]]], "from 0 up"),
    ],
)
def test_what_is_no_probability_is_refused(values, words):
    with pytest.raises(ArgumentError, match=words):
        code_information(values)
