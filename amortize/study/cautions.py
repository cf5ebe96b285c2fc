"""What to beware of in a ledger, a clause each: evidence that is uncertain, modes missed, datapoints few or failed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.report.words import FEW, number
from amortize.study.causes import Clues
from amortize.study.findings import Finding, column

__all__ = ["of_evidence", "of_modes", "of_rows", "percent"]

EVIDENCE_SE = 0.3
"""Mean standard error of a datapoint's log evidence, nats, above which the evidence is called uncertain."""
EVIDENCE_ESS = 3.0
"""Effective number of chains below which a datapoint's evidence rests on one or two of them."""
MANY_THIN = 0.1
"""Share of datapoints with so few effective chains that calls for a warning."""
MANY_MULTIMODAL = 0.1
"""Share of posteriors with several modes that calls for a warning where the evidence began at the guide."""
MANY_FAILED = 0.05
"""Share of failed datapoints that calls for a warning."""
MANY_UNCONVERGED = 0.1
"""Share of local fits without convergence that calls for a warning."""


def of_evidence(table: pd.DataFrame, ess: NDArray[np.float64] | None) -> list[str]:
    """Evidence whose error is large, or that rests on few chains; ``ess`` (N,) is their effective number."""
    cautions = []
    se = column(table, "log_evidence_se")
    uncertain = float(se[np.isfinite(se)].mean()) if np.isfinite(se).any() else math.nan
    if uncertain > EVIDENCE_SE:
        cautions.append(f"the evidence is uncertain by {number(uncertain)} nats a datapoint (use more temperatures)")
    thin = float((ess < EVIDENCE_ESS).mean()) if ess is not None else 0.0  # NaN is not below
    if thin > MANY_THIN:
        cautions.append(
            f"for {percent(thin)} of the datapoints it rests on fewer than {EVIDENCE_ESS:g} chains or draws"
        )
    return cautions


def of_modes(clues: Clues) -> list[str]:
    """Modes that the evidence may have missed."""
    if not (clues.one_start and clues.multimodal > MANY_MULTIMODAL):
        return []
    several = f"{percent(clues.multimodal)} of the posteriors looked at have more than one mode"
    return [f"{several}, of which chains from the guide may miss some (measure the evidence from the prior as well)"]


def of_rows(finding: Finding, unconverged: Mapping[str, int]) -> list[str]:
    """Datapoints that are few or failed, and fits by family that did not converge."""
    cautions = []
    num = finding.num_datapoints
    if finding.num_judged == 1:
        cautions.append("one datapoint says nothing of others, and the standard error of its mean is unknown")
    elif 1 < finding.num_judged < FEW:
        cautions.append(f"means over only {finding.num_judged} datapoints are uncertain, and so are their errors")
    if finding.num_failed > MANY_FAILED * num and finding.num_judged:
        cautions.append(f"{finding.num_failed} of {num} datapoints failed and are left out")
    many = {family: count for family, count in unconverged.items() if count > MANY_UNCONVERGED * num}
    return [*cautions, *_of_fits(many, num)]


def _of_fits(unconverged: Mapping[str, int], num: int) -> list[str]:
    """One clause for the families of which many fits did not converge."""
    if len(unconverged) == 1:
        ((family, count),) = unconverged.items()
        return [f"{count} of {num} {family} fits did not converge, so that family can do better"]
    counts = ", ".join(f"{family} {count}" for family, count in unconverged.items())
    words = f"fits of several families did not converge ({counts}, of {num} each), so these families can do better"
    return [words] if counts else []


def percent(share: float) -> str:
    """A share in a sentence.

    Examples
    --------
    >>> percent(0.835)
    '84 %'
    """
    return f"{100 * share:.0f} %"
