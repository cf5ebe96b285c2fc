"""The numbers behind the advice, and the rules that make a verdict of them.

Rules, on means over the datapoints whose gaps are finite; the first that applies is the verdict:

1. ``unusable``: every datapoint failed.
2. ``impossible``: the gap, or its approximation term, is below -`NEGLIGIBLE` by more than noise (or by noise that is
   unknown), so the evidence is too low: an ELBO cannot exceed it.
3. ``guideless``: there is no guide to judge, or one that is a point.
4. ``unmeasured``: the gap is 0 and the evidence's error unknown, as from a guide that is sure of its latents: its draws
   are all alike, so that what is measured from them is the ELBO once more.
5. ``nothing``: the gap is at most `NEGLIGIBLE` nats, and so is its noise.
6. ``undecided``: the gap is no more than noise, and it is not a few huge gaps that make the noise: where the next rule
   applies, the gap is above `NEGLIGIBLE` and the others' are not below zero, that one counts.
7. ``few``: with `FEWEST_DATAPOINTS` or more, the worst `TAIL` of them carry `CONCENTRATED` of the gap or more,
   even after `NUM_SE` Monte Carlo standard errors are taken off each.
8. ``unsplit``: no family was fitted, so the gap has no terms.
9. ``approximation``, ``amortization``: that term is `DOMINANT` of the gap or more, and more than noise.
10. ``both``: neither dominates.

The gap is the guide's; without a guide it is that of the best fitted posterior. Noise is `NUM_SE` standard errors
over datapoints. Letters: N datapoints; all gaps in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["Finding", "column", "examine"]

NEGLIGIBLE = 0.1
"""Nats a datapoint below which no remedy is worth its cost."""
ROUNDING = 1e-3
"""Nats that sums in float32 may be apart."""
NUM_SE = 2.0
"""Standard errors that a mean must be from zero to count as different from it."""
DOMINANT = 0.6
"""Share of the inference gap from which on a term dominates."""
TAIL = 0.1
"""Share of the datapoints that are "the worst"."""
CONCENTRATED = 2 / 3
"""Share of the gap in the worst datapoints from which on they are the problem; `TAIL` if all are equal.

Errors of an encoder that is bad everywhere, squared, have a tenth with nearly half of them."""
FEWEST_DATAPOINTS = 20
"""Fewest datapoints of which the worst tenth means anything."""
BAD_KHAT = 0.7
"""Pareto k-hat above which importance weights from the guide are useless (Vehtari et al. 2024)."""


GAUSSIAN = ("elbo_laplace", "elbo_mean_field", "elbo_low_rank", "elbo_full_covariance")
"""Columns of the families that are Gaussian in u."""


@dataclass(frozen=True)
class Finding:
    """The numbers behind the advice, nats a datapoint.

    Attributes
    ----------
    reference
        The family that splits the gap if it is the guide's own; None if the best fitted one stands in for it.
    num_datapoints, num_failed
        All datapoints, and those whose gaps are not finite; the rest of the numbers leave these out.
    has_guide
        Whether there is a guide with an ELBO; without one the gap is the approximation gap.
    evidence, evidence_se
        Mean log evidence and its standard error over datapoints.
    has_error
        Whether the Monte Carlo error of every datapoint's log evidence is known (0 where it is exact).
    gap, gap_se
        Mean inference gap and its standard error over datapoints (of one datapoint, its Monte Carlo error).
    approximation, approximation_se, amortization, amortization_se
        Its two terms; NaN where no family was fitted.
    covariance_gain
        Mean of elbo_full_covariance - elbo_mean_field; NaN unless both were fitted.
    dependence_gain
        The same, or where it was not fitted that of low rank.
    has_full_covariance
        Whether it was fitted.
    richest, richest_gain
        Of the fitted families that are not Gaussian the one with the highest mean ELBO ("" where there is none), and
        by how much it exceeds the family that splits the gap (else the best Gaussian one).
    tail_size, tail_share, sure_tail_share
        How many datapoints are the worst tenth, their share of the gap, and their share when `NUM_SE` Monte
        Carlo standard errors are taken off each of them.
    tail_amortization
        Share of amortization in their gap.
    bad_khat
        Share of datapoints whose k-hat is above `BAD_KHAT`.
    """

    reference: str | None
    num_datapoints: int
    num_failed: int
    has_guide: bool
    evidence: float
    evidence_se: float
    has_error: bool
    gap: float
    gap_se: float
    approximation: float
    approximation_se: float
    amortization: float
    amortization_se: float
    covariance_gain: float
    dependence_gain: float
    has_full_covariance: bool
    richest: str
    richest_gain: float
    tail_size: int
    tail_share: float
    sure_tail_share: float
    tail_amortization: float
    bad_khat: float

    @property
    def num_judged(self) -> int:
        """Datapoints that did not fail."""
        return self.num_datapoints - self.num_failed

    @property
    def verdict(self) -> str:
        """The first of the rules above that applies."""
        noise = NUM_SE * self.gap_se
        if self.num_judged == 0:
            return "unusable"
        if _below_zero(self.gap, self.gap_se) or _below_zero(self.approximation, self.approximation_se):
            return "impossible"
        if not self.has_guide:
            return "guideless"
        if abs(self.gap) < ROUNDING and not self.has_error:
            return "unmeasured"
        if self.gap <= NEGLIGIBLE and noise <= NEGLIGIBLE:
            return "nothing"
        if not self.gap > noise:
            huge = self._few and self.gap > NEGLIGIBLE and self.tail_share <= 1 + TAIL
            return "few" if huge else "undecided"
        if self._few:
            return "few"
        return self._blame()

    @property
    def _few(self) -> bool:
        return self.num_judged >= FEWEST_DATAPOINTS and self.sure_tail_share >= CONCENTRATED

    def _blame(self) -> str:
        if math.isnan(self.approximation):
            return "unsplit"
        if self.approximation >= max(DOMINANT * self.gap, NUM_SE * self.approximation_se):
            return "approximation"
        if self.amortization >= max(DOMINANT * self.gap, NUM_SE * self.amortization_se):
            return "amortization"
        return "both"


def examine(table: pd.DataFrame, *, reference: str | None) -> Finding:
    """Take the numbers that the rules speak of from `Ledger.table`, N rows."""
    total = "inference_gap" if "elbo_guide" in table else "approximation_gap"
    terms = ("approximation_gap", "amortization_gap")
    needed = [name for name in ("log_evidence", "inference_gap", *terms) if name in table]
    usable = np.isfinite(np.stack([column(table, name) for name in needed])).all(axis=0)
    gap, approximation, amortization = (column(table, name)[usable] for name in (total, *terms))
    evidence = column(table, "log_evidence")[usable]
    row_se = {name: column(table, f"{name}_se")[usable] for name in ("log_evidence", total, *terms)}
    gain = (column(table, "elbo_full_covariance") - column(table, "elbo_mean_field"))[usable]
    rank_gain = (column(table, "elbo_low_rank") - column(table, "elbo_mean_field"))[usable]
    dependence = gain if "elbo_full_covariance" in table else rank_gain
    richest, richest_gain = _richest(table.iloc[np.flatnonzero(usable)], reference)
    khat = column(table, "khat")[usable]
    size = math.ceil(TAIL * len(gap))
    worst = np.argsort(gap)[len(gap) - size :]
    sure = gap[worst] - NUM_SE * np.nan_to_num(row_se[total][worst])
    return Finding(
        reference=reference,
        num_datapoints=len(table),
        num_failed=int(len(table) - usable.sum()),
        has_guide="elbo_guide" in table,
        evidence=_mean(evidence),
        evidence_se=_se(evidence, row_se["log_evidence"]),
        has_error=bool(np.isfinite(row_se["log_evidence"]).all()),
        gap=_mean(gap),
        gap_se=_se(gap, row_se[total]),
        approximation=_mean(approximation),
        approximation_se=_se(approximation, row_se["approximation_gap"]),
        amortization=_mean(amortization),
        amortization_se=_se(amortization, row_se["amortization_gap"]),
        covariance_gain=_finite_mean(gain),
        dependence_gain=_finite_mean(dependence),
        has_full_covariance="elbo_full_covariance" in table,
        richest=richest,
        richest_gain=richest_gain,
        tail_size=size,
        tail_share=_share(gap[worst].sum(), gap.sum()),
        sure_tail_share=_share(sure.sum(), gap.sum()),
        tail_amortization=_share(amortization[worst].sum(), gap[worst].sum()),
        bad_khat=_mean(khat[np.isfinite(khat)] > BAD_KHAT),
    )


def column(table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column (N,) of the ledger's table, NaN where it has none of that name."""
    if name not in table:
        return np.full(len(table), np.nan)
    return table[name].to_numpy(dtype=np.float64)


def _richest(table: pd.DataFrame, reference: str | None) -> tuple[str, float]:
    """The best of the families that are not Gaussian, and its gain over the reference or the best Gaussian one."""
    names = [
        name
        for name in map(str, table)
        if name.startswith("elbo_") and not name.endswith("_se") and name != "elbo_guide"
    ]
    others = [name for name in names if name not in GAUSSIAN]
    lower = [f"elbo_{reference.replace('-', '_')}"] if reference else [name for name in names if name in GAUSSIAN]
    base = np.fmax.reduce([column(table, name) for name in lower]) if lower else np.full(len(table), np.nan)
    gains = {name: _finite_mean(column(table, name) - base) for name in others}
    known = [name for name in gains if math.isfinite(gains[name])]
    if not known:
        return "", math.nan
    best = max(known, key=gains.__getitem__)
    return best.removeprefix("elbo_").replace("_", "-"), gains[best]


def _finite_mean(values: NDArray[np.float64]) -> float:
    return _mean(values[np.isfinite(values)])


def _below_zero(gap: float, se: float) -> bool:
    return gap < -NEGLIGIBLE and gap + NUM_SE * (0.0 if math.isnan(se) else se) < 0


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _se(values: NDArray[np.float64], row_se: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else _mean(row_se)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan
