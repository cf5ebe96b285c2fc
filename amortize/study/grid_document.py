"""What a grid's page shows and its ``report.json`` holds: plain values, in the order of the cells."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from amortize.report.attrs import decode_attrs
from amortize.study.grid_table import CellResult, num_failed
from amortize.study.spec import Study
from amortize.study.stages import versions
from amortize.study.store import CELLS

__all__ = ["grid_document"]


def grid_document(
    study: Study, cells: Sequence[CellResult], means: pd.DataFrame, paired: pd.DataFrame
) -> dict[str, Any]:
    """The numbers of a grid, JSON-able but for those that aren't finite."""
    return {
        "title": study.report.title or study.name,
        "units": "nats per datapoint",
        "not_finite": "null",
        "axes": [
            {"name": axis.title, "key": axis.key, "values": list(axis.names), "seeds": axis.repeats}
            for axis in study.grid
        ],
        "cells": [_cell(cell) for cell in cells],
        "means": _records(means),
        "paired": _records(paired),
        "settings": study.model_dump(mode="json", exclude={"grid"}),
        "grid": [axis.model_dump(mode="json", exclude_none=True) for axis in study.grid],
        "versions": versions(),
        "spec_hash": study.fingerprint(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _cell(cell: CellResult) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "label": cell.label,
        "coords": cell.coords,
        "page": f"{CELLS}/{cell.label}/report.html",
        "error": cell.error,
    }
    if cell.result is None:
        return facts
    ledger, attrs = cell.result.ledger, decode_attrs(cell.result.tree.attrs)
    return {
        **facts,
        "num_datapoints": len(ledger.table),
        "num_failed": num_failed(ledger.summary),
        "guide_family": ledger.guide_family,
        "families": list(ledger.families),
        "advice": ledger.advice,
        "cause": ledger.cause,
        "summary": {str(name): dict(row) for name, row in ledger.summary.iterrows()},
        "seconds": cell.result.seconds,
        **{name: attrs[name] for name in ("data_hash", "spec_hash", "protocol") if name in attrs},
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries, without what a row has no value for."""
    return [
        {str(name): value for name, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        for row in frame.to_dict("records")
    ]
