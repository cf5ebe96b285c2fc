"""What would pay: one or two sentences from the ledger's numbers.

The rules that lead to a verdict are those of `amortize.study.findings`; here each verdict has its sentence.
Which richer family pays is read off what full covariance gains over mean field (`HELPFUL`). A second sentence
warns where the evidence itself is uncertain (`EVIDENCE_SE`, `EVIDENCE_ESS`), where more than `MANY_FAILED` of
the datapoints failed, or more than `MANY_UNCONVERGED` of the local fits did not converge. Every number in the
text is one of the ledger's, so that the advice cannot contradict the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.study.findings import BAD_KHAT, DOMINANT, NEGLIGIBLE, Finding, column, examine

__all__ = ["advise"]

HELPFUL = 0.5
"""Share of the approximation gap that a full covariance must win to be the remedy."""
EVIDENCE_SE = 0.3
"""Mean standard error of a datapoint's log evidence, nats, above which the evidence is called uncertain."""
EVIDENCE_ESS = 3.0
"""Effective number of chains below which a datapoint's evidence rests on one or two of them."""
MANY_THIN = 0.1
"""Share of datapoints with so few effective chains that calls for a warning."""
MANY_FAILED = 0.05
"""Share of failed datapoints that calls for a warning."""
MANY_UNCONVERGED = 0.1
"""Share of local fits without convergence that calls for a warning."""


def advise(
    table: pd.DataFrame,
    *,
    reference: str | None,
    evidence_ess: NDArray[np.float64] | None = None,
    unconverged: Mapping[str, int] | None = None,
) -> str:
    """One or two sentences: what would pay, and what to beware of.

    Parameters
    ----------
    table
        `Ledger.table`, N rows.
    reference
        The family that splits the gap if it is the guide's own; None if the best fitted one stands in.
    evidence_ess
        (N,) effective number of chains behind each log evidence.
    unconverged
        For each family, how many local fits did not converge.
    """
    finding = examine(table, reference=reference)
    sentence = _SENTENCES[finding.verdict](finding)
    cautions = [
        *_evidence_cautions(table, evidence_ess),
        *_row_cautions(finding, unconverged or {}),
    ]
    return f"{sentence} Beware: {'; '.join(cautions)}." if cautions else sentence


def _unusable(finding: Finding) -> str:
    return f"All {finding.num_datapoints} datapoints failed, so there is nothing to judge: try program.check(x)."


def _impossible(finding: Finding) -> str:
    return (
        f"The evidence comes out {_nats(-finding.gap)} nats a datapoint below the guide's ELBO, which cannot"
        " be: it has not converged; use more temperatures or chains."
    )


def _nothing(finding: Finding) -> str:
    return (
        f"Nothing needs mending: the gap of {_gap(finding)} nats a datapoint is no more than the"
        f" {NEGLIGIBLE:g} from which on a remedy is worth its cost."
    )


def _undecided(finding: Finding) -> str:
    return (
        f"The gap of {_gap(finding)} nats a datapoint cannot be told from zero:"
        " evaluate more datapoints before changing the guide."
    )


def _few(finding: Finding) -> str:
    how = "refine these, each by itself (am.fit_local)"
    if finding.tail_amortization < 1 - DOMINANT:
        how = "they need a richer family rather than a better encoder"
    return (
        f"A few datapoints are the problem: the worst {finding.tail_size} of {finding.num_judged} carry"
        f" {_percent(finding.tail_share)} of the gap, which is {_gap(finding)} nats a datapoint"
        f" (k-hat is above {BAD_KHAT:g} for {_percent(finding.bad_khat)} of all); {how}."
    )


def _unsplit(finding: Finding) -> str:
    return (
        f"The guide loses {_gap(finding)} nats a datapoint; fit a family to each datapoint, for example"
        ' families=("mean-field", "full-covariance"), to learn whether the family or the encoder is to blame.'
    )


def _approximation(finding: Finding) -> str:
    verdict = ", so the family is to blame" if finding.reference else ""
    return f"{_loss(finding)}{verdict}: {_richer(finding)}."


def _amortization(finding: Finding) -> str:
    verdict = ", so amortization is to blame" if finding.reference else ""
    return f"{_loss(finding)}{verdict}: {_closer(finding)}."


def _both(finding: Finding) -> str:
    return f"{_loss(finding)}: {_richer(finding)}, and {_closer(finding)}."


_SENTENCES = {
    "unusable": _unusable,
    "impossible": _impossible,
    "nothing": _nothing,
    "undecided": _undecided,
    "few": _few,
    "unsplit": _unsplit,
    "approximation": _approximation,
    "amortization": _amortization,
    "both": _both,
}


def _loss(finding: Finding) -> str:
    best = f"the best {finding.reference} posterior" if finding.reference else "the best Gaussian"
    return (
        f"The guide loses {_gap(finding)} nats a datapoint, {_nats(finding.approximation)} from the evidence"
        f" to {best} of each datapoint and {_nats(finding.amortization)} from there to the guide"
    )


def _richer(finding: Finding) -> str:
    gain = finding.covariance_gain
    if finding.reference != "mean-field":
        return "a family that is not Gaussian (a flow, a mixture) would pay"
    if math.isnan(gain):
        return "a richer family would pay; fit full-covariance to see how far that goes"
    if gain >= HELPFUL * finding.approximation:
        return f"a full covariance would win {_nats(gain)}"
    return f"a full covariance would win only {_nats(gain)}, so try one that is not Gaussian (a flow, a mixture)"


def _closer(finding: Finding) -> str:
    if finding.reference is None:
        return "refining each datapoint by itself (am.fit_local) would pay, or a better or richer encoder"
    return "a larger or longer-trained encoder would pay, or refining each datapoint by itself (am.fit_local)"


def _evidence_cautions(table: pd.DataFrame, ess: NDArray[np.float64] | None) -> list[str]:
    cautions = []
    se = column(table, "log_evidence_se")
    uncertain = float(se[np.isfinite(se)].mean()) if np.isfinite(se).any() else math.nan
    if uncertain > EVIDENCE_SE:
        cautions.append(f"the evidence is uncertain by {_nats(uncertain)} nats a datapoint (use more temperatures)")
    thin = float((ess < EVIDENCE_ESS).mean()) if ess is not None else 0.0  # NaN is not below
    if thin > MANY_THIN:
        cautions.append(
            f"for {_percent(thin)} of the datapoints it rests on fewer than {EVIDENCE_ESS:g} chains or draws"
        )
    return cautions


def _row_cautions(finding: Finding, unconverged: Mapping[str, int]) -> list[str]:
    cautions = []
    num = finding.num_datapoints
    if finding.num_failed > MANY_FAILED * num and finding.num_judged:
        cautions.append(f"{finding.num_failed} of {num} datapoints failed and are left out")
    for family, number in unconverged.items():
        if number > MANY_UNCONVERGED * num:
            cautions.append(f"{number} of {num} {family} fits did not converge, so that family can do better")
    return cautions


def _gap(finding: Finding) -> str:
    error = f" ± {_nats(finding.gap_se)}" if math.isfinite(finding.gap_se) else ""
    return _nats(finding.gap) + error


def _nats(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # adding zero turns -0.00 into 0.00


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
