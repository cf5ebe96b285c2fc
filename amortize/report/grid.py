"""The page of a grid of studies: every cell in one table, comparisons over seeds, a link to the page of each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from amortize.errors import DataError
from amortize.report.attrs import strict_json
from amortize.report.files import write_text
from amortize.report.grid_plots import grid_figures
from amortize.report.provenance import flatten
from amortize.report.template import embedded, environment, plotly_js
from amortize.report.words import quantity, uncertain

__all__ = ["grid_rows", "read_grid_document", "write_grid_report"]

SHOWN = ("log_evidence", "elbo_guide", "inference_gap", "approximation_gap", "amortization_gap")
"""Quantities of the tables, where cells have them; ``report.json`` holds all."""
_FACTS = ("page", "error", "advice", "cause", "num_datapoints", "num_failed", "label")


def write_grid_report(document: Mapping[str, Any], path: Path) -> Path:
    """Write a grid's page, and its numbers as strict JSON beside it.

    Parameters
    ----------
    document
        Cells, their means over seeds and comparisons, as a study writes them.
    path
        A name that ends in ``.html``, in a folder that exists.
    """
    write_text(strict_json(document) + "\n", path.with_suffix(".json"))
    rows = grid_rows(document)
    shown = [name for name in SHOWN if any(name in row["values"] for row in rows["cells"])]
    drawn = grid_figures(rows["means"] or rows["cells"])
    page = (
        environment()
        .get_template("grid.html.j2")
        .render(
            d=document,
            rows=rows,
            columns=[(name, quantity(name).label) for name in shown],
            paired=_paired(document, shown),
            settings=[("Study", flatten(document["settings"])), ("Versions", document.get("versions", {}))],
            figures={name: embedded(figure) for name, figure in drawn.items()},
            plotly_js=plotly_js() if drawn else Markup(""),
        )
    )
    return write_text(page, path)


def read_grid_document(path: Path) -> dict[str, Any]:
    """What a grid's ``report.json`` holds.

    Raises
    ------
    DataError
        It is missing, or not that of a grid.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"path: {path} can't be read as the numbers of a grid: {error}") from error
    if not isinstance(document, dict) or "cells" not in document:
        raise DataError(f"path: {path} isn't of a grid: it holds no cells")
    return document


def grid_rows(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of both tables: where they are by axis, and mean and standard error by quantity.

    ``cells`` has a row for each cell, ``means`` one for each combination of the axes that are none of seeds.
    """
    axes = [axis["name"] for axis in document["axes"]]
    cells = [
        {
            "coords": [cell["coords"][axis] for axis in axes],
            "values": {name: (row["mean"], row["se"]) for name, row in cell.get("summary", {}).items()},
            **{name: cell.get(name) for name in _FACTS},
            "seconds": sum(cell.get("seconds", {}).values()),
        }
        for cell in document["cells"]
    ]
    held = [axis["name"] for axis in document["axes"] if not axis["seeds"]]
    means = [
        {
            "coords": [row[axis] for axis in held],
            "values": {
                name: (row[name], row.get(f"{name}_se", math.nan))
                for name in row
                if name not in (*held, "num_seeds") and not name.endswith("_se")
            },
            "num_seeds": row["num_seeds"],
        }
        for row in document["means"]
    ]
    return {"cells": cells, "means": means}


def _paired(document: Mapping[str, Any], shown: list[str]) -> list[dict[str, Any]]:
    """Comparisons as text, for the quantities of the tables."""
    axes = [axis["name"] for axis in document["axes"] if not axis["seeds"]]
    rows = []
    for row in document["paired"]:
        if row["quantity"] in shown:
            held = ", ".join(f"{axis} {row[axis]}" for axis in axes if axis in row)
            rows.append(
                {
                    **row,
                    "held": held,
                    "label": quantity(row["quantity"]).label,
                    "over_seeds": uncertain(row.get("difference"), row.get("se")),
                    "over_datapoints": row.get("datapoint_se"),
                    "ratio": row.get("t"),
                }
            )
    return rows
