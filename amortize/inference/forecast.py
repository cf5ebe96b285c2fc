r"""How much more a datapoint needs: annealing and importance sampling sized from the variance measured so far.

The variance of annealed log weights falls as one over the number of temperatures, :math:`s^2 = v / T`, as soon as
chains keep up with the path (Neal 2001, section 4). For weights that are near log-normal the error of their log mean
over C chains is

.. math:: \mathrm{se}^2 = (e^{s^2} - 1) / C

so that v, known from one run, says what any (T, C) would give. The cheapest pair is taken, with some headroom, since a
run that meets its target at the first try needs no second look at its own error.

Letters: C chains, N datapoints, T temperatures, S draws. Nats and gradients a datapoint.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = ["FEWEST_CHAINS", "HEADROOM", "Now", "Size", "best_size", "draws_for", "log_variance", "ratio_error"]

HEADROOM = 1.25
"""Share of the squared error by which a run is made larger than the forecast."""
FEWEST_CHAINS = 32
"""Below, a standard error is too uncertain itself (by more than an eighth) to stop at."""
LARGEST_RISE = 16
"""Times by which temperatures grow in one go: the forecast is good only near where it was measured."""
SMALLEST_CHANGE = 8  # chains: no run is made for fewer
CHAIN_STEP = 2 ** (1 / 3)
SLACK = 1.1  # costs this close are alike; then fewer temperatures and more chains are preferred


class Now(NamedTuple):
    """Where a datapoint stands: T, C, the variance of its log weights (nats^2), and whether their tail is too heavy.

    Under a heavy tail more chains are no help that could be relied on, more temperatures are.
    """

    num_temperatures: int
    num_chains: int
    variance: float
    heavy: bool = False

    def cost(self, target_se: float, move_cost: float) -> float:
        """Gradients to come until the target, roughly, wherever they are spent."""
        return HEADROOM * self.variance * self.num_temperatures / target_se**2 * move_cost


class Size(NamedTuple):
    """A run to make: temperatures, chains to draw, and whether they join those that are there."""

    num_temperatures: int
    num_chains: int
    joins: bool


def log_variance(log_weights: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Variance of log weights (C, N) as their upper half and their whole tell it, whichever is less: (N,).

    A left tail does no harm to a mean of weights, and is not counted. Where weights of zero leave neither, it is
    what the standard error ``se`` (N,) stands for.
    """
    with np.errstate(invalid="ignore"):
        centred = log_weights - np.median(log_weights, axis=0)
        upper = 2 * np.square(np.maximum(centred, 0)).mean(0)
        whole = log_weights.var(0, ddof=1)
    known = np.fmin(upper, whole)
    return np.asarray(np.where(np.isfinite(known), known, np.log1p(len(log_weights) * np.square(se))))


def ratio_error(variance: np.ndarray, num_chains: int) -> np.ndarray:
    """Standard error of the log mean of C log-normal weights, (N,)."""
    with np.errstate(over="ignore"):
        return np.asarray(np.sqrt(np.expm1(variance) / num_chains))


def draws_for(se: np.ndarray, num_draws: int, target_se: float) -> np.ndarray:
    """Draws in all, (N,), with which independent weights of this error would meet the target."""
    return np.asarray(np.ceil(HEADROOM * num_draws * np.square(se / target_se)))


def best_size(now: Now, *, target_se: float, move_cost: float, budget: float) -> Size | None:
    """The cheapest run forecast to meet the target, or as much of it as ``budget`` gradients buy.

    Parameters
    ----------
    now
        What was measured.
    target_se
        Nats.
    move_cost
        Gradients a chain takes at one temperature.
    budget
        Gradients that are left.

    Returns
    -------
    Size or None
        None where the budget buys nothing better than what is there.

    Examples
    --------
    >>> best_size(Now(25, 16, 1.0), target_se=0.05, move_cost=4, budget=1e6)
    Size(num_temperatures=200, num_chains=81, joins=False)
    """
    ladder = [now.num_temperatures * 2**k for k in range(now.heavy, int(math.log2(LARGEST_RISE)) + 1)]
    needs = [_needed(now, t, target_se) for t in ladder]
    costs = [t * c * move_cost for t, c in zip(ladder, needs, strict=True)]
    if math.isinf(min(costs)):  # weights that vary this much are outside the forecast: more slowly, then measure again
        return _within(now, ladder, budget / move_cost, most=FEWEST_CHAINS)
    t, needed = next((t, c) for t, c, cost in zip(ladder, needs, costs, strict=True) if cost <= SLACK * min(costs))
    joins = t == now.num_temperatures
    size = Size(t, _on_ladder(needed, SMALLEST_CHANGE if joins else FEWEST_CHAINS), joins)
    if size.num_temperatures * size.num_chains * move_cost <= budget:
        return size
    return _within(now, ladder, budget / move_cost, most=size.num_chains)


def _needed(now: Now, num_temperatures: int, target_se: float) -> float:
    """Chains to run at T temperatures: those of the present plan join what is there, others replace it."""
    variance = now.variance * now.num_temperatures / num_temperatures
    needed = HEADROOM * float(ratio_error(np.array(variance), 1)) ** 2 / target_se**2
    if num_temperatures == now.num_temperatures:
        return max(needed - now.num_chains, SMALLEST_CHANGE, now.num_chains / 2)  # few looks: each is a temptation
    return max(needed, FEWEST_CHAINS)


def _on_ladder(num_chains: float, fewest: int) -> int:
    """Rounded up to one of few numbers, so that many datapoints can be run together."""
    return round(fewest * CHAIN_STEP ** max(0, math.ceil(math.log(num_chains / fewest, CHAIN_STEP) - 1e-9)))


def _within(now: Now, ladder: list[int], moves: float, *, most: int) -> Size | None:
    """What ``moves`` temperatures of one chain are best spent on: the least error forecast."""
    best, least = None, math.inf
    for t in ladder:
        joins = t == now.num_temperatures
        affordable = min(moves / t, most)
        if affordable < SMALLEST_CHANGE:
            break
        chains = int(SMALLEST_CHANGE * CHAIN_STEP ** math.floor(math.log(affordable / SMALLEST_CHANGE, CHAIN_STEP)))
        variance = max(now.variance * now.num_temperatures / t, 1e-12)
        log_error = variance + math.log(-math.expm1(-variance)) - math.log(chains + joins * now.num_chains)
        if log_error < least:
            best, least = Size(t, chains, joins), log_error
    return best
