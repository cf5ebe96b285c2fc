"""What would pay: one or two sentences from the ledger's numbers.

The rules that lead to a verdict are those of `amortize.study.findings`, those that lead to a cause of
`amortize.study.causes`; here each has its sentence. Which richer family pays is read off what the fitted ones gain
(`HELPFUL`). A second sentence says what to beware of (`amortize.study.cautions`). Every number in the text is one of
the ledger's, rounded as on the page, so that the advice cannot contradict the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.report.words import decimals, number, uncertain
from amortize.study.causes import Clues, find_cause
from amortize.study.cautions import of_evidence, of_modes, of_rows, percent
from amortize.study.findings import BAD_KHAT, DOMINANT, NEGLIGIBLE, NUM_SE, ROUNDING, Finding, examine

__all__ = ["advise"]

HELPFUL = 0.5
"""Share of the approximation gap that a full covariance must win to be the remedy."""


def advise(
    table: pd.DataFrame,
    *,
    reference: str | None,
    evidence_ess: NDArray[np.float64] | None = None,
    unconverged: Mapping[str, int] | None = None,
    all_discrete: bool = False,
    clues: Clues | None = None,
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
    all_discrete
        Whether there is no continuous latent, or a discrete one that is drawn beside it, and so no family to split the
        gap by.
    clues
        What is known beside the table.
    """
    finding = examine(table, reference=reference)
    clues = clues or Clues()
    explained = _EXPLAINED.get(find_cause(finding, clues))
    sentence = explained(finding, clues) if explained else _SENTENCES[finding.verdict](finding)
    if all_discrete and finding.verdict == "unsplit":
        sentence = _discrete(finding)
    elif all_discrete and finding.verdict == "nothing" and abs(finding.gap) < ROUNDING:
        sentence = "Nothing is approximated: every latent is discrete and summed out, so log p(x) is exact."
    cautions = [*of_evidence(table, evidence_ess), *of_modes(clues), *of_rows(finding, unconverged or {})]
    return f"{sentence} Beware: {'; '.join(cautions)}." if cautions else sentence


def _unusable(finding: Finding) -> str:
    return (
        f"All {finding.num_datapoints} datapoints failed: none has finite numbers throughout, so there is nothing to"
        " judge; look for log densities that are NaN or infinite (program.check(x))."
    )


def _impossible(finding: Finding) -> str:
    gap, se, reached = finding.gap, finding.gap_se, "the guide's ELBO"
    if not finding.has_guide or finding.approximation < finding.gap:
        gap, se = finding.approximation, finding.approximation_se
        reached = f"the ELBO of the best {_kind(finding)} posteriors"
    return (
        f"The evidence comes out {number(-gap, decimals(se))} nats a datapoint below {reached},"
        " which cannot be: it has not converged; use more temperatures or chains."
    )


def _guideless(finding: Finding) -> str:
    return f"There is no guide: {_of_model(finding)}; train a guide (am.fit) to amortize it."


def _point(finding: Finding) -> str:
    return (
        f"The guide is a point, which has no density and hence no ELBO: {_of_model(finding)}. These judge the model,"
        " not the guide; for what a guide loses, give the model one with a density, as am.auto_guide(model, x)."
    )


def _of_model(finding: Finding) -> str:
    """What is known of the model alone: its evidence, and what the fitted posteriors lose."""
    loss = ""
    if math.isfinite(finding.gap):
        close = "" if finding.gap > NUM_SE * finding.gap_se else " no more than noise,"
        loss = f", the best {_kind(finding)} posterior of each datapoint loses{close} {_gap(finding)}"
    evidence = _mean(finding, finding.evidence, finding.evidence_se)
    return f"log p(x) is {evidence} nats a datapoint{loss}"


def _unmeasured(finding: Finding) -> str:
    return (
        "The guide's draws are all alike, so log p(x) measured from them is its ELBO once more, and a gap of 0 says"
        f" nothing of what it loses: {_mean(finding, finding.evidence, finding.evidence_se)} nats a datapoint is a"
        " bound. For log p(x) itself anneal from the prior (am.AIS(),"
        ' start="prior"), or draw from a guide that is less sure.'
    )


def _nothing(finding: Finding) -> str:
    return (
        f"Nothing needs mending: the gap of {_gap(finding)} nats a datapoint is no more than the"
        f" {NEGLIGIBLE:g} from which on a remedy is worth its cost."
    )


def _undecided(finding: Finding) -> str:
    if finding.num_judged == 1:  # its error is Monte Carlo's alone
        remedy = "measure the evidence with more temperatures or chains before changing the guide."
    else:
        remedy = "evaluate more datapoints before changing the guide."
    return f"The gap of {_gap(finding)} nats a datapoint cannot be told from zero: {remedy}"


def _few(finding: Finding) -> str:
    how = "refine these, each by itself (am.fit_local)"
    if finding.tail_amortization < 1 - DOMINANT:
        how = "they need a richer family rather than a better encoder"
    return (
        f"A few datapoints are the problem: the worst {finding.tail_size} of {finding.num_judged} carry"
        f" {percent(finding.tail_share)} of the gap, which is {_gap(finding)} nats a datapoint"
        f" (k-hat is above {BAD_KHAT:g} for {percent(finding.bad_khat)} of all); {how}."
    )


def _unsplit(finding: Finding) -> str:
    return (
        'Fit a family to each datapoint, for example families=("mean-field", "full-covariance"), to learn whether'
        f" the family or the encoder loses the {_gap(finding)} nats a datapoint."
    )


def _discrete(finding: Finding) -> str:
    return (
        f"The guide loses {_gap(finding)} nats a datapoint. Discrete latents are drawn, so no Gaussian splits it into"
        " family and encoder: a larger or longer-trained encoder, or one with dependence among them, would pay."
    )


def _approximation(finding: Finding) -> str:
    return f"{_whole(finding)}, {_approximated(finding)}: {_richer(finding)}."


def _amortization(finding: Finding) -> str:
    return f"{_whole(finding)}, {_amortized(finding)}: {_closer(finding)}."


def _both(finding: Finding) -> str:
    terms = f"{_approximated(finding)} and {_amortized(finding)}"
    return f"{_whole(finding)}, {terms}: {_richer(finding)}, and {_closer(finding)}."


_SENTENCES = {
    "unusable": _unusable,
    "impossible": _impossible,
    "guideless": _guideless,
    "unmeasured": _unmeasured,
    "nothing": _nothing,
    "undecided": _undecided,
    "few": _few,
    "unsplit": _unsplit,
    "approximation": _approximation,
    "amortization": _amortization,
    "both": _both,
}


def _overfitted(finding: Finding, clues: Clues) -> str:
    return (
        f"{_whole(finding)}, {_amortized(finding)}, against {_nats(clues.train_amortization)} on training data: the"
        " encoder overfits; more training data, a smaller encoder or early stopping (am.Training(patience=...)) would"
        " pay, or refining each datapoint by itself (am.fit_local)."
    )


def _under_trained(finding: Finding, clues: Clues) -> str:
    won = f"{clues.continued_steps} steps more win {uncertain(clues.continued, clues.continued_se)} nats"
    return f"{_whole(finding)}, {_amortized(finding)}: the guide is under-trained, {won}; train it longer (am.fit)."


def _small(finding: Finding, clues: Clues) -> str:
    won = f"training it for {clues.continued_steps} steps more wins"
    won += f" only {uncertain(clues.continued, clues.continued_se)} nats" if clues.continued > 0 else " nothing"
    return (
        f"{_whole(finding)}, {_amortized(finding)}: {won}, so a larger encoder would pay, or refining each datapoint by"
        " itself (am.fit_local)."
    )


def _multimodal(finding: Finding, clues: Clues) -> str:
    several = f"{percent(clues.multimodal)} of the posteriors looked at have more than one mode"
    helps = "a family that has several too (a mixture, a flow) would pay"
    if finding.richest and finding.richest_gain >= HELPFUL * finding.approximation:
        helps = f"{finding.richest} posteriors would win {_nats(finding.richest_gain)}"
    return f"{_whole(finding)}, {_approximated(finding)}: {several}, and {helps}."


_EXPLAINED: dict[str, Callable[[Finding, Clues], str]] = {
    "overfitted-encoder": _overfitted,
    "under-trained-guide": _under_trained,
    "small-encoder": _small,
    "multimodal-posterior": _multimodal,
    "point-guide": lambda finding, _: _point(finding),
}
"""Sentences of causes that the table alone does not tell."""


def _whole(finding: Finding) -> str:
    return f"Of the {_gap(finding)} nats a datapoint that the guide loses"


def _approximated(finding: Finding) -> str:
    lost = number(finding.approximation, decimals(finding.approximation_se))
    if finding.reference:
        return f"{lost} are approximation (the {finding.reference} family)"
    return f"{lost} lie between the evidence and the best {_kind(finding)} posterior of each datapoint"


def _amortized(finding: Finding) -> str:
    lost = number(finding.amortization, decimals(finding.amortization_se))
    if finding.reference:
        return f"{lost} are amortization"
    return f"{lost} lie between the best {_kind(finding)} posterior of each datapoint and the guide"


def _richer(finding: Finding) -> str:
    gain = finding.covariance_gain
    if finding.richest_gain >= HELPFUL * finding.approximation and not gain >= HELPFUL * finding.approximation:
        return f"{finding.richest} posteriors would win {_nats(finding.richest_gain)}"
    if finding.reference != "mean-field":
        return "a family that is not Gaussian (a flow, a mixture) would pay"
    if math.isnan(gain):
        return "a richer family would pay; fit full-covariance to see how far that goes"
    if gain >= HELPFUL * finding.approximation:
        return f"a full covariance would win {_nats(gain)}"
    return f"a full covariance would win only {_nats(gain)}, so try one that is not Gaussian (a flow, a mixture)"


def _kind(finding: Finding) -> str:
    """What the posteriors that were fitted are."""
    return "fitted" if finding.richest else "Gaussian"


def _closer(finding: Finding) -> str:
    if finding.reference is None:
        return "refining each datapoint by itself (am.fit_local) would pay, or a better or richer encoder"
    return "a larger or longer-trained encoder would pay, or refining each datapoint by itself (am.fit_local)"


def _gap(finding: Finding) -> str:
    return _mean(finding, finding.gap, finding.gap_se)


def _mean(finding: Finding, mean: float, se: float) -> str:
    """A mean with its error; of one datapoint the error over datapoints is unknown."""
    return uncertain(mean, se) if finding.num_judged > 1 else number(mean, decimals(se))


def _nats(value: float) -> str:
    return number(value)
