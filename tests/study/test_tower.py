"""The tower: each step is the difference of its rungs, paired, and the steps add up to the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from amortize.study.tower import COLUMNS, tower

N = 40
RUNGS = {"guide": 3.0, "mean-field": 2.0, "full-covariance": 1.5, "mixture": 0.25}


def table(*, spread: float = 50.0, seed: int = 0) -> pd.DataFrame:
    """Rungs this far below the evidence, which spreads widely over datapoints; small noise of their own."""
    rng = np.random.default_rng(seed)
    columns = {"log_evidence": rng.normal(scale=spread, size=N)}
    for name, below in RUNGS.items():
        columns[f"elbo_{name.replace('-', '_')}"] = columns["log_evidence"] - below + 0.1 * rng.normal(size=N)
    frame = pd.DataFrame(columns)
    for number, name in enumerate(columns):
        frame[f"{name}_se"] = 0.01 * (number + 1)
    return frame


def test_each_step_is_the_paired_difference_of_its_rungs():
    frame = table()
    steps = tower(frame, ["mixture", "full-covariance", "mean-field"])
    names = ["guide", "mean-field", "full-covariance", "mixture", "log_evidence"]
    assert list(steps.columns) == COLUMNS
    assert steps["lower"].tolist() == names[:-1]
    assert steps["upper"].tolist() == names[1:]
    values = [frame[name if name == "log_evidence" else f"elbo_{name.replace('-', '_')}"] for name in names]
    for step, (lower, upper) in enumerate(pairwise(values)):
        gains = upper - lower
        assert steps.loc[step, "gain"] == pytest.approx(gains.mean())
        assert steps.loc[step, "se"] == pytest.approx(gains.std() / N**0.5)
    assert (steps["se"] < 0.05).all()  # paired: the spread of 50 nats over datapoints is in no step
    np.testing.assert_allclose(steps["mc_se"], np.hypot([0.02, 0.03, 0.04, 0.05], [0.03, 0.04, 0.05, 0.01]) / N**0.5)
    assert steps[["num", "num_failed"]].to_numpy().tolist() == [[N, 0]] * 4


def test_the_steps_add_up_to_the_gap_exactly():
    frame = table()
    frame.loc[3, "elbo_mixture"], frame.loc[[5, 6], "elbo_guide"] = np.nan, -np.inf
    steps = tower(frame, list(RUNGS)[1:])
    good = frame.drop(index=[3, 5, 6])
    gap = (good["log_evidence"] - good["elbo_guide"]).mean()
    assert steps["gain"].sum() == pytest.approx(gap, abs=1e-12)
    assert steps["num"].tolist() == [N - 3] * 4
    assert steps["num_failed"].tolist() == [2, 0, 1, 1]


def test_a_richer_family_that_came_out_lower_is_shown_so():
    frame = table()
    frame["elbo_mixture"] = frame["elbo_full_covariance"] - 1.0
    assert tower(frame, ["full-covariance", "mixture"]).loc[1, "gain"] == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("dropped", "families", "steps"),
    [
        (["elbo_guide"], ["mean-field"], [("mean-field", "log_evidence")]),
        ([], [], [("guide", "log_evidence")]),
        (["elbo_guide"], [], []),
    ],
)
def test_without_guide_or_families_there_are_fewer_steps(dropped, families, steps):
    frame = table()[[name for name in table() if name in ("log_evidence", "elbo_guide", "elbo_mean_field")]]
    kept = frame.drop(columns=[*dropped, *([] if families else ["elbo_mean_field"])])
    found = tower(kept, families)
    assert list(found.columns) == COLUMNS
    assert list(zip(found["lower"], found["upper"], strict=True)) == steps


def test_one_datapoint_has_no_error_and_none_has_no_gain():
    assert np.isnan(tower(table().iloc[:1], ["mean-field"])["se"]).all()
    lost = table().assign(log_evidence=np.nan)
    steps = tower(lost, ["mean-field"])
    assert steps["gain"].isna().all()
    assert steps["num"].tolist() == [0, 0]
    assert steps["num_failed"].tolist() == [0, N]
