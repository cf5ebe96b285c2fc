r"""The cause of the loss, one of a closed list, from the verdict on the ledger's table and a few clues beside it.

The verdict (`amortize.study.findings`) says which term of the gap is large; most causes follow from it alone. The
clues tell apart what the table cannot. The rules, the first that applies:

1. ``unusable``, ``evidence-too-low``, ``no-guide``, ``unmeasured``, ``nothing``, ``undecided``, ``unsplit``: as the
   verdict; without an ELBO of a guide that is a point, ``point-guide``.
2. ``overfitted-encoder``: the amortization gap on these data exceeds that on training data by `SHARE` of the inference
   gap or more, and by more than noise.
3. ``few-datapoints``: as the verdict.
4. The approximation gap dominates: ``correlated-posterior`` if the guide is mean-field and a Gaussian with dependent
   dimensions wins `SHARE` of it; else ``multimodal-posterior`` if `SHARE` of the datapoints looked at have more than
   one mode that counts; else ``non-gaussian-posterior`` if a full covariance was fitted; else ``family``.
5. The amortization gap dominates: ``under-trained-guide`` if training a copy of the guide on wins `SHARE` of it;
   ``small-encoder`` if it wins less; ``encoder`` if that was not tried.
6. ``family-and-encoder``: neither dominates.

Noise is `NUM_SE` standard errors over datapoints. All in nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from amortize.study.findings import NUM_SE, Finding

__all__ = ["CAUSES", "SHARE", "Clues", "find_cause"]

SHARE = 0.5
"""Share of a gap that a remedy must win, and of datapoints that must have several modes, to name the cause."""

CAUSES = (
    "unusable",
    "evidence-too-low",
    "no-guide",
    "point-guide",
    "unmeasured",
    "nothing",
    "undecided",
    "few-datapoints",
    "unsplit",
    "correlated-posterior",
    "multimodal-posterior",
    "non-gaussian-posterior",
    "family",
    "overfitted-encoder",
    "under-trained-guide",
    "small-encoder",
    "encoder",
    "family-and-encoder",
)
"""All the causes there are."""

_BY_VERDICT = {
    "unusable": "unusable",
    "impossible": "evidence-too-low",
    "guideless": "no-guide",
    "unmeasured": "unmeasured",
    "nothing": "nothing",
    "undecided": "undecided",
    "unsplit": "unsplit",
    "few": "few-datapoints",
    "both": "family-and-encoder",
}


@dataclass(frozen=True)
class Clues:
    """What the table does not hold, nats a datapoint; NaN where it was not looked at.

    Attributes
    ----------
    train_amortization
        Mean amortization gap on training data.
    generalisation, generalisation_se
        Mean amortization gap on these data less that on training data.
    continued, continued_se
        What training the guide on wins: mean ELBO of the guide on these data after less before, paired. The program
        itself is left as it was.
    continued_steps
        Steps of that training; 0 if there was none.
    multimodal
        Share of the datapoints looked at whose posterior has more than one mode that counts.
    one_start
        Whether the evidence's chains began at the guide alone, which may miss modes.
    point
        Whether the guide is a point, which has no ELBO.
    """

    train_amortization: float = math.nan
    generalisation: float = math.nan
    generalisation_se: float = math.nan
    continued: float = math.nan
    continued_se: float = math.nan
    continued_steps: int = 0
    multimodal: float = math.nan
    one_start: bool = False
    point: bool = False


def find_cause(finding: Finding, clues: Clues) -> str:
    """The first of the rules above that applies, one of `CAUSES`."""
    if clues.point and finding.verdict == "guideless":
        return "point-guide"
    if _overfitted(finding, clues):
        return "overfitted-encoder"
    if finding.verdict == "approximation":
        return _of_family(finding, clues)
    if finding.verdict == "amortization":
        return _of_encoder(finding, clues)
    return _BY_VERDICT[finding.verdict]


def _overfitted(finding: Finding, clues: Clues) -> bool:
    if finding.verdict not in ("few", "amortization", "both"):
        return False
    return _surely(clues.generalisation, clues.generalisation_se, SHARE * finding.gap)


def _of_family(finding: Finding, clues: Clues) -> str:
    if finding.reference == "mean-field" and finding.dependence_gain >= SHARE * finding.approximation:
        return "correlated-posterior"
    if clues.multimodal >= SHARE:
        return "multimodal-posterior"
    return "non-gaussian-posterior" if finding.has_full_covariance else "family"


def _of_encoder(finding: Finding, clues: Clues) -> str:
    if math.isnan(clues.continued):
        return "encoder"
    enough = _surely(clues.continued, clues.continued_se, SHARE * finding.amortization)
    return "under-trained-guide" if enough else "small-encoder"


def _surely(gain: float, se: float, least: float) -> bool:
    """Whether a gain is as large as it must be, and more than noise; NaN is not."""
    return gain >= least and gain > NUM_SE * (0.0 if math.isnan(se) else se)
