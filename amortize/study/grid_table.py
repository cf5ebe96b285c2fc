"""The numbers of a grid: a row a cell, their means over seeds, and comparisons paired over seeds and datapoints.

Differences are taken seed by seed and datapoint by datapoint before they are averaged, so that what two cells share -
an easy datapoint, a lucky seed - cancels. All quantities in nats, but for k-hat and effective sample sizes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.report.document import gap_name
from amortize.study.collect import StudyResult

__all__ = ["CellResult", "means_of", "num_failed", "paired_of", "standard_error", "table_of"]

Axes = Mapping[str, tuple[str, ...]]
COMPARED = ("log_evidence", "elbo_", "inference_gap", "approximation_gap", "amortization_gap")
"""Beginnings of the columns of a ledger that are compared."""


@dataclass(frozen=True, eq=False)
class CellResult:
    """One cell of a grid: its folder's name, where it is by axis, and its result, or else its error."""

    label: str
    coords: dict[str, str]
    result: StudyResult | None
    error: str | None


def table_of(cells: Sequence[CellResult]) -> pd.DataFrame:
    """A row a cell; see ``GridResult.table``."""
    rows = [{"cell": cell.label, **cell.coords, **_row(cell)} for cell in cells]
    return pd.DataFrame(rows).set_index("cell")


def _row(cell: CellResult) -> dict[str, Any]:
    if cell.result is None:
        return {"num_datapoints": 0, "num_failed": 0, "error": cell.error}
    ledger, seconds = cell.result.ledger, cell.result.seconds
    row: dict[str, Any] = {"num_datapoints": len(ledger.table), "num_failed": num_failed(ledger.summary)}
    for name, statistics in ledger.summary.iterrows():
        row[str(name)], row[f"{name}_se"] = statistics["mean"], statistics["se"]
    return {**row, "seconds": sum(seconds.values()), "cause": ledger.cause, "advice": ledger.advice, "error": ""}


def num_failed(summary: pd.DataFrame) -> int:
    """How many datapoints lack the gap that everything rests on, or where there is none log p(x)."""
    name = gap_name(summary.index)
    return int(summary["num_failed"].to_dict()[name if name in summary.index else "log_evidence"])


def means_of(table: pd.DataFrame, axes: Axes, seeds: Sequence[str]) -> pd.DataFrame:
    """Means over seeds, and their standard errors over seeds, a row for each combination of the other axes.

    Empty without an axis of seeds. Cells that failed are left out, and counted in ``num_seeds`` by their absence.
    """
    others = [name for name in axes if name not in seeds]
    if not seeds:
        return pd.DataFrame()
    quantities = [name for name in table.columns if f"{name}_se" in table.columns]
    rows = []
    groups: Any = table.groupby(others, sort=False) if others else [((), table)]
    for key, group in groups:
        known = group[group["error"] == ""]
        row: dict[str, Any] = {**dict(zip(others, key, strict=True)), "num_seeds": len(known)}
        for name in quantities:
            values = known[name].to_numpy(dtype=np.float64)
            row[name], row[f"{name}_se"] = (values.mean() if len(values) else math.nan), standard_error(values)
        rows.append(row)
    return pd.DataFrame(rows)


def paired_of(cells: Sequence[CellResult], axes: Axes, seeds: Sequence[str]) -> pd.DataFrame:
    """Differences along each axis that is none of seeds; see ``GridResult.paired``."""
    by_place = {tuple(cell.coords[axis] for axis in axes): cell.result for cell in cells}
    rows = []
    for axis in axes:
        if axis in seeds:
            continue
        others = [name for name in axes if name not in (axis, *seeds)]
        for a, b in itertools.combinations(axes[axis], 2):
            for held in itertools.product(*(axes[name] for name in others)):
                at = dict(zip(others, held, strict=True))
                pairs = list(_pairs(by_place, axes, seeds, (axis, a, b), at))
                rows += [{"axis": axis, "a": a, "b": b, **at, **row} for row in _compared(pairs)]
    columns = ["axis", "a", "b", *(name for name in axes if name not in seeds)]
    columns += ["quantity", "difference", "se", "t", "num_seeds", "datapoint_se", "num_datapoints"]
    return pd.DataFrame(rows, columns=columns)


def _pairs(
    by_place: Mapping[tuple[str, ...], StudyResult | None],
    axes: Axes,
    seeds: Sequence[str],
    step: tuple[str, str, str],
    at: Mapping[str, str],
) -> Iterator[tuple[StudyResult, StudyResult]]:
    """Both results of a step along an axis, for each seed that has both."""
    axis, a, b = step
    for values in itertools.product(*(axes[name] for name in seeds)):
        place = {**at, **dict(zip(seeds, values, strict=True))}
        one, two = (by_place[tuple({**place, axis: end}[name] for name in axes)] for end in (a, b))
        if one is not None and two is not None:
            yield one, two


def _compared(pairs: Sequence[tuple[StudyResult, StudyResult]]) -> Iterator[dict[str, Any]]:
    if not pairs:
        return
    tables = [(one.ledger.table, two.ledger.table) for one, two in pairs]
    same = all(_same_datapoints(one, two) for one, two in pairs)
    same_throughout = same and all(_same_datapoints(pairs[0][0], one) for one, _ in pairs)
    for name in (str(name) for name in tables[0][0].columns if str(name).startswith(COMPARED)):
        if name.endswith("_se") or not all(name in one and name in two for one, two in tables):
            continue
        values = [(_column(one, name), _column(two, name)) for one, two in tables]
        if same:
            by_row = [two - one for one, two in values]
            by_seed = [_mean(row) for row in by_row]
        else:
            by_row = []
            by_seed = [_mean(two) - _mean(one) for one, two in values]
        yield {"quantity": name, **_statistics(np.array(by_seed), by_row if same_throughout else [])}


def _statistics(by_seed: NDArray[np.float64], by_row: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """The mean of differences by seed, and its errors over seeds and, of the rows' means, over datapoints."""
    difference, se = float(by_seed.mean()), standard_error(by_seed)
    rows = np.zeros(0)
    if len(by_row):
        rows = np.stack(by_row).mean(axis=0)
        rows = rows[np.isfinite(rows)]
    return {
        "difference": difference,
        "se": se,
        "t": difference / se if se > 0 else math.nan,
        "num_seeds": len(by_seed),
        "datapoint_se": standard_error(rows),
        "num_datapoints": len(rows),
    }


def _same_datapoints(one: StudyResult, two: StudyResult) -> bool:
    """Whether rows of two results stand for the same datapoints of the same data."""
    hashes = (one.tree.attrs.get("data_hash"), two.tree.attrs.get("data_hash"))
    return hashes[0] == hashes[1] and one.ledger.table.index.equals(two.ledger.table.index)


def _column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    return table[name].to_numpy(dtype=np.float64)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def standard_error(values: NDArray[np.float64]) -> float:
    """Of the mean of independent values; NaN of fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
