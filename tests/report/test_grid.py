"""The page of a grid: every cell is on it, what failed is said, and its numbers give the same page again."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from amortize.errors import DataError
from amortize.report.grid import grid_rows, read_grid_document, write_grid_report
from amortize.report.grid_plots import grid_figures


def document(*, failed: bool = False) -> dict[str, Any]:
    cells = []
    for family in ("a", "<b>"):
        for seed in ("0", "1"):
            cell: dict[str, Any] = {
                "label": f"{family}-{seed}",
                "coords": {"family": family, "seed": seed},
                "page": f"cells/family-{family.strip('<>')}_seed-{seed}/report.html",
                "error": None,
                "num_datapoints": 20,
                "num_failed": 0,
                "advice": "Train longer.",
                "cause": "under-trained-guide",
                "seconds": {"fit": 1.0},
                "summary": {
                    "log_evidence": {"mean": -20.0, "se": 1.0, "mc_se": 0.1, "num_failed": 0},
                    "inference_gap": {"mean": 1.25, "se": 0.1, "mc_se": math.nan, "num_failed": 0},
                },
            }
            if failed and (family, seed) == ("a", "1"):
                cell = {**{key: cell[key] for key in ("label", "coords", "page")}, "error": "TrainingError: no luck"}
            cells.append(cell)
    means = [
        {"family": f, "num_seeds": 2, "inference_gap": 1.25, "inference_gap_se": 0.2, "log_evidence": -20.0}
        for f in ("a", "<b>")
    ]
    paired = [
        {"axis": "family", "a": "a", "b": "<b>", "quantity": "inference_gap", "difference": -0.5, "num_seeds": 2},
        {"axis": "family", "a": "a", "b": "<b>", "quantity": "elbo_other", "difference": 9.0, "num_seeds": 2},
    ]
    axes = [
        {"name": "family", "key": "x", "values": ["a", "<b>"], "seeds": False},
        {"name": "seed", "key": "seed", "values": ["0", "1"], "seeds": True},
    ]
    settings = {"fit": {"num_steps": 3}}
    return {
        "title": "A <grid>",
        "axes": axes,
        "cells": cells,
        "means": means,
        "paired": paired,
        "settings": settings,
        "versions": {"amortize": "0"},
    }


def test_every_cell_and_comparison_is_on_the_page(tmp_path: Path) -> None:
    made = document()
    page = write_grid_report(made, tmp_path / "report.html").read_text(encoding="utf-8")
    for cell in made["cells"]:
        assert f'href="{cell["page"]}"' in page
    assert "A &lt;grid&gt;" in page and "<b>, 0" not in page and "a → &lt;b&gt;" in page
    assert "\N{MINUS SIGN}0.50" in page and "9.00" not in page
    assert page.count('data-figure="figure-') == 2
    assert "under trained guide" in page and "What failed" not in page


def test_a_cell_that_failed_is_said_first_and_links_nowhere(tmp_path: Path) -> None:
    page = write_grid_report(document(failed=True), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What failed" in page and "TrainingError: no luck" in page
    assert 'href="cells/family-a_seed-1/report.html"' not in page


def test_the_numbers_give_the_same_page_again(tmp_path: Path) -> None:
    path = write_grid_report(document(failed=True), tmp_path / "report.html")
    before, numbers = path.read_bytes(), path.with_suffix(".json").read_bytes()
    json.loads(numbers, parse_constant=pytest.fail)
    write_grid_report(read_grid_document(tmp_path / "report.json"), path)
    assert (path.read_bytes(), path.with_suffix(".json").read_bytes()) == (before, numbers)


def test_rows_hold_means_with_their_errors() -> None:
    rows = grid_rows(document())
    assert [row["coords"] for row in rows["cells"]] == [["a", "0"], ["a", "1"], ["<b>", "0"], ["<b>", "1"]]
    assert rows["cells"][0]["values"]["inference_gap"] == (1.25, 0.1)
    assert (rows["means"][1]["coords"], rows["means"][1]["num_seeds"]) == (["<b>"], 2)
    assert rows["means"][1]["values"]["inference_gap"] == (1.25, 0.2)
    assert math.isnan(rows["means"][1]["values"]["log_evidence"][1])


def test_numbers_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text, message in (("{}", "isn't of a grid"), ("no json", "can't be read"), (None, "can't be read")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_grid_document(path)


def test_values_that_are_numbers_are_labels_all_the_same() -> None:
    values = {"inference_gap": (2.0, 0.1), "approximation_gap": (1.0, 0.1), "log_evidence": (-5.0, 0.2)}
    figures = grid_figures([{"coords": [size], "values": values} for size in ("2", "16", "0.002")])
    for figure in figures.values():
        assert figure.layout.yaxis.type == "category"  # else the rows stand at 2, 16 and 0.002
        assert list(figure.layout.yaxis.categoryarray) == ["0.002", "16", "2"]
