"""The ArviZ tree and the page made from it; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["report"]


def report(tree: xr.DataTree, path: str | Path = "report.html", *, title: str | None = None) -> Path:
    """Write the page (and ``report.json`` beside it)."""
    from amortize.report.html import write_report

    return write_report(tree, path, title=title)
