"""Importance sampling in as many draws as each datapoint needs: the first stage of a search for a target error.

Letters: S draws, N datapoints.
"""

from __future__ import annotations

import numpy as np

from amortize.diagnostics.psis import khat_threshold
from amortize.inference.forecast import draws_for
from amortize.inference.importance import log_ratios, smoothed
from amortize.inference.method import VALUE_COST, Estimate
from amortize.inference.standing import Origin, Standing
from amortize.random import stream_seed

__all__ = ["Drawer"]

LARGEST_RISE = 16
"""Times by which draws may grow: weights that need more are better annealed."""


class Drawer:
    """Draws of the datapoints of ``origin``; those of one datapoint have all the same weight, whenever they came."""

    def __init__(self, origin: Origin, standing: Standing, *, num_draws: int, target_se: float) -> None:
        self.origin, self.standing, self.num_draws, self.target_se = origin, standing, num_draws, target_se
        self.weights: dict[int, np.ndarray] = {}
        label = f" ({origin.label})" if origin.label else ""
        self.used = f"importance sampling{label}"

    def run(self) -> None:
        """Draw for all that are open and can afford it, then more where that is enough."""
        index = self.standing.open(self.origin.index)
        self._draw(index[self.standing.left(index) >= VALUE_COST * self.num_draws], self.num_draws)
        index = self.standing.open(self.origin.index)
        more = self._more(index)
        for count in np.unique(more[more > 0]):
            self._draw(index[more == count], int(count))

    def _draw(self, index: np.ndarray, num_draws: int) -> None:
        if not len(index):
            return
        start, data = self.origin.rows(index)
        seed = stream_seed(self.origin.seed, "importance")
        drawn = log_ratios(start, data, num_draws, seed=seed, stream=f"draws-{bool(self.weights)}-{num_draws}")
        self.standing.spend(index, VALUE_COST * num_draws)
        for place, n in enumerate(index):
            self.weights[n] = np.concatenate([self.weights.get(n, np.zeros(0)), drawn[:, place]])
        estimate = smoothed(np.stack([self.weights[n] for n in index], 1))
        done = self._good(estimate) & (estimate.se <= self.target_se)
        self.standing.put(index, estimate, self.used, done=done)

    def _good(self, estimate: Estimate) -> np.ndarray:
        return np.asarray(estimate.khat <= khat_threshold(len(estimate.log_weights)))

    def _more(self, index: np.ndarray) -> np.ndarray:
        """Draws to add for each, in few sizes; 0 where k-hat is bad, or more would cost too much."""
        khat, se = (self.standing.columns[name][index] for name in ("khat", "se"))
        drawn = np.array([n in self.weights for n in index], dtype=bool)
        usable = drawn & (khat <= khat_threshold(self.num_draws)) & np.isfinite(se)
        step = max(1, self.num_draws // 2)
        wanted = draws_for(np.where(usable, se, np.inf), self.num_draws, self.target_se) - self.num_draws
        fits = (wanted <= (LARGEST_RISE - 1) * self.num_draws) & (
            wanted * VALUE_COST + step <= self.standing.left(index)
        )
        return np.where(fits, np.ceil(np.where(fits, wanted, 0) / step) * step, 0).astype(int)
