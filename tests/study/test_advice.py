"""Advice: each verdict on a ledger planted for it, each remedy and warning, and no sentence against its numbers."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from amortize.report.words import uncertain
from amortize.study import advice as advice_module
from amortize.study.advice import advise
from amortize.study.causes import Clues
from amortize.study.findings import NEGLIGIBLE, NUM_SE, Finding, examine

N = 200


def planted(
    approximation=0.0, amortization=0.0, *, noise=0.05, gain=None, se=0.02, num=N, seed=0, khat=0.3
) -> pd.DataFrame:
    """A ledger's table with these mean gaps (numbers or (N,) arrays) and Gaussian spread over datapoints."""
    rng = np.random.default_rng(seed)
    evidence = -20.0 + rng.normal(size=num)
    mean_field = evidence - approximation - noise * rng.normal(size=num)
    guide = mean_field - amortization - noise * rng.normal(size=num)
    table = pd.DataFrame({"log_evidence": evidence, "elbo_guide": guide, "elbo_mean_field": mean_field})
    if gain is not None:
        table["elbo_full_covariance"] = mean_field + gain
    table["inference_gap"] = evidence - guide
    table["approximation_gap"] = evidence - mean_field
    table["amortization_gap"] = mean_field - guide
    table["khat"], table["ess"] = khat, 500.0
    for name in ("log_evidence", "elbo_guide", "elbo_mean_field"):
        table[f"{name}_se"] = se
    for name in ("inference_gap", "approximation_gap", "amortization_gap"):
        table[f"{name}_se"] = se * 2**0.5
    return table


def heavy(total: float, *, seed: int = 1) -> np.ndarray:
    """A gap of mean ``total``, nine tenths of it in a twentieth of the datapoints."""
    values = np.full(N, 0.1 * total / 0.95)
    values[np.random.default_rng(seed).permutation(N)[: N // 20]] = 0.9 * total / 0.05
    return values


VERDICTS = {
    "unmeasured": (planted(noise=0.0, se=np.nan), "says nothing of what it loses"),
    "nothing": (planted(0.02, 0.03), "Nothing needs mending"),
    "undecided": (planted(0.1, 0.2, noise=3.0, num=30), "cannot be told from zero"),
    "impossible": (planted(-0.8, 0.1), "which cannot be: it has not converged"),
    "few": (planted(0.1, heavy(1.5)), "A few datapoints are the problem"),
    "guideless": (
        planted(0.4).drop(columns=["elbo_guide", "inference_gap", "amortization_gap", "khat", "ess"]),
        "the best Gaussian posterior of each datapoint loses 0.3",
    ),
    "approximation": (planted(1.5, 0.3), "are approximation (the mean-field family): "),
    "amortization": (planted(0.3, 1.5), "are amortization: a larger"),
    "both": (planted(1.0, 1.0, gain=0.8), "a full covariance would win 0.80, and a larger or longer-trained encoder"),
    "unsplit": (planted(1.0, 1.0).drop(columns=["approximation_gap", "amortization_gap"]), "Fit a family"),
    "unusable": (planted(np.full(N, np.nan)), "All 200 datapoints failed"),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_each_verdict_on_the_ledger_planted_for_it(verdict):
    table, says = VERDICTS[verdict]
    assert examine(table, reference="mean-field").verdict == verdict
    text = advise(table, reference="mean-field")
    assert says in text
    assert "Beware" not in text
    assert text.endswith(".")
    for other, (_, words) in VERDICTS.items():
        assert other == verdict or words not in text


def test_there_is_a_sentence_for_each_verdict_and_no_more():
    assert set(advice_module._SENTENCES) == set(VERDICTS)


@pytest.mark.parametrize(
    ("reference", "gain", "says"),
    [
        ("mean-field", 1.2, "a full covariance would win 1.20"),
        ("mean-field", 0.2, "would win only 0.20, so try one that is not Gaussian"),
        ("mean-field", None, "fit full-covariance to see how far that goes"),
        ("full-covariance", 1.2, "a family that is not Gaussian (a flow, a mixture) would pay"),
        (None, 1.2, "a family that is not Gaussian (a flow, a mixture) would pay"),
    ],
)
def test_the_richer_family_is_the_one_that_the_numbers_name(reference, gain, says):
    assert says in advise(planted(1.5, 0.1, gain=gain), reference=reference)


def test_a_stand_in_family_is_not_called_the_guide_s_own():
    text = advise(planted(0.1, 1.5), reference=None)
    assert "between the best Gaussian posterior of each datapoint and the guide" in text
    assert "refining each datapoint by itself (am.fit_local) would pay" in text
    assert "amortization" not in text
    assert "approximation (the full-covariance family)" in advise(planted(1.5, 0.1), reference="full-covariance")


def test_numbers_are_rounded_as_on_the_page():
    finding = examine(planted(0.3, 1.5), reference="mean-field")
    assert finding.gap_se < 0.01
    assert f"Of the {uncertain(finding.gap, finding.gap_se)} nats" in advise(planted(0.3, 1.5), reference="mean-field")


@pytest.mark.parametrize(
    ("num", "says"),
    [(1, "the standard error of its mean is unknown"), (9, "means over only 9 datapoints are uncertain"), (10, None)],
)
def test_few_datapoints_are_said_to_be_few(num, says):
    text = advise(planted(0.3, 1.5, num=num), reference="mean-field")
    assert "Beware" not in text if says is None else says in text
    assert ("±" in text) == (num > 1)


def test_without_a_guide_nothing_is_said_of_one():
    table = VERDICTS["guideless"][0]
    text = advise(table, reference=None)
    assert text.startswith("There is no guide: log p(x) is \N{MINUS SIGN}19.98")
    assert "train a guide (am.fit)" in text
    assert "loses" not in advise(table[["log_evidence", "log_evidence_se"]], reference=None)
    assert "loses no more than noise," in advise(
        table.assign(approximation_gap=np.tile([0.1, -0.1], N // 2)), reference=None
    )
    point = advise(table, reference=None, clues=Clues(point=True))
    assert point.startswith("The guide is a point, which has no density and hence no ELBO: log p(x) is")
    assert "There is no guide" not in point
    impossible = table.assign(approximation_gap=table["approximation_gap"] - 2)
    assert "below the ELBO of the best Gaussian posteriors" in advise(impossible, reference=None)
    assert "All 200 datapoints failed" in advise(table * np.nan, reference=None)


@pytest.mark.parametrize("known", [True, False])
def test_evidence_below_a_fitted_posterior_is_not_blamed_on_the_guide(known):
    table = planted(-0.6, 3.0)
    table["approximation_gap_se"] = table["approximation_gap_se"] if known else np.nan
    assert examine(table, reference="mean-field").verdict == "impossible"
    text = advise(table, reference="mean-field")
    assert "nats a datapoint below the ELBO of the best Gaussian posteriors" in text
    one = examine(table[:1].assign(inference_gap_se=np.nan, approximation_gap_se=np.nan), reference="mean-field")
    assert one.verdict == "impossible"


def test_one_datapoint_alone_asks_for_better_evidence_and_not_for_more_datapoints():
    text = advise(planted(0.1, 0.2, num=1).assign(inference_gap_se=5.0), reference="mean-field")
    assert "cannot be told from zero: measure the evidence with more temperatures" in text


def test_the_remedy_for_a_few_datapoints_depends_on_what_they_lose():
    amortized = advise(planted(0.1, heavy(1.5), khat=np.linspace(0.0, 1.0, N)), reference="mean-field")
    assert "the worst 20 of 200 carry 86 %" in amortized
    assert "k-hat is above 0.7 for 30 % of all" in amortized
    assert "refine these, each by itself" in amortized
    assert "a richer family rather" in advise(planted(heavy(1.5), 0.1), reference="mean-field")


def test_noise_alone_is_not_a_few_bad_datapoints():
    noisy = planted(0.05, 0.25, noise=0.7, se=0.7)
    finding = examine(noisy, reference="mean-field")
    assert finding.tail_share > 0.5
    assert finding.verdict != "few"
    quiet = planted(0.05, 0.25, noise=0.7, se=0.0)
    assert examine(quiet, reference="mean-field").verdict == "few"


def test_one_huge_gap_is_no_noise():
    gaps = np.full(48, 2.0)
    gaps[7] = 540.0
    finding = examine(planted(0.3, gaps, num=48), reference="mean-field")
    assert finding.gap < NUM_SE * finding.gap_se
    assert finding.verdict == "few"
    assert "the worst 5 of 48 carry" in advise(planted(0.3, gaps, num=48), reference="mean-field")
    unsure = planted(0.3, gaps, num=48, se=400.0)
    assert examine(unsure, reference="mean-field").verdict == "undecided"


def test_few_datapoints_have_no_worst_tenth():
    gaps = np.zeros(10)
    gaps[0] = 30.0
    assert examine(planted(0.2, gaps, num=10), reference="mean-field").verdict != "few"


def test_one_datapoint_is_judged_by_its_monte_carlo_error():
    sure, unsure = planted(0.2, 2.0, num=1, se=0.1), planted(0.2, 2.0, num=1, se=5.0)
    assert examine(sure, reference="mean-field").verdict == "amortization"
    assert examine(unsure, reference="mean-field").verdict == "undecided"


@pytest.mark.parametrize("verdict", ["nothing", "amortization", "few"])
def test_an_uncertain_evidence_is_said_to_be_so(verdict):
    table = VERDICTS[verdict][0].copy()
    plain = advise(table, reference="mean-field")
    table["log_evidence_se"] = 0.45
    text = advise(table, reference="mean-field")
    assert text == f"{plain} Beware: the evidence is uncertain by 0.45 nats a datapoint (use more temperatures)."


def test_other_warnings_and_their_thresholds():
    table = VERDICTS["amortization"][0].copy()
    ess = np.full(N, 12.0)
    assert "Beware" not in advise(table, reference="mean-field", evidence_ess=ess, unconverged={"mean-field": 20})
    ess[:30] = 1.5
    table.loc[:14, ["log_evidence", "inference_gap", "approximation_gap"]] = np.nan
    text = advise(table, reference="mean-field", evidence_ess=ess, unconverged={"mean-field": 21, "full-covariance": 0})
    assert "for 15 % of the datapoints it rests on fewer than 3 chains" in text
    assert "15 of 200 datapoints failed and are left out" in text
    assert "21 of 200 mean-field fits did not converge" in text
    assert "full-covariance" not in text.partition("Beware")[2]
    text = advise(table, reference="mean-field", unconverged={"mean-field": 21, "iaf": 200, "full-covariance": 20})
    assert "fits of several families did not converge (mean-field 21, iaf 200, of 200 each)" in text
    assert text.count("converge") == 1
    assert text.count("Beware") == 1


def test_failed_datapoints_change_no_number():
    table = planted(0.3, 1.5)
    failed = planted(num=5)
    failed.loc[:2, ["log_evidence", "inference_gap", "approximation_gap"]] = np.nan
    failed.loc[3:, ["elbo_guide", "inference_gap", "amortization_gap"]] = [-np.inf, np.inf, np.inf]
    spoiled = pd.concat([table, failed], ignore_index=True)
    clean, dirty = (examine(each, reference="mean-field") for each in (table, spoiled))
    assert dirty == dataclasses.replace(clean, num_datapoints=N + 5, num_failed=5)
    assert advise(spoiled, reference="mean-field") == advise(table, reference="mean-field")


def test_the_mean_gap_decides_not_its_sign_in_a_row():
    table = planted(0.3, 1.5, noise=2.0)
    assert (table["amortization_gap"] < 0).any()
    assert examine(table, reference="mean-field").verdict == "amortization"


@pytest.mark.parametrize("seed", range(200))
def test_no_advice_contradicts_its_numbers(seed):
    rng = np.random.default_rng(seed)
    table = planted(
        rng.normal() * rng.choice([0.1, 1.0]) + rng.choice([0.0, 0.5]),
        rng.exponential(size=N) * rng.choice([0.01, 0.1, 1.0]) ** rng.uniform(0.5, 2.0, size=N),
        noise=rng.choice([0.01, 1.0]),
        gain=rng.choice([-0.1, 0.1, 1.0]),
        seed=seed,
    )
    finding = examine(table, reference="mean-field")
    text = advise(table, reference="mean-field")
    assert finding.approximation + finding.amortization == pytest.approx(finding.gap)
    check_verdict(finding)
    check_numbers(finding, text)


def check_verdict(finding: Finding) -> None:
    significant = finding.gap > NUM_SE * finding.gap_se
    match finding.verdict:
        case "nothing":
            assert finding.gap <= NEGLIGIBLE
        case "impossible":
            assert min(finding.gap, finding.approximation) < 0
        case "undecided":
            assert not significant
        case "approximation":
            assert significant
            assert finding.approximation > finding.amortization
        case "amortization":
            assert significant
            assert finding.amortization > finding.approximation
        case "few":
            assert significant or finding.gap > NEGLIGIBLE
            assert finding.tail_share >= 0.5
        case verdict:
            assert verdict == "both"
            assert significant


def check_numbers(finding: Finding, text: str) -> None:
    """Every number with decimals, thresholds apart, is one of the finding's."""
    known = {abs(value) for value in vars(finding).values() if isinstance(value, float)}
    for number in re.findall(r"\d+\.\d\d+", text):
        digits = len(number.partition(".")[2])
        assert any(number == f"{value:.{digits}f}" for value in known), f"{number} in {text!r} is none of {known}"
