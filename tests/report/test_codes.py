"""The page's section on codes: from usage by site to tables, figures and words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import amortize as am
from amortize.diagnostics import codebook_usage
from amortize.report.document import read_document
from amortize.report.plots import figures
from amortize.report.tree import to_datatree
from tests.report import examples


def usages():
    """Two sites; of the second one code alone is in use."""
    codes = np.random.default_rng(0).choice(6, size=(50, 4), p=[0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    return {"top": codebook_usage(codes, 6), "bottom": codebook_usage(np.full((50, 9), 2), 3)}


def history():
    steps = np.arange(1, 41)
    seen = np.where(steps % 10 == 0, steps / 10.0, np.nan)
    return examples.history(40).assign(top_perplexity=seen, top_num_dead=6 - seen, top_information=seen)


def test_the_tree_gives_back_the_usage():
    tree = to_datatree(codes=usages())
    rows = read_document(tree)["codebooks"]
    assert [row["site"] for row in rows] == ["top", "bottom"]
    for row, usage in zip(rows, usages().values(), strict=True):
        assert row["perplexity"] == pytest.approx(usage.perplexity)
        assert (row["num_dead"], row["num_codes"], row["num_datapoints"]) == (usage.num_dead, usage.num_codes, 50)
        assert row["information"] == pytest.approx(usage.information.sum())
    shares = pd.DataFrame(read_document(tree)["codes"]).groupby("site")["share"]
    np.testing.assert_allclose(shares.sum(), 1.0)
    np.testing.assert_allclose(shares.get_group("top"), usages()["top"].histogram)


def test_figures_are_of_the_document():
    document = read_document(to_datatree(codes=usages(), history=history()))
    drawn = figures(document)
    top = next(trace for trace in drawn["codes"].data if trace.name == "top")
    np.testing.assert_allclose(top.y, usages()["top"].histogram)
    followed = drawn["codes-training"].data
    assert [trace.name for trace in followed] == ["top"]  # the other has no history
    np.testing.assert_allclose(followed[0].x, [10, 20, 30, 40])
    np.testing.assert_allclose(followed[0].y, [1, 2, 3, 4])


def test_without_validation_there_is_no_curve():
    drawn = figures(read_document(to_datatree(codes=usages(), history=examples.history(20))))
    assert "codes" in drawn and "codes-training" not in drawn


def test_the_page_has_the_section_only_where_there_are_codes(tmp_path):
    page = am.report(to_datatree(codes=usages(), history=history()), tmp_path / "with.html").read_text(encoding="utf-8")
    assert '<section id="codes">' in page and "Which codes are in use" in page
    assert "2 (33%)" in page  # dead, of six
    assert '<section id="codes">' not in am.report(examples.digits_tree(8), tmp_path / "without.html").read_text(
        encoding="utf-8"
    )
