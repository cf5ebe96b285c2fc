r"""Whether an estimate of log p(x) can be relied on, datapoint by datapoint, and in plain words what to do if not.

Nothing here is new evidence: the numbers that a run leaves behind are held against thresholds, and the first of these
causes that applies is named.

===========  =======================================================================================================
cause        the sign of it
===========  =======================================================================================================
failed       log p(x) is not finite
frozen       mean acceptance below 0.1: nine in ten moves stay where they are, so the run is hardly annealing at all
jump         one step of the path, with a standard deviation of its weight above 1.5 nats, is more than a third of
             the variance of all steps: fewer than exp(-1.5^2) = 1/10 of the draws at a temperature count at the next
             (of ten temperatures or more: of fewer, each step is large)
heavy        k-hat above min(1 - 1 / log10 S, 0.7) with S >= 100 draws [1]_; below 100 draws the prior on k decides
slow         collapsed or short, and the log weights vary so much more than their steps that chains forget less than
             four times on their way: independent steps add variances, frozen ones add standard deviations [2]_
collapsed    an effective sample size below 2, which puts more than half of the weight on one draw
short        the log weights' spread s is so large that exp(s^2 / 2), the number of draws that importance sampling
             takes [3]_, is above the number there are; or a standard error above 0.5 nats, beyond the delta method
few          fewer than 5 draws: a standard error that is off by more than 0.4 of itself, 1 / sqrt(2 (C - 1))
stalled      acceptance below 0.1 at a tenth of the temperatures or more
nonfinite    more than one proposal in a hundred had an energy that was not finite
===========  =======================================================================================================

A datapoint with one of the last two alone is still trusted: rejecting is exact, only wasteful. Spread is measured above
the median, so that weights near zero, which do no harm, do not count. Where the chains would weigh the same if they
stood still (their log ratios differ by less than 0.1 nats over the path), nothing is said of how they move.

Shapes: C draws or chains, N datapoints, T temperatures; float64.

References
----------
.. [1] Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
       https://arxiv.org/abs/1507.02646
.. [2] Neal (2001), Annealed importance sampling, Statistics and Computing 11, section 4.
       https://arxiv.org/abs/physics/9803008
.. [3] Chatterjee, Diaconis (2018), The sample size required in importance sampling, Annals of Applied Probability
       28(2), theorem 1.1: exp(KL), which for log-normal weights is exp(s^2 / 2). https://arxiv.org/abs/1511.01437
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from amortize.diagnostics.measured import Mask, Measured, Run, derive
from amortize.diagnostics.psis import khat_threshold
from amortize.diagnostics.trust_words import sentence

__all__ = ["CAUSES", "Trust", "assess"]

HARMLESS = ("stalled", "nonfinite")

FROZEN_ACCEPTANCE = 0.1
STALLED_SHARE = 0.1
JUMP_SPREAD, JUMP_SHARE, JUMP_STEPS = 1.5, 1 / 3, 10  # a spike of the spread is shared by two steps
KHAT_DRAWS = 100
LEAST_ESS, LEAST_DRAWS = 2.0, 5
LARGEST_SE = 0.5
FORGETTINGS, SLOW_STEPS = 4, 20
NONFINITE_SHARE = 0.01


class Trust(NamedTuple):
    """A verdict on each datapoint.

    Attributes
    ----------
    trusted : ndarray of bool
        (N,) whether the number can be relied on within its standard error.
    causes : ndarray of str
        (N,) one of :data:`CAUSES`, or "" where nothing was found.
    warnings : tuple of str
        A sentence for each cause that was found: on how many datapoints, what it means, what to do.
    """

    trusted: Mask
    causes: NDArray[np.str_]
    warnings: tuple[str, ...]


def assess(measured: Measured) -> Trust:
    """Judge an estimate by the numbers of its own run.

    Parameters
    ----------
    measured
        An ``Estimate`` or ``Evidence``, or anything with their fields.

    Returns
    -------
    Trust
        Nothing found is no proof: chains that all miss the same mode agree with each other.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> log_weights = np.random.default_rng(0).normal(-20.0, [0.3, 6.0], (16, 2))
    >>> numbers = {name: np.full(2, np.nan) for name in ("khat", "acceptance")}
    >>> run = SimpleNamespace(
    ...     log_evidence=np.full(2, -20.0), se=np.array([0.08, np.nan]), ess=np.array([14.7, 1.2]), **numbers,
    ...     num_nonfinite=np.zeros(2, int), log_weights=log_weights, path=None,
    ... )
    >>> trust = assess(run)
    >>> trust.trusted, trust.causes
    (array([ True, False]), array(['', 'collapsed'], dtype='<U9'))
    >>> print(trust.warnings[0])
    1 of 2 datapoints: one of 16 draws carries more than half of the weight, so log p(x) is probably too low, by an
    unknown amount; take more draws (num_draws), start nearer to the posterior, or anneal (am.AIS).
    """
    run = derive(measured)
    causes = np.full(len(run.num_draws), "", dtype=np.array(CAUSES).dtype)
    exact = np.isposinf(np.asarray(measured.ess))
    for name in CAUSES:
        found = _CHECKS[name](run) & ~exact if name != "failed" else _failed(run)
        causes[(causes == "") & found] = name
    trusted = np.isin(causes, ("", *HARMLESS))
    return Trust(trusted, causes, tuple(_warnings(run, causes)))


def _failed(run: Run) -> Mask:
    return np.asarray(~np.isfinite(run.measured.log_evidence))


def _frozen(run: Run) -> Mask:
    return np.asarray((np.asarray(run.measured.acceptance) < FROZEN_ACCEPTANCE) & run.moving)


def _jump(run: Run) -> Mask:
    largest, total = run.steps.max(axis=0, initial=0.0), np.square(run.steps).sum(axis=0)
    alone = np.square(largest) > JUMP_SHARE * total
    return np.asarray((largest > JUMP_SPREAD) & (alone | np.isinf(largest)) & (run.num_steps >= JUMP_STEPS))


def _heavy(run: Run) -> Mask:
    limits = np.array([khat_threshold(int(num)) if num >= KHAT_DRAWS else np.inf for num in run.num_draws])
    return np.asarray((np.asarray(run.measured.khat) > limits) & (run.num_draws >= KHAT_DRAWS))


def _collapsed(run: Run) -> Mask:
    return np.asarray((np.asarray(run.measured.ess) < LEAST_ESS) & (run.num_draws >= LEAST_DRAWS))


def _slow(run: Run) -> Mask:
    # temperatures over which a chain remembers: 1 where steps are independent, T where it is frozen
    memory = np.divide(
        np.square(run.spread),
        np.square(run.steps).sum(axis=0),
        out=np.zeros_like(run.spread),
        where=run.moving & np.isfinite(run.steps).all(axis=0),
    )
    return np.asarray(
        (_collapsed(run) | _short(run)) & (memory * FORGETTINGS > run.num_steps) & (run.num_steps >= SLOW_STEPS)
    )


def _short(run: Run) -> Mask:
    enough = np.sqrt(2 * np.log(np.maximum(run.num_draws, 1.0)))
    uncertain = np.asarray(run.measured.se) > LARGEST_SE
    return np.asarray(((run.spread > enough) | uncertain) & (run.num_draws >= LEAST_DRAWS))


def _few(run: Run) -> Mask:
    return np.asarray(run.num_draws < LEAST_DRAWS)


def _stalled(run: Run) -> Mask:
    return np.asarray((_stalled_steps(run).sum(axis=0) >= np.maximum(STALLED_SHARE * run.num_steps, 2)) & run.moving)


def _stalled_steps(run: Run) -> Mask:
    """(T, N) where moves are hardly accepted."""
    path = run.measured.path
    if path is None:
        return np.zeros(run.steps.shape, dtype=bool)
    return np.asarray(np.asarray(path.acceptance) < FROZEN_ACCEPTANCE)


def _nonfinite(run: Run) -> Mask:
    proposals = run.num_draws * np.maximum(run.num_steps, 1.0)
    return np.asarray(np.asarray(run.measured.num_nonfinite) > NONFINITE_SHARE * proposals)


_CHECKS: dict[str, Callable[[Run], Mask]] = {
    "failed": _failed,
    "frozen": _frozen,
    "jump": _jump,
    "heavy": _heavy,
    "slow": _slow,
    "collapsed": _collapsed,
    "short": _short,
    "few": _few,
    "stalled": _stalled,
    "nonfinite": _nonfinite,
}
CAUSES = tuple(_CHECKS)
"""Causes in the order in which they are looked for."""


def _warnings(run: Run, causes: NDArray[np.str_]) -> list[str]:
    """A sentence for each cause that was found, with what it needs to be concrete."""
    said = []
    for name in CAUSES:
        chosen = causes == name
        if not chosen.any():
            continue
        facts = {
            "num_draws": int(np.median(run.num_draws[chosen])),
            "num_steps": int(np.median(run.num_steps[chosen])),
            "moves": bool(run.num_steps[chosen].any() or np.isfinite(run.measured.acceptance[chosen]).any()),
            "between": _between(run, name, chosen),
            "spread": float(np.nanmedian(run.spread[chosen])) if np.isfinite(run.spread[chosen]).any() else np.nan,
        }
        said.append(sentence(name, int(chosen.sum()), len(causes), facts))
    return said


def _between(run: Run, name: str, chosen: Mask) -> tuple[float, float] | None:
    """Where on the path a jump or a stall is, over the datapoints chosen: the range of beta."""
    path = run.measured.path
    if path is None or name not in ("jump", "stalled"):
        return None
    steps = run.steps[:, chosen]
    marked = steps == steps.max(axis=0) if name == "jump" else _stalled_steps(run)[:, chosen]
    betas = np.broadcast_to(np.asarray(path.betas).reshape(len(path.betas), -1), path.spread.shape)[:, chosen]
    return float(np.nanmin(betas[:-1][marked])), float(np.nanmax(betas[1:][marked]))
