from __future__ import annotations

import math

import pytest

from amortize.report.words import decimals, number, quantity, uncertain, verdict


def summary(inference: float, approximation: float, amortization: float, se: float = 0.01) -> dict[str, dict]:
    means = {"inference_gap": inference, "approximation_gap": approximation, "amortization_gap": amortization}
    return {name: {"mean": mean, "se": se} for name, mean in means.items()}


SENTENCES = {
    "network": (summary(2.0, 0.3, 1.7), ["loses 2.000 ± 0.010 nats", "mostly (85%) through the network"]),
    "family": (summary(2.0, 1.5, 0.5), ["mostly (75%) through its mean-field family", "rather than the network"]),
    "both": (summary(2.0, 0.9, 1.1), ["shared between the network", "and its mean-field family"]),
    "all of it": (summary(2.0, -0.01, 2.01), ["all of it through the network"]),
    "nothing": (summary(0.01, 0.0, 0.01), ["as good as can be measured"]),
    "noise": (summary(14.0, 0.4, 13.6, se=11.0), ["loses 14 ± 11 nats", "too large to say"]),
    "below zero": (summary(-1.0, -1.0, 0.0), ["The evidence is underestimated"]),
    "no family": (summary(2.0, math.nan, math.nan), ["can't be said", "no posterior of that family was fitted"]),
    "all failed": (summary(math.nan, math.nan, math.nan), ["Every datapoint failed: none has a finite log p(x)"]),
    "one datapoint": (summary(2.0, 0.3, 1.7, se=math.nan), ["loses 2.00 nats"]),
}


@pytest.mark.parametrize(("rows", "expected"), SENTENCES.values(), ids=SENTENCES.keys())
def test_the_verdict_says_how_much_and_whose_fault(rows, expected):
    sentence = verdict(rows, "mean-field")
    assert all(part in sentence for part in expected), sentence
    assert sentence.count(". ") == 0
    assert sentence.endswith(".")


@pytest.mark.parametrize(("num", "says"), [(1, "of one datapoint alone"), (9, "over 9 datapoints only"), (10, None)])
@pytest.mark.parametrize("family", ["mean-field", "none"])
def test_the_verdict_says_that_datapoints_are_few(num, says, family):
    rows = summary(2.0, 0.3, 1.7) | {"log_evidence": {"mean": -20.0, "se": 0.5}}
    sentence = verdict(rows, family, num)
    assert ("datapoint alone" in sentence or "datapoints only" in sentence) == (says is not None)
    assert says is None or says in sentence


@pytest.mark.parametrize("se", [0.1, float("nan")])
def test_the_verdict_blames_evidence_below_a_fitted_posterior(se):
    rows = {
        "log_evidence": {"mean": -2.0, "se": 0.1},
        "inference_gap": {"mean": 2.9, "se": 0.1},
        "approximation_gap": {"mean": -0.5, "se": se},
        "amortization_gap": {"mean": 3.4, "se": 0.1},
    }
    sentence = verdict(rows, "mean-field")
    assert sentence.startswith("The evidence is underestimated: the best fitted posteriors reach 0.50")
    assert "network" not in sentence and sentence.count(". ") == 0
    noise = rows | {"approximation_gap": {"mean": -0.5, "se": 0.4}}
    assert "underestimated" not in verdict(noise, "mean-field")


def test_a_gap_of_nothing_is_no_fault():
    rows = {"log_evidence": {"mean": -2.0, "se": 0.1}, "inference_gap": {"mean": 0.0, "se": 0.0}}
    assert "as good as can be measured" in verdict(rows, "mean-field")


def test_a_gap_to_the_bound_itself_is_no_praise():
    rows = {"log_evidence": {"mean": -2.0, "se": 0.1, "mc_se": math.nan}, "inference_gap": {"mean": 0.0, "se": 0.0}}
    sentence = verdict(rows, "other")
    assert "not known" in sentence and "it is the ELBO once more, \N{MINUS SIGN}2.00 ± 0.10" in sentence


def test_the_verdict_without_a_guide():
    rows = {"log_evidence": {"mean": -20.0, "se": 0.5}, "approximation_gap": {"mean": 0.38, "se": 0.02}}
    sentence = verdict(rows, "none")
    assert "log p(x) is \N{MINUS SIGN}20.00 ± 0.50 nats a datapoint, 0.380 ± 0.020 more than" in sentence
    rows["approximation_gap"]["mean"] = -0.01
    assert "within two standard errors" in verdict(rows, "none")
    rows["approximation_gap"]["mean"] = -1.0
    assert "underestimated" in verdict(rows, "none")
    assert verdict({"log_evidence": rows["log_evidence"]}, "none").endswith("nats a datapoint.")
    assert verdict({}, "none").startswith("Every datapoint failed")


def test_numbers_are_rounded_to_what_their_error_supports():
    assert uncertain(-20.12345, 0.48) == "\N{MINUS SIGN}20.12 ± 0.48"
    assert uncertain(341.4, 27.4) == "341 ± 27"
    assert uncertain(0.5, 0.0) == "0.50 ± 0.00"
    assert uncertain(math.nan, 0.1) == "\N{EN DASH}"
    assert decimals(1e-9) == 4
    assert number(-0.0001) == "0.00"
    assert number(-math.inf) == "\N{MINUS SIGN}\N{INFINITY}"
    assert number(None) == "\N{EN DASH}"


def test_every_column_has_a_name_and_a_meaning():
    for name in ("log_evidence", "elbo_guide", "elbo_mean_field", "inference_gap", "khat", "ess", "elbo_flow"):
        label, meaning = quantity(name)
        assert label
        assert meaning.endswith(".")
    assert quantity("something_new").label == "something new"
