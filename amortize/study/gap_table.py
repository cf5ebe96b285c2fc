"""The ledger's table: the gaps of each datapoint with their Monte Carlo errors, and its summary over datapoints.

All in nats. Letters: S draws, N datapoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.study.cost import TracedPart
from amortize.study.tower import elbo_column

__all__ = ["EvidencePart", "LocalPart", "gap_table", "summarise"]

Vector = NDArray[np.float64]


class EvidencePart(Protocol):
    """What the ledger takes of an evidence: (N,) each, and for the guide's draws log weights (S, N)."""

    @property
    def log_evidence(self) -> Vector:
        """(N,) nats."""

    @property
    def se(self) -> Vector:
        """(N,) nats."""

    @property
    def ess(self) -> Vector:
        """(N,) effective number of chains or draws."""

    @property
    def khat(self) -> Vector:
        """(N,) Pareto k-hat."""

    @property
    def log_weights(self) -> Vector:
        """(S, N) nats."""

    @property
    def num_gradients(self) -> NDArray[Any]:
        """(N,) gradient evaluations."""

    @property
    def seconds(self) -> float:
        """Wall-clock time."""


class LocalPart(TracedPart, Protocol):
    """What the ledger takes of a local posterior: (N,) each, and the fit on its way."""

    @property
    def elbo_se(self) -> Vector:
        """(N,) nats."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(N,) whether the fit stopped by itself."""


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise the columns of a ledger's table over datapoints: mean, se, mc_se, num_failed."""
    names = [name for name in table.columns if not name.endswith("_se")]
    rows = {name: _summary_row(table[name], table.get(f"{name}_se")) for name in names}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "se", "mc_se", "num_failed"])
    return frame.astype({"num_failed": int})


def _summary_row(column: pd.Series, row_se: pd.Series | None) -> tuple[float, float, float, int]:
    values = column.to_numpy(dtype=np.float64)
    finite = np.isfinite(values)
    num = int(finite.sum())
    kept = values[finite]
    mean = kept.mean() if num else np.nan
    se = kept.std(ddof=1) / np.sqrt(num) if num > 1 else np.nan
    mc_se = np.nan
    if row_se is not None and num:
        errors = row_se.to_numpy(dtype=np.float64)[finite]
        mc_se = np.sqrt(np.square(errors).sum()) / num  # one unknown error makes that of the mean unknown
        mc_se = mc_se if np.isfinite(mc_se) else np.nan
    return float(mean), float(se), float(mc_se), len(values) - num


def gap_table(
    evidence: EvidencePart, importance: EvidencePart | None, local: Mapping[str, LocalPart], own: str | None
) -> pd.DataFrame:
    """A row a datapoint, as `Ledger.table` has it; ``own`` is the guide's family, if it was fitted."""
    log_evidence = (_vector(evidence.log_evidence), _vector(evidence.se))
    guide = None if importance is None else _elbo_of_weights(importance.log_weights)
    columns = {"log_evidence": log_evidence}
    if guide is not None:
        columns["elbo_guide"] = guide
    for name, part in local.items():
        columns[elbo_column(name)] = (_vector(part.elbo), _vector(part.elbo_se))
    if guide is not None:
        columns["inference_gap"] = _difference(log_evidence, guide)
    if local:
        best = _reference(local, own)
        columns["approximation_gap"] = _difference(log_evidence, best)
        if guide is not None:
            columns["amortization_gap"] = _difference(best, guide)
    values = {name: value for name, (value, _) in columns.items()}
    if importance is not None and len(importance.log_weights) > 1:  # one weight is exact: there are no draws to judge
        values |= {"khat": _vector(importance.khat), "ess": _vector(importance.ess)}
    values |= {f"{name}_se": se for name, (_, se) in columns.items()}
    return pd.DataFrame(values, index=pd.RangeIndex(len(log_evidence[0]), name="datapoint"))


def _elbo_of_weights(log_weights: Vector) -> tuple[Vector, Vector]:
    """The guide's ELBO, the mean log weight, and its standard error: (N,) each of (S, N)."""
    weights = np.asarray(log_weights, dtype=np.float64)
    if len(weights) == 1:  # nothing is left to draw: every latent is summed out
        return weights[0], np.zeros(weights.shape[1])
    with np.errstate(invalid="ignore"):  # a weight of zero makes the ELBO -inf, and its error unknown
        return weights.mean(axis=0), weights.std(axis=0, ddof=1) / np.sqrt(len(weights))


def _reference(local: Mapping[str, LocalPart], own: str | None) -> tuple[Vector, Vector]:
    """The best ELBO of the guide's own family, or where that wasn't fitted the best of those that were."""
    parts = [local[own]] if own is not None else list(local.values())
    elbo, se = (np.stack([_vector(getattr(part, name)) for part in parts]) for name in ("elbo", "elbo_se"))
    best = np.where(np.isnan(elbo), -np.inf, elbo).argmax(axis=0)
    rows = np.arange(elbo.shape[1])
    return elbo[best, rows], se[best, rows]


def _difference(upper: tuple[Vector, Vector], lower: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    with np.errstate(invalid="ignore"):  # -inf less -inf is unknown
        return upper[0] - lower[0], np.hypot(upper[1], lower[1])


def _vector(values: Any) -> Vector:
    return np.asarray(values, dtype=np.float64)
