"""The page: one HTML file that works offline, and ``report.json`` with its numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from amortize.errors import ArgumentError
from amortize.report.attrs import strict_json
from amortize.report.document import read_document
from amortize.report.files import write_text
from amortize.report.pictures import read_gallery
from amortize.report.plots import MAX_SHOWN, figures
from amortize.report.provenance import flatten
from amortize.report.template import embedded, environment, plotly_js
from amortize.report.words import decimals, number, percent, quantity

__all__ = ["render", "write_report"]

_BLOCKS = ("elbo", "gap", "diagnostic")


def write_report(tree: xr.DataTree, path: str | Path, *, title: str | None = None) -> Path:
    """Write the page and its numbers, each whole or not at all; see :func:`amortize.report`."""
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"path: expected a name that ends in .html, got {str(path)!r}")
    document = read_document(tree, title)
    page = render(tree, document)
    write_text(strict_json(document) + "\n", path.with_suffix(".json"))
    return write_text(page, path)


def render(tree: xr.DataTree, document: Mapping[str, Any]) -> str:
    """The page as text.

    Parameters
    ----------
    tree : xarray.DataTree
        The pictures come from here.
    document : mapping
        The numbers: what :func:`amortize.report.document.read_document` has read from the tree.
    """
    drawn = figures(document)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            d=document,
            blocks=_summary_blocks(document.get("summary", {})),
            parts=_parts(document.get("summary", {})),
            figures={name: embedded(figure) for name, figure in drawn.items()},
            gallery=read_gallery(tree, document),
            settings=_settings(document),
            max_shown=MAX_SHOWN,
            plotly_js=plotly_js() if drawn else "",
        )
    )


def _summary_blocks(summary: Mapping[str, Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of the summary table in blocks: ELBOs and evidence, gaps, diagnostics."""
    blocks: dict[str, list[dict[str, Any]]] = {block: [] for block in _BLOCKS}
    for name, row in summary.items():
        kind = "gap" if name.endswith("_gap") else "elbo" if name.startswith(("elbo", "log_")) else "diagnostic"
        label, meaning = quantity(name, guide="elbo_guide" in summary)
        digits = decimals(row.get("se"))
        blocks[kind].append(
            {
                "name": name,
                "label": label,
                "meaning": meaning,
                "mean": number(row.get("mean"), digits),
                "se": number(row.get("se"), digits),
                "mc_se": number(row.get("mc_se"), decimals(row.get("mc_se"))),
                "num_failed": row.get("num_failed", 0),
            }
        )
    return [rows for rows in blocks.values() if rows]


def _parts(summary: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Shares of the gap for the bar under the verdict; empty unless both are positive."""
    means = {word: summary.get(f"{word}_gap", {}).get("mean", 0.0) for word in ("amortization", "approximation")}
    if not all(mean > 0 for mean in means.values()):  # nan too
        return []
    total = sum(means.values())
    return [{"word": word, "share": mean / total, "text": percent(mean / total)} for word, mean in means.items()]


def _settings(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Tables of settings by their title, nested ones flattened."""
    tables = {
        "Study": document.get("settings", {}),
        "Gaps": document.get("gap_settings", {}),
        **{f"Evidence: {name}": run.get("settings", {}) for name, run in document.get("evidence", {}).items()},
        **{f"Local fit: {name}": fit.get("settings", {}) for name, fit in document.get("local", {}).items()},
        "Versions": document.get("versions", {}),
        "Other facts": document.get("attrs", {}),
    }
    return [(title, flatten(table)) for title, table in tables.items() if table]
