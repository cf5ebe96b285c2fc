"""Importance sampling in as many draws as each datapoint needs: the first stage of a search for a target error.

Heavy-tailed weights look best when their largest have not been drawn: under a guide half as wide as the posterior in
three dimensions, one run of 1000 draws in four has a k-hat below its threshold, and those are low by a third of a nat.
So draws are believed only where their effective number is a good share of them too, and where as many draws again,
judged by themselves, say the same. Under a guide that is too narrow most of those believed at first are not confirmed,
and the others have only been lucky twice (0.6 times as wide as the posterior in two dimensions: 30 % are confirmed, 0.1
nats too low at a standard error of 0.03). Where that shows, no draws of that run are believed.

Letters: S draws, N datapoints.
"""

from __future__ import annotations

import math

import numpy as np

from amortize.diagnostics.psis import khat_threshold
from amortize.inference.forecast import draws_for, log_variance, ratio_error
from amortize.inference.importance import log_ratios, smoothed
from amortize.inference.method import VALUE_COST, Estimate
from amortize.inference.standing import Origin, Standing
from amortize.random import stream_seed

__all__ = ["Drawer"]

LEAST_ESS, CERTAIN_ESS = 0.25, 0.9  # of the draws: to believe them at all, and without a second look
LEAST_CONFIRMED, FEWEST_LOOKS = 0.7, 8  # share of second looks, where there are so many, that say the same
LARGEST_RISE = 16
"""Times by which draws may grow: weights that need more are better annealed."""


class Drawer:
    """Draws of the datapoints of ``origin``; those of one datapoint have all the same weight, whenever they came."""

    def __init__(self, origin: Origin, standing: Standing, *, num_draws: int, target_se: float) -> None:
        self.origin, self.standing, self.num_draws, self.target_se = origin, standing, num_draws, target_se
        self.weights: dict[int, np.ndarray] = {}
        self.num_runs = 0
        label = f" ({origin.label})" if origin.label else ""
        self.used = f"importance sampling{label}"

    def run(self) -> None:
        """Draw for all that are open and can afford it, then more where that is enough."""
        index = self.standing.open(self.origin.places)
        self._draw(self._affordable(index), self.num_draws)
        unsure = self.standing.columns["ess"][index] < CERTAIN_ESS * self.num_draws
        again = self._affordable(index[unsure & self.standing.done[index]])
        self._draw(again, self.num_draws)
        if len(again) >= FEWEST_LOOKS and self.standing.done[again].mean() < LEAST_CONFIRMED:
            self.standing.done[again] = False
            return
        index = self.standing.open(self.origin.places)
        more = np.array([self._more(n) for n in index], dtype=int)
        there = np.array([len(self.weights.get(n, ())) for n in index], dtype=int)
        for count, length in sorted({*zip(more.tolist(), there.tolist(), strict=True)}):
            if count:
                self._draw(index[(more == count) & (there == length)], count)

    def _draw(self, index: np.ndarray, num_draws: int) -> None:
        if not len(index):
            return
        start, data = self.origin.rows(index)
        seed = stream_seed(self.origin.seed, "importance")
        drawn = log_ratios(start, data, num_draws, seed=seed, stream=f"draws-{self.num_runs}")
        self.num_runs += 1
        self.standing.spend(index, VALUE_COST * num_draws)
        for place, n in enumerate(index):
            self.weights[n] = np.concatenate([self.weights.get(n, np.zeros(0)), drawn[:, place]])
        estimate = smoothed(np.stack([self.weights[n] for n in index], 1))
        with np.errstate(invalid="ignore"):
            met = (estimate.se <= self.target_se) & (_believed(estimate) <= self.target_se)
        self.standing.put(index, estimate, self.used, done=met & _sound(estimate) & _sound(smoothed(drawn)))

    def _affordable(self, index: np.ndarray) -> np.ndarray:
        return index[self.standing.left(index) >= VALUE_COST * self.num_draws]

    def _more(self, n: int) -> int:
        """Draws to add, in few sizes; 0 where k-hat is bad, or more would cost too much."""
        there = len(self.weights.get(n, ()))
        if not there or not self.standing.columns["khat"][n] <= khat_threshold(there):
            return 0
        estimate = smoothed(self.weights[n][:, None])
        error = np.maximum(estimate.se, _believed(estimate))
        step = max(1, self.num_draws // 2)
        wanted = max(float(draws_for(error, there, self.target_se)[0]) - there, 1.0)
        most = min(LARGEST_RISE * self.num_draws, float(self.standing.left(np.array([n]))[0]) / VALUE_COST)
        return math.ceil(wanted / step) * step if wanted + step <= most else 0


def _believed(estimate: Estimate) -> np.ndarray:
    """The standard error by the spread of the log weights."""
    return ratio_error(log_variance(estimate.log_weights, estimate.se), len(estimate.log_weights))


def _sound(estimate: Estimate) -> np.ndarray:
    """Whether independent draws look like those of a density that covers the posterior."""
    num = len(estimate.log_weights)
    with np.errstate(invalid="ignore"):
        return np.asarray((estimate.khat <= khat_threshold(num)) & (estimate.ess >= LEAST_ESS * num))
