"""What a study asks of its ledger beside the means: splits, labels, latents, cost, break-even and probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import amortize as am
from amortize.data import load_digits
from amortize.errors import SpecError
from amortize.report.document import read_document
from amortize.study.causes import CAUSES
from tests.study.tiny import mine, same_numbers, tiny, verbs, written

FULL: dict[str, Any] = {
    "ledger": {"num_train": 5, "probes": True},
    "local.families": ["low-rank", "laplace", "mean-field"],
    "local.settings": {"low-rank": {"rank": 1}},
    "local.num_steps": 20,
}


@pytest.fixture(autouse=True)
def short_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amortize.study.probes.CONTINUED_STEPS", 3)


def test_a_study_with_all_that_a_ledger_has(folder: Path, capsys: Any) -> None:
    result = am.run(tiny(**FULL), out="run")
    assert isinstance(result, am.StudyResult)
    ledger = result.ledger
    assert ledger.families == ("laplace", "mean-field", "low-rank")
    assert ledger.local["low-rank"].family_settings["rank"] == 1
    assert ledger.splits is not None and ledger.train is not None
    assert (len(ledger.train.table), ledger.cause in CAUSES) == (5, True)
    np.testing.assert_array_equal(ledger.labels, load_digits().y_test[:6])
    tower, gap = ledger.tower, ledger.summary.loc["inference_gap", "mean"]
    assert tower["gain"].sum() == pytest.approx(gap)
    assert ledger.latents is not None and len(ledger.latents) == 2
    assert ledger.cost.loc["guide", "training_gradients"] == 30 * 32
    assert set(ledger.unaided) == {"mean-field"}

    tree = written(Path("run"))
    same_numbers(tree, result.tree)
    document = read_document(tree)
    assert [row["gain"] for row in document["tower"]] == pytest.approx(tower["gain"].tolist())
    assert {row["label"] for row in document["labels"]} == set(map(str, load_digits().y_test[:6]))
    by = ledger.by()
    assert [row["inference_gap"] for row in document["labels"]] == pytest.approx(by["inference_gap"].tolist())
    assert [row["kl"] for row in document["latents"]] == pytest.approx(ledger.latents["kl"].tolist())
    assert document["cause"] == ledger.cause
    page = Path("run/report.html").read_text(encoding="utf-8")
    for section in ("splits", "labels", "latents", "cost", "ladder"):
        assert f'<section id="{section}">' in page

    capsys.readouterr()
    again = am.run(tiny(**FULL), out="run", resume=True, progress=True)
    assert set(verbs(capsys.readouterr().err).values()) == {"kept"}
    assert isinstance(again, am.StudyResult)
    same_numbers(again.tree, result.tree)
    assert repr(again.ledger.clues) == repr(ledger.clues)  # NaN where nothing was looked at
    assert again.ledger.training == ledger.training


def test_labels_are_an_array_of_the_data_by_name(folder: Path) -> None:
    study = mine("named", "two.npz", **{"ledger.labels": "size", "local.num_steps": 5, "ledger.break_even": False})
    result = am.run(study)
    assert isinstance(result, am.StudyResult)
    sizes = np.load("two.npz")["size"][result.ledger.table.index]
    np.testing.assert_allclose(np.asarray(result.ledger.labels, dtype=float), sizes, rtol=1e-6)
    assert result.ledger.unaided == {}
    assert len(result.tree["labels"].to_dataset()["label"]) == 4  # a covariate, cut into groups
    for name, message in {
        "sizes": r"no array 'sizes' \(did you mean size\?\)\. It is given: counts, size",
        "counts": r"expected a finite number a datapoint, got counts of shape",
    }.items():
        with pytest.raises(SpecError, match=f"ledger.labels: .*{message}"):
            am.run(study.with_values({"ledger.labels": name}), out="run")
        assert not Path("run").exists()


def test_in_one_dimension_every_gaussian_is_fitted_once(folder: Path) -> None:
    text = Path("mine.py").read_text().replace("torch.zeros(3)", "torch.zeros(1)")
    Path("mine.py").write_text(text)
    families = {"local.families": ["mean-field", "low-rank", "full-covariance", "laplace"], "local.num_steps": 5}
    result = am.run(mine("prior_alone", **families))
    assert isinstance(result, am.StudyResult)
    assert result.ledger.families == ("laplace", "mean-field")
    notes = read_document(result.tree)["notes"]
    assert any("left out: low-rank, full-covariance, in one dimension the same as mean-field" in note for note in notes)
