"""The part of the tree that holds evidence: each method's numbers a datapoint, and how its annealing went.

Letters: M methods, N datapoints, T temperatures. A method without an annealing path has no part in ``/annealing``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from amortize.errors import ArgumentError
from amortize.report.document import sampled_steps
from amortize.report.sources import EvidenceLike

__all__ = [
    "MAX_TEMPERATURES",
    "SANDWICH_FACTS",
    "SIDES",
    "annealing_variables",
    "evidence_variables",
    "facts_of",
]

FIELDS = ("log_evidence", "lower", "upper", "se", "ess", "khat", "acceptance", "num_nonfinite", "num_gradients")
FACTS = ("method", "settings", "seed", "start", "seconds", "warnings", "interrupted")
SIDES = ("lower", "lower_se", "upper", "upper_se")
SANDWICH_FACTS = ("mean_gap", "gap_se", "exact", "draws", "method", "settings", "seed", "start", "seconds")
MAX_TEMPERATURES = 256
"""Most temperatures of a path that are kept; of more, as many evenly spaced, with both ends."""

Evidences = Mapping[str, EvidenceLike]
Variables = dict[str, tuple[tuple[str, ...], Any]]


def evidence_variables(methods: Evidences) -> Variables:
    """Variables of ``/evidence``: (M, N) numbers, flags and names, and (M,) counts."""
    sizes = {name: len(one.log_evidence) for name, one in methods.items()}
    if len(set(sizes.values())) > 1:
        raise ArgumentError(f"evidence: expected methods of the same datapoints, got {sizes}")
    dims = ("method", "datapoint")
    rows: Variables = {
        field: (dims, np.stack([_row(getattr(one, field), one.log_evidence) for one in methods.values()]))
        for field in FIELDS
        if any(getattr(one, field) is not None for one in methods.values())
    }
    rows["trusted"] = (dims, np.stack([np.asarray(one.trusted, dtype=bool) for one in methods.values()]))
    rows["used"] = (dims, np.stack([np.asarray(one.used).astype(str) for one in methods.values()]))
    rows["num_draws"] = (dims, np.stack([np.sum(~np.isnan(one.log_weights), axis=0) for one in methods.values()]))
    rows["num_weights"] = (("method",), np.array([np.shape(one.log_weights)[0] for one in methods.values()]))
    return rows


def facts_of(one: EvidenceLike) -> dict[str, Any]:
    """How a method's numbers came about, with the error that it makes on simulated data, if known."""
    facts = {fact: getattr(one, fact) for fact in FACTS}
    if one.simulated is None:
        return facts
    known = np.isfinite(one.simulated.errors)
    return facts | {
        "simulated": {
            **{name: getattr(one.simulated, name) for name in ("mean", "se", "outside", "harder", "warnings")},
            "num_datapoints": int(known.sum()),
        }
    }


def annealing_variables(methods: Evidences) -> tuple[Variables, dict[str, Any]] | None:
    """``/annealing`` and its coordinates: (M, T + 1, N) float32; None without a path.

    The variables are ``beta``, ``spread`` of the log ratio there, and of the step that arrives there ``acceptance`` and
    ``step``, the standard deviation of its part of the log weight; at the first temperature these are NaN, as are all
    beyond the end of a shorter path.
    """
    paths = {name: one.path for name, one in methods.items() if one.path is not None}
    if not paths:
        return None
    longest = max(len(path.betas) for path in paths.values())
    kept = sampled_steps(longest, MAX_TEMPERATURES)
    tables: dict[str, list[np.ndarray]] = {"beta": [], "acceptance": [], "spread": [], "step": []}
    for path in paths.values():
        columns = {
            "beta": path.betas,
            "acceptance": _arriving(path.acceptance),
            "spread": path.spread,
            "step": _arriving(np.diff(path.betas, axis=0) * path.spread[:-1]),
        }
        for name, column in columns.items():
            tables[name].append(_padded(column, longest)[kept])
    variables: Variables = {
        name: (("method", "temperature", "datapoint"), np.stack(rows)) for name, rows in tables.items()
    }
    return variables, {"method": list(paths), "temperature": kept}


def _arriving(table: np.ndarray) -> np.ndarray:
    """(T, N) values of steps as (T + 1, N), at the temperature where each arrives."""
    return np.vstack([np.full((1, table.shape[1]), np.nan), table])


def _padded(table: np.ndarray, length: int) -> np.ndarray:
    result = np.full((length, table.shape[1]), np.nan, dtype=np.float32)
    result[: len(table)] = table
    return result


def _row(values: ArrayLike | None, like: ArrayLike) -> np.ndarray:
    """A row of float64 values, ``nan`` where the method has none."""
    return np.full(np.shape(like), np.nan) if values is None else np.asarray(values, dtype=np.float64)
