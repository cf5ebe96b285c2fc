"""Comparisons of runs: paired by datapoint, exact, and refused where the datapoints aren't the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import amortize as am
from amortize.errors import AmortizeWarning, ArgumentError, ComparisonError
from amortize.report.files import write_tree
from amortize.report.tree import to_datatree
from tests.report import examples
from tests.statistics import z_value

GAPS = ("inference_gap", "amortization_gap", "elbo_guide")


def tree(num: int = 60, *, shift: float = 0.0, noise: float = 0.0, **changes: Any) -> xr.DataTree:
    """A run whose guide is worse by ``shift`` nats on each datapoint, and by chance."""
    made = examples.ledger(num)
    lost = shift + noise * np.random.default_rng(5).normal(size=num)
    made.table["elbo_guide"] -= lost
    made.table[["inference_gap", "amortization_gap"]] += lost[:, None]
    observed = changes.pop("observed", np.arange(num, dtype=float))
    attrs = {**examples.ATTRS, **changes}
    return to_datatree(ledger=made, groups={"observed_data": {"x": observed}}, attrs=attrs)


def test_a_difference_is_that_of_each_datapoint() -> None:
    found = am.compare(tree(), tree(shift=0.5, noise=0.3))
    lost = 0.5 + 0.3 * np.random.default_rng(5).normal(size=60)
    np.testing.assert_allclose(found.table["inference_gap"], lost)
    np.testing.assert_allclose(found.table["elbo_guide"], -lost)
    row = found.summary.loc["inference_gap"]
    assert row["difference"] == pytest.approx(lost.mean()) == pytest.approx(row["b"] - row["a"])
    assert row["se"] == pytest.approx(lost.std(ddof=1) / np.sqrt(60))
    assert row["z"] == pytest.approx(row["difference"] / row["se"])
    assert row["se"] < examples.ledger(60).summary.loc["inference_gap", "se"] / 2  # paired
    assert (row["num"], row["num_failed"]) == (60, 0)
    assert {"khat", "ess"}.isdisjoint(found.summary.index)


def test_the_same_run_differs_in_nothing() -> None:
    found = am.compare(tree(), tree())
    assert (found.summary["difference"] == 0).all() and found.summary["z"].isna().all()
    assert found.sentences == ("Nothing differs by more than three standard errors.",)


def test_noise_alone_is_no_difference_and_a_small_shift_is_one() -> None:
    noisy = am.compare(tree(400), tree(400, noise=0.5))
    assert abs(noisy.summary.loc["inference_gap", "z"]) < z_value()
    shifted = am.compare(tree(400), tree(400, shift=0.2, noise=0.5))
    assert shifted.summary.loc["inference_gap", "z"] > 3
    assert any(sentence.startswith("inference gap: ") and "higher in b" in sentence for sentence in shifted.sentences)
    assert any(sentence.startswith("elbo guide: ") and "lower in b" in sentence for sentence in shifted.sentences)


def test_a_datapoint_that_failed_in_either_is_left_out_and_counted() -> None:
    failed = examples.ledger(20, failed=(3,))
    one = tree(20)
    two = to_datatree(ledger=failed, attrs=examples.ATTRS, groups={"observed_data": {"x": np.arange(20.0)}})
    row = am.compare(one, two).summary.loc["inference_gap"]
    assert (row["num"], row["num_failed"], row["difference"]) == (19, 1, 0.0)


def test_other_data_and_other_datapoints_are_refused() -> None:
    with pytest.raises(ComparisonError, match=r"of different data: .* has the hash sha256:3f1c0"):
        am.compare(tree(), tree(data_hash="sha256:0000000"))
    with pytest.raises(ComparisonError, match=r"different datapoints: 60 and 40, of which 40 are in both"):
        am.compare(tree(60), tree(40))
    named = replace(examples.ledger(60))
    named.table.index = named.table.index[::-1]
    swapped = to_datatree(ledger=named, attrs=examples.ATTRS)
    with pytest.raises(ComparisonError, match="60 and 60, of which 60 are in both"):
        am.compare(tree(60), swapped)
    bare = to_datatree(ledger=examples.ledger(60))
    with pytest.raises(ComparisonError, match="don't say what data they are of"):
        am.compare(bare, bare)
    assert issubclass(ComparisonError, ArgumentError)


def test_programs_that_observe_other_values_are_warned_of() -> None:
    with pytest.warns(AmortizeWarning, match="only the gaps can be compared"):
        am.compare(tree(), tree(observed=np.arange(60.0) ** 2))
    am.compare(tree(), tree(observed=np.arange(60.0)[:, None]))  # the same numbers in another shape


def test_runs_are_named_by_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_tree(tree(shift=0.1 * (name == "b")), tmp_path / name / "tree.nc")
    found = am.compare(tmp_path / "a", str(tmp_path / "b"))
    assert found.names == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert found.summary.loc["inference_gap", "difference"] == pytest.approx(0.1)
    (tmp_path / "grid" / "cells").mkdir(parents=True)
    (tmp_path / "a").rename(tmp_path / "grid" / "cells" / "seed-0")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "spec.toml").write_text("")
    for wrong, message in {
        tmp_path / "grid": r"is a grid; name one of its cells, as .*seed-0",
        tmp_path / "half": r"isn't finished \(no tree\.nc\)\. Finish it: amortize resume",
        tmp_path / "none": "no such folder",
        tmp_path: r"holds no run of amortize",
        3: "expected the folder of a run, or what am.run returned for one study, got int",
    }.items():
        with pytest.raises(ArgumentError, match=message):
            am.compare(wrong, tmp_path / "b")
