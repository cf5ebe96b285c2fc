"""Splits and labels: differences and their errors, planted labels found, and none where none is worse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from amortize.errors import ArgumentError
from amortize.study.splits import FALSE_ALARMS, _as_normal, by_label, compare_splits
from tests.statistics import z_value


def table(gap: np.ndarray, *, approximation: float = 0.1) -> pd.DataFrame:
    num = len(gap)
    frame = pd.DataFrame({"log_evidence": np.zeros(num), "elbo_guide": -gap, "inference_gap": gap})
    frame["approximation_gap"] = approximation
    frame["amortization_gap"] = gap - approximation
    frame["khat"], frame["ess"], frame["inference_gap_se"] = 0.3, 100.0, 0.01
    return frame


def test_the_splits_are_means_and_their_difference():
    rng = np.random.default_rng(0)
    train, test = table(rng.exponential(0.5, size=50)), table(rng.exponential(2.0, size=30), approximation=0.2)
    splits = compare_splits(train, test)
    assert list(splits.index) == [
        "log_evidence",
        "elbo_guide",
        "inference_gap",
        "approximation_gap",
        "amortization_gap",
    ]
    row = splits.loc["amortization_gap"]
    first, second = train["amortization_gap"], test["amortization_gap"]
    assert row["train"] == pytest.approx(first.mean())
    assert row["test"] == pytest.approx(second.mean())
    assert row["difference"] == pytest.approx(second.mean() - first.mean())
    assert row["difference_se"] == pytest.approx(np.hypot(first.std() / 50**0.5, second.std() / 30**0.5))
    assert (row["num_train"], row["num_test"]) == (50, 30)
    terms = splits.loc[["approximation_gap", "amortization_gap"], "difference"].sum()
    assert splits.loc["inference_gap", "difference"] == pytest.approx(terms, abs=1e-12)


def test_a_datapoint_that_failed_is_left_out_of_its_split():
    train, test = table(np.ones(10)), table(np.full(10, 2.0))
    test.loc[4, "inference_gap"] = np.inf
    row = compare_splits(train, test).loc["inference_gap"]
    assert (row["difference"], row["num_test"]) == (1.0, 9)


def test_the_label_on_which_the_encoder_fails_is_found_and_no_other():
    rng = np.random.default_rng(1)
    labels = np.repeat([3, 10, 7], 40)
    gap = rng.normal(1.0, 0.3, size=120) + 0.8 * (labels == 10)
    found = by_label(table(gap), labels)
    assert found.index.tolist() == ["3", "7", "10"]
    assert found["num"].tolist() == [40, 40, 40]
    assert found["worse"].tolist() == [False, False, True]
    own, rest = gap[labels == 10], gap[labels != 10]
    assert found.loc["10", "inference_gap"] == pytest.approx(own.mean())
    assert found.loc["10", "difference"] == pytest.approx(own.mean() - rest.mean())
    error = np.hypot(own.std(ddof=1) / 40**0.5, rest.std(ddof=1) / 80**0.5)
    assert found.loc["10", "z"] == pytest.approx((own.mean() - rest.mean()) / error)


@pytest.mark.parametrize("size", [30, 5])
def test_where_no_label_is_worse_one_is_called_so_as_seldom_as_promised(size):
    rng, repeats = np.random.default_rng(2), 300
    labels = np.repeat(list("abcdefgh"), size)
    alarms = sum(by_label(table(rng.normal(size=8 * size)), labels)["worse"].any() for _ in range(repeats))
    allowed = repeats * FALSE_ALARMS
    assert alarms < allowed + (z_value() + 1) * allowed**0.5  # an error of 30 is itself uncertain: slightly more


@pytest.mark.parametrize("degrees", [4, 9, 60])
def test_errors_of_few_values_count_by_students_t(degrees):
    for tail in (0.2, 0.01, 0.0005):
        t, z = stats.t(degrees).isf(tail), stats.norm.isf(tail)
        assert _as_normal(t, degrees) == pytest.approx(z, rel=0.02)
        assert _as_normal(-t, degrees) == pytest.approx(-z, rel=0.02)


def test_a_covariate_is_cut_into_groups_of_equal_size():
    values = np.random.default_rng(3).permutation(np.linspace(0.0, 1.0, 80))
    found = by_label(table(values.copy()), values, num_groups=4)
    assert found["num"].tolist() == [20, 20, 20, 20]
    assert found["inference_gap"].is_monotonic_increasing
    assert found["worse"].tolist() == [False, False, True, True]
    assert by_label(table(np.ones(60)), np.arange(60))["num"].tolist() == [15, 15, 15, 15]
    assert by_label(table(np.ones(9)), np.full(9, 0.5))["num"].tolist() == [9]


def test_few_datapoints_are_not_called_worse_and_failed_ones_are_counted():
    gap = np.array([0.1, 0.11, 0.12, 0.1, 0.13, 0.09, 5.0, 5.1])
    frame = table(gap)
    frame.loc[0, "inference_gap"] = np.nan
    found = by_label(frame, [value > 1 for value in gap])
    assert found.index.tolist() == ["False", "True"]
    assert found["num_failed"].tolist() == [1, 0]
    assert found.loc["True", "z"] > 50
    assert not found["worse"].any()


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match=r"labels: expected one for each of 3 datapoints, shape \(3,\), got"):
        by_label(table(np.ones(3)), ["a", "b"])
    with pytest.raises(ArgumentError, match="labels: expected finite numbers, got 1"):
        by_label(table(np.ones(2)), [0.1, np.nan])
    with pytest.raises(ArgumentError, match="num_groups"):
        by_label(table(np.ones(2)), [0.1, 0.2], num_groups=1)
