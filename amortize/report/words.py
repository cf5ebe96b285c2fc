"""The page's words: names of quantities, numbers with their errors, the verdict and what to watch out for.

One vocabulary for the page, the figures and ``report.json``; all log densities in nats per datapoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = [
    "FEW",
    "WITHOUT_ELBO",
    "Quantity",
    "cause_words",
    "count",
    "number",
    "percent",
    "quantity",
    "uncertain",
    "verdict",
]

WITHOUT_ELBO = ("none", "point")
"""What ``guide_family`` is where there is no guide, or one without a density."""
FEW = 10
"""Datapoints below which a mean over them is called uncertain."""
_MINUS = "\N{MINUS SIGN}"
_NOTHING = "\N{EN DASH}"
_NEGLIGIBLE = 0.1  # nats a datapoint
_ROUNDING = 1e-3  # nats that sums in float32 may be apart
_MOST = 2 / 3  # a share above this is "mostly"


class Quantity(NamedTuple):
    """How a column of the ledger is named and explained."""

    label: str
    meaning: str


_QUANTITIES = {
    "log_evidence": Quantity("log p(x)", "The evidence: the most that the ELBO of any posterior could reach."),
    "elbo_guide": Quantity("ELBO of the guide", "What training maximises: log p(x) less all that the guide loses."),
    "elbo_mean_field": Quantity(
        "ELBO, best mean-field", "Gaussian with independent coordinates, fitted to each datapoint by itself."
    ),
    "elbo_full_covariance": Quantity(
        "ELBO, best full covariance", "Gaussian with any covariance, fitted to each datapoint by itself."
    ),
    "elbo_low_rank": Quantity(
        "ELBO, best low-rank", "Gaussian correlated along a few directions, fitted to each datapoint by itself."
    ),
    "elbo_laplace": Quantity("ELBO, Laplace", "Gaussian at the mode of each datapoint, as wide as the curvature says."),
    "elbo_mixture": Quantity("ELBO, best mixture", "Mixture of Gaussians, fitted to each datapoint by itself."),
    "elbo_annealed": Quantity(
        "Bound, best annealed", "Ends of a trained annealing chain for each datapoint; the bound is over whole chains."
    ),
    **{
        f"elbo_{name}": Quantity(
            f"ELBO, best {words}", f"Normalizing flow ({words}), fitted to each datapoint by itself."
        )
        for name, words in {"flow": "flow", "iaf": "IAF", "coupling": "coupling flow", "spline": "spline flow"}.items()
    },
    "inference_gap": Quantity("Inference gap", "log p(x) less the ELBO of the guide: all that the guide loses."),
    "approximation_gap": Quantity(
        "Approximation gap",
        "log p(x) less the best ELBO in the guide's family: lost even by a perfect network.",
    ),
    "amortization_gap": Quantity(
        "Amortization gap",
        "Best ELBO in the family less the guide's: lost because one network serves all.",
    ),
    "khat": Quantity("k-hat", "Tail of the guide's importance weights; below the threshold is good."),
    "ess": Quantity("Effective sample size", "How many of the guide's importance draws count, after weighting."),
}
_WITHOUT_GUIDE = {
    "approximation_gap": Quantity(
        "Approximation gap",
        "log p(x) less the best ELBO fitted to the datapoint by itself: what the fitted families lose.",
    ),
}


def quantity(name: str, *, guide: bool = True) -> Quantity:
    """Label and one-line meaning of a column of the ledger, with a guide or without.

    Examples
    --------
    >>> quantity("elbo_low_rank").label
    'ELBO, best low-rank'
    """
    if not guide and name in _WITHOUT_GUIDE:
        return _WITHOUT_GUIDE[name]
    if name in _QUANTITIES:
        return _QUANTITIES[name]
    if name.startswith("elbo_"):
        family = name.removeprefix("elbo_").replace("_", " ")
        return Quantity(
            f"ELBO, best {family}", f"Posterior of the family {family}, fitted to each datapoint by itself."
        )
    return Quantity(name.replace("_", " "), "")


_CAUSES = {
    "evidence-too-low": "the evidence is too low",
    "unmeasured": "log p(x) was not measured",
    "nothing": "nothing to mend",
    "undecided": "too noisy to say",
    "few-datapoints": "a few datapoints",
    "unsplit": "not split",
    "unusable": "no usable numbers",
    "no-guide": "there is no guide",
    "point-guide": "the guide is a point",
    "family": "the guide's family",
    "family-and-encoder": "family and encoder both",
    "encoder": "the encoder",
}


def cause_words(cause: str) -> str:
    """A cause in words.

    Examples
    --------
    >>> cause_words("small-encoder"), cause_words("encoder")
    ('small encoder', 'the encoder')
    """
    return _CAUSES.get(cause, cause.replace("-", " "))


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of decimals; a dash for one that isn't there.

    Examples
    --------
    >>> number(3.14159), number(12000, 0), number(float("inf"))
    ('3.14', '12000', '∞')
    """
    if value is None or math.isnan(value):
        return _NOTHING
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else f"{_MINUS}\N{INFINITY}"
    rounded = f"{value:.{digits}f}"
    return rounded.replace("-", _MINUS if float(rounded) else "")


def count(value: float | None) -> str:
    """A whole number in groups of three digits.

    Examples
    --------
    >>> count(1234567.8).split()
    ['1', '234', '568']
    """
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def decimals(se: float | None) -> int:
    """Decimals that show two significant digits of a standard error, between 0 and 4."""
    if se is None or not math.isfinite(se) or se <= 0:
        return 2
    return min(4, max(0, 1 - math.floor(math.log10(se))))


def uncertain(mean: float | None, se: float | None) -> str:
    """A mean with its standard error, rounded to what the error supports.

    Examples
    --------
    >>> uncertain(1.23456, 0.0789)
    '1.235 ± 0.079'
    """
    if mean is None or not math.isfinite(mean):
        return number(mean)
    digits = decimals(se)
    if se is None or not math.isfinite(se):
        return number(mean, digits)
    return f"{number(mean, digits)} \N{PLUS-MINUS SIGN} {number(se, digits)}"


def percent(share: float) -> str:
    """A share as a whole percentage.

    Examples
    --------
    >>> percent(0.835)
    '84%'
    """
    return f"{100 * share:.0f}%"


def verdict(summary: Mapping[str, Mapping[str, Any]], family: str, num: int | None = None) -> str:
    """One sentence: how much the guide loses, and whose fault it is.

    Parameters
    ----------
    summary : mapping
        By quantity, its "mean" and "se" in nats.
    family : str
        The guide's family; "" or "other" if it has no name, "none" if there is no guide, "point" if it is one.
    num : int, optional
        How many datapoints the means are over, to say so where they are few.
    """
    if family in WITHOUT_ELBO:
        return _without_elbo(summary, num, point=family == "point")
    gap, network, form = (
        _mean_and_se(summary, f"{name}_gap") for name in ("inference", "amortization", "approximation")
    )
    name = f"its {family} family" if family not in ("", "other") else "its family"
    if not math.isfinite(gap[0]):
        which = "log p(x)" if not math.isfinite(_mean_and_se(summary, "log_evidence")[0]) else "log p(x) and ELBO both"
        return f"Every datapoint failed: none has a finite {which}, so how much the guide loses can't be said."
    if abs(gap[0]) < _ROUNDING and not _has_error(summary):
        bound = uncertain(*_mean_and_se(summary, "log_evidence"))
        return (
            "What the guide loses is not known: log p(x) was measured from its own draws, which are all alike, so that "
            f"it is the ELBO once more, {bound} nats a datapoint{_over(num)}."
        )
    loss = f"{uncertain(*gap)} nats a datapoint{_over(num)}"
    if gap[0] < -2 * gap[1]:
        return f"The evidence is underestimated: the guide seems to lose {loss}, and no ELBO can be above log p(x)."
    if form[0] < -_NEGLIGIBLE and not form[0] >= -2 * form[1]:  # an error that is unknown excuses nothing
        more = uncertain(-form[0], form[1])
        return (
            f"The evidence is underestimated: the best fitted posteriors reach {more} nats a datapoint more, and no "
            f"ELBO can be above log p(x), so the guide loses more than the {uncertain(*gap)} measured{_over(num)}."
        )
    if gap[0] <= 2 * gap[1] and 2 * gap[1] > _NEGLIGIBLE:  # noise that could hide a gap worth closing
        return f"The guide loses {loss}, an error too large to say whether that is anything."
    if gap[0] <= 2 * gap[1]:
        return f"The guide is as good as can be measured here: it loses {loss}, within two standard errors of 0."
    if not math.isfinite(network[0]):
        return (
            f"The guide loses {loss}; whether the network or {name} is at fault can't be said, because no "
            "posterior of that family was fitted to each datapoint."
        )
    parts = [
        (network[0], "the network", f"amortization, {uncertain(*network)}"),
        (form[0], name, f"approximation, {uncertain(*form)}"),
    ]
    return f"The guide loses {loss}, {_blame(parts, gap[0])}."


def _without_elbo(summary: Mapping[str, Mapping[str, Any]], num: int | None, *, point: bool) -> str:
    evidence, gap = (_mean_and_se(summary, name) for name in ("log_evidence", "approximation_gap"))
    if not math.isfinite(evidence[0]):
        return "Every datapoint failed: none has a finite log p(x), and there is no guide to judge."
    why = "The guide is a point, which has no ELBO, so" if point else "Without a guide"
    known = f"{why} the evidence stands alone: log p(x) is {uncertain(*evidence)} nats a datapoint{_over(num)}"
    if not math.isfinite(gap[0]):
        return f"{known}."
    if gap[0] < -2 * gap[1]:
        more = uncertain(-gap[0], gap[1])
        return f"{known}; it is underestimated, for the best fitted posteriors seem to reach {more} more."
    if gap[0] < 2 * gap[1]:
        return f"{known}, which the best fitted posteriors reach within two standard errors ({uncertain(*gap)})."
    return f"{known}, {uncertain(*gap)} more than the best fitted posteriors reach."


def _over(num: int | None) -> str:
    """What a mean is over, where they are few."""
    if num == 1:
        return " (of one datapoint alone, so the standard error is unknown)"
    return f" (over {num} datapoints only, which is uncertain)" if num is not None and num < FEW else ""


def _blame(parts: Sequence[tuple[float, str, str]], total: float) -> str:
    (most, who, detail), (_, other, other_detail) = sorted(parts, key=lambda part: -part[0])
    if most < _MOST * total:
        return f"shared between {who} ({detail}) and {other} ({other_detail})"
    share = f"mostly ({percent(most / total)})" if most < 0.99 * total else "all of it"
    return f"{share} through {who} ({detail}) rather than {other} ({other_detail})"


def _has_error(summary: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the Monte Carlo error of the evidence is known."""
    error = summary.get("log_evidence", {}).get("mc_se", 0.0)
    return error is not None and math.isfinite(error)


def _mean_and_se(summary: Mapping[str, Mapping[str, Any]], name: str) -> tuple[float, float]:
    row = summary.get(name, {})
    return float(row.get("mean", math.nan)), float(row.get("se", math.nan))
