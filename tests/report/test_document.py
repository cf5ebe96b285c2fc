from __future__ import annotations

import numpy as np
import pytest

from amortize.diagnostics import khat_threshold
from amortize.report.document import read_document, rung_names, sampled_steps
from amortize.report.tree import to_datatree
from tests.report import examples


@pytest.fixture(scope="module")
def document():
    return read_document(examples.digits_tree(20, failed=(3, 17)))


def test_summary_is_the_ledgers(document):
    made = examples.ledger(20, failed=(3, 17)).summary
    assert list(document["summary"]) == list(made.index)
    for name, row in made.iterrows():
        for statistic, value in row.items():
            assert document["summary"][name][statistic] == pytest.approx(value, nan_ok=True)
    assert isinstance(document["summary"]["inference_gap"]["num_failed"], int)


def test_ladder_climbs_to_the_evidence_in_paired_steps(document):
    table = examples.ledger(20, failed=(3, 17)).table.dropna()
    rungs = document["ladder"]
    assert [rung["name"] for rung in rungs] == [
        "elbo_guide",
        "elbo_mean_field",
        "elbo_full_covariance",
        "log_evidence",
    ]
    assert [rung.get("part") for rung in rungs] == [None, "amortization", "approximation", "approximation"]
    assert sum(rung.get("rise", 0.0) for rung in rungs) == pytest.approx(table["inference_gap"].mean())
    rise = table["elbo_mean_field"] - table["elbo_guide"]
    assert rungs[1]["rise"] == pytest.approx(rise.mean())
    assert rungs[1]["rise_se"] == pytest.approx(rise.std() / np.sqrt(18))


def test_failures_are_named_and_counted(document):
    assert document["failed"] == [3, 17]
    assert document["khat"]["num_unknown"] == 2
    assert document["evidence"]["AIS"]["num_failed"] == 2
    assert document["evidence"]["AIS"]["num_nonfinite"] == 320
    assert any("2 of 20 datapoints failed" in note and "3, 17" in note for note in document["notes"])
    assert any("320 proposals" in note for note in document["notes"])


def test_khat_threshold_follows_the_number_of_draws(document):
    assert document["khat"]["threshold"] == khat_threshold(1000)
    made = examples.FakeLedger(**{**vars(examples.ledger(5)), "settings": {}})
    assert read_document(to_datatree(ledger=made))["khat"]["threshold"] == 0.7


def test_every_quantity_says_where_it_comes_from(document):
    rows = {row["name"]: row for row in document["provenance"]}
    assert list(rows) == list(document["summary"])
    assert all(row["how"] and row["where"] == f"/gaps {name}" for name, row in rows.items())
    assert "AIS from the guide, seed 0" in rows["log_evidence"]["how"]
    assert "num_temperatures 100" in rows["log_evidence"]["how"]


def test_what_is_absent_is_absent():
    document = read_document(to_datatree(history=examples.history(10), attrs={"seed": 1, "mine": {"a": 1}}))
    assert {"summary", "evidence", "local", "verdict"}.isdisjoint(document)
    assert document["attrs"] == {"mine": {"a": 1}}
    assert document["notes"] == []


def test_training_keeps_every_validation():
    history = examples.history(5000)
    training = read_document(to_datatree(history=history))["training"]
    assert len(training["curve"]["step"]) < 800
    assert np.isfinite(training["curve"]["validation_elbo"]).sum() == 50
    assert training["final"]["elbo"] == history["elbo"].iloc[-1]
    assert training["final"]["validation_elbo"] == history["validation_elbo"].iloc[-1]


def test_impossible_gaps_and_collapsed_chains_are_noted():
    made = examples.ledger(10)
    made.table.loc[4, "inference_gap"] = -5.0
    made.evidence.ess[2] = 1.1
    notes = read_document(to_datatree(ledger=made))["notes"]
    assert any("1 of 10 datapoints with a gap more than two standard errors below zero" in note for note in notes)
    assert any("AIS: 1 of 10 datapoints whose log p(x) is not to be trusted" in note for note in notes)


def test_what_was_used_for_each_datapoint_and_at_what_cost():
    auto = read_document(examples.auto_tree())["evidence"]["auto"]
    rows = {row["name"]: row for row in auto["used"]}
    assert list(rows) == ["importance sampling (PSIS)", "AIS, 100 temperatures", "SMC"]  # the cheapest first
    assert sum(row["num_datapoints"] for row in rows.values()) == 120
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1.0)
    spent = np.array(auto["datapoints"]["num_gradients"])
    chosen = np.array(auto["datapoints"]["used"]) == "SMC"
    assert rows["SMC"]["share"] == pytest.approx(spent[chosen].sum() / spent.sum())
    assert rows["SMC"]["num_gradients"]["max"] == spent[chosen].max()
    assert auto["num_untrusted"] == auto["datapoints"]["trusted"].count(False) > 0
    assert (auto["target_se"], auto["num_missed"]) == (0.05, 0)
    assert auto["warnings"] == list(examples.auto_evidence().warnings)


def test_the_annealing_path_is_quantiles_over_datapoints():
    annealing = read_document(examples.auto_tree())["annealing"]
    assert list(annealing) == ["AIS, linear", "AIS"]  # auto has no one path
    made = examples.path(120)
    band = annealing["AIS"]["spread"]
    np.testing.assert_allclose(band["median"], np.median(made.spread, axis=1), rtol=1e-5)
    np.testing.assert_allclose(band["low"], np.quantile(made.spread, 0.1, axis=1), rtol=1e-5)
    np.testing.assert_allclose(annealing["AIS"]["beta"], made.betas[:, 0], atol=1e-6)
    step = np.median(np.diff(made.betas, axis=0) * made.spread[:-1], axis=1)
    np.testing.assert_allclose(annealing["AIS"]["step"]["median"][1:], step, rtol=1e-4)
    assert np.isnan(annealing["AIS"]["acceptance"]["median"][0])


def test_both_sides_and_what_lies_between():
    made, found = examples.sandwich(), read_document(examples.auto_tree())["sandwich"]
    gap = made.upper - made.lower
    assert (found["num_datapoints"], found["num_failed"]) == (79, 1)
    assert found["summary"]["gap"]["mean"] == pytest.approx(np.nanmean(gap)) == found["mean_gap"]
    assert found["summary"]["lower"]["mean"] == pytest.approx(made.lower[np.isfinite(gap)].mean())
    np.testing.assert_array_equal(found["datapoints"]["gap"], gap)


def test_temperatures_that_differ_between_datapoints_are_read_at_their_medians():
    rng = np.random.default_rng(0)
    betas = np.linspace(0, 1, 21)[:, None] ** rng.uniform(0.5, 3.0, 30)
    made = examples.ledger(30)
    path = examples.FakePath(betas, np.full((20, 30), 0.8), 10 - 9 * betas)  # the same function of beta for all
    object.__setattr__(made.evidence, "path", path)
    found = read_document(to_datatree(ledger=made))["annealing"]["AIS"]
    for row in found["spread"].values():
        np.testing.assert_allclose(row, 10 - 9 * np.array(found["beta"]), rtol=1e-5)


@pytest.mark.parametrize(("num", "limit", "expected"), [(0, 5, []), (1, 5, [0]), (3, 5, [0, 1, 2]), (9, 3, [0, 4, 8])])
def test_sampled_steps_keep_both_ends(num, limit, expected):
    assert sampled_steps(num, limit).tolist() == expected


def test_rungs_that_were_not_measured_are_left_out():
    assert rung_names(["flow"], ["elbo_guide", "log_evidence"]) == ["elbo_guide", "log_evidence"]


def test_tables_of_the_ledger_come_back_from_the_tree_as_they_were():
    made = examples.full_ledger(30)
    document = read_document(to_datatree(ledger=made))
    assert document["cause"] == "small-encoder"
    frames = {
        "tower": made.tower,
        "splits": made.splits.rename_axis("quantity").reset_index(),
        "labels": made.by().rename_axis("label").reset_index(),
        "latents": made.latents,
        "cost": made.cost.rename_axis("used").reset_index(),
        "break_even": made.break_even.rename_axis("used").reset_index(),
        "curve": made.curve(),
    }
    for name, frame in frames.items():
        assert document[name] == frame.to_dict("records"), name
    bare = read_document(to_datatree(ledger=examples.ledger(5)))
    assert set(frames) - set(bare) == {"splits", "labels", "latents", "break_even"}


def test_fits_that_had_not_converged_are_counted():
    made = examples.ledger(20)
    made.local["mean-field"].converged[:] = np.arange(20) < 17
    made.local["full-covariance"].converged[:] = True
    notes = read_document(to_datatree(ledger=made))["notes"]
    own = [note for note in notes if "had not converged" in note]
    assert len(own) == 1 and own[0].startswith("3 of 20 datapoints whose mean-field fit had not converged")
