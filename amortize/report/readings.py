"""What the page needs of the evidence and its annealing, read from the tree.

Letters: N datapoints, T temperatures. Lists are in the order of the tree's datapoints; log densities are in nats.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from amortize.report.attrs import decode_attrs

__all__ = ["QUANTILES", "read_annealing", "read_evidence", "read_sandwich", "spread_of"]

QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
"""Of the datapoints, at each temperature: the band and the line of the path's figures."""


def read_evidence(evidence: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Each method's facts, its numbers by datapoint and their summary, and what was used at what cost."""
    runs = decode_attrs(evidence.attrs).get("runs", {})
    names = {str(name): evidence[name].values.tolist() for name in ("datapoint", "label") if name in evidence.coords}
    methods = {}
    for name in evidence["method"].values.tolist():
        one = evidence.loc[{"method": name}]
        columns = {str(field): one[field].values for field in one.data_vars if one[field].dims == ("datapoint",)}
        numbers = {field: row for field, row in columns.items() if row.dtype.kind in "fi" and not np.isnan(row).all()}
        flags = {field: columns[field].tolist() for field in ("trusted", "used") if field in columns}
        methods[name] = {
            **runs.get(name, {}),
            "num_weights": int(one["num_weights"]),
            "summary": {field: spread_of(row) for field, row in numbers.items()},
            "num_failed": int((~np.isfinite(columns["log_evidence"])).sum()),
            "num_se_unknown": _num_unknown(columns["log_evidence"], columns["se"]),
            "num_nonfinite": int(np.nansum(columns["num_nonfinite"])),
            "num_untrusted": flags.get("trusted", []).count(False),
            "used": _used(columns),
            **_missed(runs.get(name, {}), columns["se"]),
            "datapoints": names | {field: row.tolist() for field, row in numbers.items()} | flags,
        }
    return methods


def read_sandwich(sandwich: xr.Dataset) -> dict[str, Any]:
    """Both sides of each datapoint, and the means of those that are finite with their standard errors."""
    sides = {str(name): sandwich[name].values.astype(np.float64) for name in sandwich.data_vars}
    sides["gap"] = sides["upper"] - sides["lower"]
    finite = np.isfinite(sides["gap"])
    return {
        **decode_attrs(sandwich.attrs),
        "num_datapoints": int(finite.sum()),
        "num_failed": int((~finite).sum()),
        "summary": {name: spread_of(sides[name][finite]) for name in ("lower", "upper", "gap")},
        "datapoints": {name: row.tolist() for name, row in sides.items()},
    }


def spread_of(row: NDArray[Any]) -> dict[str, float]:
    """Mean, median and extremes of what is finite; empty where nothing is."""
    finite = row[np.isfinite(row)]
    if not finite.size:
        return {}
    return {
        "mean": float(finite.mean()),
        "median": float(np.median(finite)),
        "min": float(finite.min()),
        "max": float(finite.max()),
    }


def _num_unknown(log_evidence: NDArray[np.float64], se: NDArray[np.float64]) -> int:
    """How many estimates are of an unknown error, which its summary leaves out."""
    return int((np.isfinite(log_evidence) & ~np.isfinite(se)).sum())


def _used(columns: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """For each method used: on how many datapoints, its gradients, their share of all, and the errors it left."""
    if "used" not in columns or "num_gradients" not in columns:
        return []
    gradients = columns["num_gradients"]
    total = np.nansum(gradients)
    rows = []
    for name in dict.fromkeys(columns["used"].tolist()):
        chosen = columns["used"] == name
        rows.append(
            {
                "name": name,
                "num_datapoints": int(chosen.sum()),
                "num_untrusted": int((chosen & ~columns["trusted"].astype(bool)).sum()),
                "num_gradients": spread_of(gradients[chosen]),
                "share": float(np.nansum(gradients[chosen]) / total) if total else 0.0,
                "se": spread_of(columns["se"][chosen]),
                "num_se_unknown": _num_unknown(columns["log_evidence"][chosen], columns["se"][chosen]),
            }
        )
    return sorted(rows, key=lambda row: row["num_gradients"].get("median", 0.0))


def _missed(run: dict[str, Any], se: NDArray[np.float64]) -> dict[str, Any]:
    """How many datapoints missed the standard error that the method worked for, if there was one."""
    target = run.get("settings", {}).get("target_se")
    return {} if target is None else {"target_se": target, "num_missed": int((~(se <= target)).sum())}


def read_annealing(annealing: xr.Dataset) -> dict[str, dict[str, Any]]:
    """For each method that anneals: quantiles over datapoints of acceptance and spread, by temperature.

    Datapoints whose temperatures differ are read at the median beta of each.
    """
    return {name: _path(annealing.loc[{"method": name}]) for name in annealing["method"].values.tolist()}


def _path(one: xr.Dataset) -> dict[str, Any]:
    reached = np.isfinite(one["beta"].values).any(axis=1)
    tables = {str(name): one[name].values[reached].astype(np.float64) for name in one.data_vars}
    beta = tables.pop("beta")
    at = _quantiles(beta)["median"]
    return {
        "temperature": one["temperature"].values[reached].tolist(),
        "beta": at.tolist(),
        "num_datapoints": int(np.isfinite(tables["spread"]).any(axis=0).sum()),
        **{
            name: {key: row.tolist() for key, row in _quantiles(_read_at(at, beta, table)).items()}
            for name, table in tables.items()
            if np.isfinite(table).any()
        },
    }


def _read_at(at: NDArray[np.float64], beta: NDArray[np.float64], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each datapoint's (T + 1, N) values at common inverse temperatures, linearly interpolated."""
    result = np.full(table.shape, np.nan)
    for column in range(table.shape[1]):
        known = np.isfinite(beta[:, column]) & np.isfinite(table[:, column])
        if known.any():
            inside = (at >= beta[known, column][0]) & (at <= beta[known, column][-1])
            result[inside, column] = np.interp(at[inside], beta[known, column], table[known, column])
    return result


def _quantiles(table: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # the acceptance where nothing moves
        rows = np.nanquantile(np.where(np.isfinite(table), table, np.nan), list(QUANTILES.values()), axis=1)
    return dict(zip(QUANTILES, rows, strict=True))
