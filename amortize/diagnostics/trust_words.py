"""What :mod:`amortize.diagnostics.trust` says: each cause in plain words, with a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["sentence"]

_LEAST_FACTOR = 2.0

_WORDS = {
    "failed": """log p(x) is not finite; look at these datapoints and at the model's supports: program.check(x) names
        rows that are infinite or NaN""",
    "frozen": """the chains are frozen, for fewer than one move in ten passes the Metropolis test, so that log p(x)
        rests on {num_draws} draws of the start alone; take smaller steps (pilot=True finds them, or step_size)""",
    "jump": """one step of the annealing path{where} makes most of the weights' variance, and chains may not get across
        it; place temperatures there (schedule="pilot", or more of them), or start nearer to the posterior""",
    "heavy": """k-hat is above its threshold: the weights' tail is too heavy for log p(x) or its standard error to be
        relied on; {more}""",
    "slow": """chains move too little between temperatures to forget where they were, so log p(x) is probably too low
        (its log weights spread by {spread:.1f} nats); take larger steps (pilot=True finds them), more leapfrog steps
        (am.HMC(num_leapfrog=...)), or more temperatures""",
    "collapsed": """one of {num_draws} draws carries more than half of the weight, so log p(x) is probably too low, by
        an unknown amount; {more}""",
    "short": """the weights vary too much for {num_draws} of them to settle (log weights spread by {spread:.1f} nats),
        so that neither log p(x) nor its standard error has; {more}""",
    "few": "{num_draws} draws are too few to tell a good run from a bad one; take 5 or more ({option})",
    "stalled": """fewer than one move in ten is accepted at some temperatures{where}, which is exact but a waste;
        smaller steps there would anneal better (pilot=True finds them for each temperature)""",
    "nonfinite": """more than one proposal in a hundred had an energy that was not finite, and was rejected; take
        smaller steps, or look at how the model's parameters leave their supports""",
}


def sentence(cause: str, count: int, total: int, facts: Mapping[str, Any]) -> str:
    """One warning.

    Parameters
    ----------
    cause
        One of ``trust.CAUSES``.
    count, total
        Datapoints that have it, and all.
    facts
        Of the datapoints that have it: ``num_draws`` and ``num_steps`` (medians; 0 steps where no path is known),
        ``moves`` (whether draws are moved along one), ``between`` (range of beta, or None), ``spread`` of the log
        weights in nats.

    Examples
    --------
    >>> facts = {"num_draws": 3, "num_steps": 100, "moves": True, "between": None, "spread": 0.2}
    >>> sentence("few", 1, 1, facts)
    '1 of 1 datapoint: 3 draws are too few to tell a good run from a bad one; take 5 or more (num_chains).'
    """
    text = " ".join(_WORDS[cause].split()).format(
        num_draws=facts["num_draws"],
        spread=facts["spread"],
        where="" if facts["between"] is None else " (beta from {:.2g} to {:.2g})".format(*facts["between"]),
        option="num_chains" if facts["moves"] else "num_draws",
        more=_more(facts),
    )
    return f"{count} of {total} datapoint{'s' if total != 1 else ''}: {text}."


def _more(facts: Mapping[str, Any]) -> str:
    """More of the same, with a figure: the variance of annealed log weights falls as one over the temperatures."""
    if not facts["moves"]:
        return "take more draws (num_draws), start nearer to the posterior, or anneal (am.AIS)"
    nearer = "start nearer to the posterior (a guide, a local posterior)"
    if not facts["num_steps"]:
        return f"anneal more slowly (more temperatures; am.Auto: larger max_gradients), or {nearer}"
    square = facts["spread"] ** 2 if math.isfinite(facts["spread"]) else 0.0
    factor = max(square, _LEAST_FACTOR)  # to a spread of one nat
    return f"anneal more slowly (about {_rounded(factor * facts['num_steps'])} temperatures), or {nearer}"


def _rounded(value: float) -> str:
    """One significant digit, upward: a forecast this rough deserves no more."""
    unit = 10 ** math.floor(math.log10(value))
    return str(math.ceil(value / unit) * unit)
