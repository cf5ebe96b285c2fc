"""Seeded orders: permutations, the same everywhere, and every stretch has each class in its share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from amortize.data import data_hash, random_order
from amortize.data.splits import hold_out, is_labels
from amortize.errors import DataError
from tests.statistics import FALSE_ALARM_RATE

LABELS = np.repeat([0, 1, 2, 3], [400, 300, 200, 10])


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("seed", [0, 1])
def test_an_order_is_a_permutation(labels, seed):
    order = random_order(len(LABELS), seed, labels)
    assert np.array_equal(np.sort(order), np.arange(len(LABELS)))
    assert np.array_equal(order, random_order(len(LABELS), seed, labels))
    assert not np.array_equal(order, random_order(len(LABELS), seed + 1, labels))


def test_orders_are_pinned():
    assert data_hash(random_order(910, 0)) == "d016e4a7efa6bf210ee2c0f4880e05eb9d10b8ce2190500e694adb5896b020df"
    assert data_hash(random_order(910, 0, LABELS)) == "880713e088a0fdb6b27fd0b2a1961d1fc3ab03fbf2d1050477b9efc2b0f49ff1"


def test_every_stretch_has_each_class_in_its_share():
    ordered = LABELS[random_order(len(LABELS), 0, LABELS)]
    share = np.bincount(LABELS) / len(LABELS)
    for first in range(0, 900, 50):
        for last in range(first + 1, 911, 37):
            found = np.bincount(ordered[first:last], minlength=4)
            assert np.abs(found - share * (last - first)).max() <= 4


def test_every_row_of_a_class_is_as_likely_its_first_as_any_other():
    """Chi-square of the first row of a class of 15, among 20 rows, in 3000 orders; 14 degrees of freedom."""
    labels = np.repeat([0, 1], [15, 5])
    orders = [random_order(20, seed, labels) for seed in range(3000)]
    counts = np.bincount([order[order < 15][0] for order in orders], minlength=15)
    assert ((counts - 200.0) ** 2 / 200.0).sum() < chi2.isf(FALSE_ALARM_RATE, 14)


def test_holding_out():
    kept, held = hold_out(np.arange(10), 0.2, what="x")
    assert kept.tolist() == list(range(8))
    assert held.tolist() == [8, 9]
    assert len(hold_out(np.arange(10), 0.001, what="x")[1]) == 1
    with pytest.raises(DataError, match="x: 1 datapoints are too few"):
        hold_out(np.arange(1), 0.5, what="x")


@pytest.mark.parametrize(
    ("y", "verdict"),
    [(None, False), ([0, 1, 0, 1], True), ([0, 1, 2], False), ([0.5, 0.5], False), ([[0, 0]], False), ([], False)],
)
def test_what_is_stratified_by(y, verdict):
    assert is_labels(None if y is None else np.array(y)) == verdict
