from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest

import amortize as am
from amortize.errors import ArgumentError, DataError
from amortize.report.tree import to_datatree
from tests.report import examples


class Page(HTMLParser):
    """Ids, tags and text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self._silent = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._silent += tag in ("script", "style")
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def strict(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    path = am.report(examples.digits_tree(30, failed=(3, 17)), folder / "report.html")
    return Page(path.read_text(encoding="utf-8")), strict(folder / "report.json")


SECTIONS = ["verdict", "summary", "ladder", "gaps", "khat", "worst", "training", "samples", "evidence", "sources"]


def test_sections_come_in_order(digits):
    page, _ = digits
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))


def test_the_page_says_what_report_json_says(digits):
    page, numbers = digits
    assert numbers["verdict"] in page.text
    assert numbers["advice"] in page.text
    assert all(note in page.text for note in numbers["notes"])
    assert numbers["summary"]["inference_gap"]["num_failed"] == 2
    for name in numbers["summary"]:
        assert f"row-{name}" in page.ids
    for fact in ("data_hash", "spec_hash", "command", "created"):
        assert str(numbers[fact]) in page.text


def test_doubtful_evidence_is_said_with_its_remedy(tmp_path):
    page = Page(am.report(examples.auto_tree(), tmp_path / "report.html").read_text(encoding="utf-8"))
    numbers = strict(tmp_path / "report.json")["evidence"]
    for name in ("auto", "AIS, linear"):
        assert numbers[name]["warnings"]
        assert all(f"{name}: {warning}" in page.text for warning in numbers[name]["warnings"])
    assert "120 of 120 datapoints: one step of the annealing path (beta from 0.4 to 0.7)" in page.text
    assert numbers["AIS"]["warnings"] == []
    assert "What was used for each datapoint: auto" in page.text
    assert "importance sampling (PSIS) 58 333 (333) 1%" in page.text


def test_errors_that_are_unknown_are_counted_beside_those_that_are_summed_up(tmp_path):
    auto = examples.auto_evidence()
    se = np.where(auto.used == "SMC", np.nan, auto.se)
    se[np.flatnonzero(auto.used == "AIS, 100 temperatures")[:3]] = np.nan
    num = int((auto.used == "SMC").sum())
    made = {"auto": replace(auto, se=se), "none known": replace(auto, se=np.full(120, np.nan))}
    page = Page(am.report(to_datatree(evidence=made), tmp_path / "report.html").read_text(encoding="utf-8"))
    known = se[np.isfinite(se)]
    assert f"{np.median(known):.3f} ({known.max():.3f}) {num + 3} unknown" in page.text
    assert "\N{EN DASH} 120 unknown" in page.text
    rows = {row["name"]: row["num_se_unknown"] for row in strict(tmp_path / "report.json")["evidence"]["auto"]["used"]}
    assert rows == {"importance sampling (PSIS)": 0, "AIS, 100 temperatures": 3, "SMC": num}
    assert page.text.count(" 3 unknown") == 1
    failed = replace(auto, se=np.full(120, np.nan), log_evidence=np.full(120, np.nan))
    page = Page(am.report(to_datatree(evidence=failed), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert " unknown" not in page.text  # it is the estimate that is missing, which is said


def test_an_upper_side_is_called_a_bound_only_where_it_is_one(tmp_path):
    pages = [
        Page(am.report(to_datatree(sandwich=made), tmp_path / "report.html").read_text())
        for made in (examples.sandwich(), examples.sandwich(exact=False))
    ]
    assert "the same run reversed bounds it from above" in pages[0].text
    assert "1 more have no finite gap" in pages[0].text
    assert "(estimate)" not in pages[0].text
    assert "the upper side is an estimate and no bound" in pages[1].text
    assert "bounds it from above" not in pages[1].text


def test_an_error_measured_on_simulated_data_is_called_transferred(tmp_path):
    found = examples.FakeSimulated(examples.sandwich(), warnings=("the real data are harder.",))
    made = replace(examples.ledger(4).evidence, simulated=found)
    tree = to_datatree(evidence=made)
    page = Page(am.report(tree, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "On 79 datapoints simulated from the model, estimates by AIS are at most 0.0842 ± 0.0065 nats" in page.text
    assert "It is transferred, not a bound. But the real data are harder." in page.text
    assert "the same run reversed bounds it from above" in page.text
    np.testing.assert_array_equal(tree["sandwich"]["upper"], found.sandwich.upper)


def test_a_bound_that_is_no_elbo_is_named(tmp_path):
    page = Page(am.report(examples.auto_tree(40), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "What was trained, and is drawn here: importance-weighted bound, 5 particles" in page.text


def test_report_json_holds_every_row(digits):
    _, numbers = digits
    table = examples.ledger(30, failed=(3, 17)).table
    assert numbers["datapoints"]["datapoint"] == list(range(30))
    for name, column in table.items():
        expected = [None if math.isnan(value) else value for value in column]
        assert numbers["datapoints"][name] == pytest.approx(expected)
    assert numbers["evidence"]["AIS"]["datapoints"]["se"][3] is None


def test_the_page_is_one_file(digits):
    page, _ = digits
    addresses = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_markup_in_names_is_text(tmp_path):
    evil = '</script><img src=x onerror="boom()">'
    made = examples.ledger(4)
    made = examples.FakeLedger(**{**vars(made), "advice": evil, "guide_family": evil, "settings": {evil: evil}})
    tree = to_datatree(
        evidence={evil: made.evidence},
        ledger=made,
        groups={"observed_data": {"x<i>": np.zeros((4, 5))}},
        attrs={"title": evil, "labels": [evil] * 4, "settings": {evil: [evil]}, "versions": {"a": evil}},
    )
    page = Page(am.report(tree, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not [attrs for tag, attrs in page.tags if tag == "img" or "onerror" in attrs]
    assert page.text.count("boom()") > 5


def test_a_page_without_a_guide_speaks_of_none(tmp_path):
    path = am.report(examples.guideless_tree(), tmp_path / "report.html")
    page, numbers = Page(path.read_text(encoding="utf-8")), strict(tmp_path / "report.json")
    assert [name for name in page.ids if name in SECTIONS] == [
        *("verdict", "summary", "ladder", "gaps", "worst", "samples", "evidence", "sources")
    ]
    for words in ("guide's", "Inference gap", "inference gap", "k-hat", "econstruction"):
        assert words not in page.text
    assert "7 parameters of the model were not trained" in page.text
    assert numbers["verdict"].startswith("Without a guide")
    assert math.isfinite(numbers["summary"]["log_evidence"]["mean"])
    assert [rung["name"] for rung in numbers["ladder"]] == ["elbo_mean_field", "elbo_full_covariance", "log_evidence"]
    assert [rung["part"] for rung in numbers["ladder"][1:]] == ["approximation"] * 2


def test_absent_groups_leave_no_section(tmp_path):
    path = am.report(to_datatree(history=examples.history(20)), tmp_path / "report.html", title="Only training")
    page = Page(path.read_text(encoding="utf-8"))
    assert [name for name in page.ids if name in SECTIONS] == ["training"]
    assert page.text.startswith("Only training")
    empty = am.report(to_datatree(), tmp_path / "empty.html")
    assert empty.stat().st_size < 20_000  # no figure, no plotly


def test_images_and_vectors_are_told_apart(tmp_path, digits):
    page, _ = digits
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * (10 + 2) + 2 * 14 + 24
    text = am.report(examples.vectors_tree(20), tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('<svg class="vector"') == 12 + 12 + 12


def test_everything_failed(tmp_path):
    tree = examples.digits_tree(5, failed=tuple(range(5)))
    page = Page(am.report(tree, tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "can't be said" in page.text
    assert "5 of 5 datapoints failed" in page.text
    assert {"gaps", "khat", "ladder"}.isdisjoint(page.ids)
    assert strict(tmp_path / "report.json")["summary"]["inference_gap"]["mean"] is None


def test_the_same_tree_gives_the_same_bytes(tmp_path):
    one = am.report(examples.digits_tree(10), tmp_path / "one.html")
    two = am.report(examples.digits_tree(10), tmp_path / "two.html")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.html", "one.json", "two.html", "two.json"]


def test_numbers_on_the_page_are_rounded_from_the_json(digits):
    page, numbers = digits
    row = numbers["summary"]["inference_gap"]
    shown = re.search(r"loses ([\d.]+) ± ([\d.]+) nats", numbers["verdict"])
    assert float(shown[1]) == pytest.approx(row["mean"], abs=0.006)
    assert shown[0] in page.text


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"ends in \.html, got"):
        am.report(to_datatree(), tmp_path / "report.json")
    with pytest.raises(DataError, match="doesn't exist"):
        am.report(to_datatree(), tmp_path / "none" / "report.html")


def test_a_guide_of_another_family_is_compared_with_the_best_fitted(tmp_path):
    made = examples.ledger(6)
    settings = {"num_draws": 100, "reference": "best of mean-field, full-covariance"}
    made = examples.FakeLedger(**{**vars(made), "guide_family": "other", "settings": settings})
    page = Page(am.report(to_datatree(ledger=made), tmp_path / "report.html").read_text(encoding="utf-8"))
    numbers = strict(tmp_path / "report.json")
    assert "other family" not in page.text
    assert any("the best of mean-field, full-covariance stands in" in note for note in numbers["notes"])
    assert {rung.get("part", "") for rung in numbers["ladder"]} == {""}


def test_the_bundle_can_stand_in_a_script():
    bundle = resources.files("amortize.report").joinpath("vendor", "plotly-cartesian.min.js").read_text("utf-8")
    assert "plotly.js (cartesian" in bundle[:200]
    assert "</script" not in bundle.lower()
    assert "<!--" not in bundle
