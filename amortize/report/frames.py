"""Tables whose rows aren't datapoints, a ledger's and those of codes: groups of the tree, and read from them again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from amortize.report.sources import LedgerLike, UsageLike

__all__ = ["FRAMES", "code_frames", "ledger_frames", "read_frame"]

FRAMES = ("tower", "splits", "labels", "latents", "cost", "break_even", "curve", "codebooks", "codes")
"""The groups that hold them."""


def ledger_frames(ledger: LedgerLike) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Group, table and dim of those that the ledger has; an index with words becomes a column."""
    labels = None if ledger.labels is None else ledger.by().rename_axis("label")
    found: dict[str, tuple[pd.DataFrame | None, str]] = {
        "tower": (ledger.tower, "step"),
        "splits": (None if ledger.splits is None else ledger.splits.rename_axis("quantity"), "row"),
        "labels": (labels, "group"),
        "latents": (ledger.latents, "dimension"),
        "cost": (ledger.cost.rename_axis("used"), "row"),
        "break_even": (None if ledger.break_even is None else ledger.break_even.rename_axis("used"), "row"),
        "curve": (ledger.curve(), "look"),
    }
    for name, (frame, dim) in found.items():
        if frame is not None and len(frame):
            words = frame.index.name in ("quantity", "label", "used")
            yield name, frame.reset_index() if words else frame, dim


def code_frames(codes: Mapping[str, UsageLike]) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Group, table and dim: a row a site, and a row a code of a site, the most used first."""
    if not codes:
        return
    rows, shares = [], []
    for site, usage in codes.items():
        num_positions, num_codes = usage.counts.shape
        order = np.argsort(-usage.shares, kind="stable")
        rows.append(
            {
                "site": site,
                "num_positions": num_positions,
                "num_codes": num_codes,
                "perplexity": usage.perplexity,
                "perplexity_se": usage.perplexity_se,
                "num_dead": usage.num_dead,
                "position_perplexity": float(np.mean(usage.position_perplexities)),
                "information": float(np.sum(usage.information)),
                "num_datapoints": int(usage.counts[0].sum()),
            }
        )
        shares.append(pd.DataFrame({"site": site, "code": order, "share": usage.shares[order]}))
    yield "codebooks", pd.DataFrame(rows), "row"
    yield "codes", pd.concat(shares, ignore_index=True), "row"


def read_frame(tree: xr.DataTree, name: str) -> list[dict[str, Any]]:
    """Rows of a group, as dictionaries of plain values; empty where it is absent."""
    if name not in tree.children:
        return []
    dataset = tree[name].to_dataset()
    columns = {str(column): dataset[column].values.tolist() for column in dataset.data_vars}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
