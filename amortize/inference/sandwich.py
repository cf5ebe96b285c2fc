"""What bidirectional Monte Carlo finds: log p(x) between two sides, and how far they are apart.

Letters: C chains, N datapoints of a data set, S data sets, M = S * N bounded datapoints (simulation-major).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Sandwich"]


@dataclass(frozen=True)
class Sandwich:
    """Log p(x) of M datapoints between two sides, numpy float64 in nats, simulation-major.

    Attributes
    ----------
    lower, lower_se
        (M,) lower bounds in expectation, and their standard errors over chains.
    upper, upper_se
        (M,) upper bounds in expectation where ``exact``, else estimates; standard errors over chains, which share
        draws of the posterior and so don't know of their error.
    exact
        Whether the reversed runs start at exact draws of the posterior, so that ``upper`` is a bound.
    log_weights, reverse_log_weights
        (C, M) of the runs: exp(log_weights) has mean p(x), exp(-reverse_log_weights) has mean 1 / p(x) where
        ``exact``.
    acceptance
        (2, M) mean acceptance of the forward and the reversed runs, NaN for a method without proposals.
    data
        S data sets in the form in which data were given: those simulated, or the real ones.
    interrupted
        Whether Ctrl-C stopped the run: datapoints not reached are NaN.
    method, settings, start, draws, seed, seconds
        How the numbers came about; ``draws`` says where reversed runs start.
    """

    lower: np.ndarray
    lower_se: np.ndarray
    upper: np.ndarray
    upper_se: np.ndarray
    exact: bool
    log_weights: np.ndarray
    reverse_log_weights: np.ndarray
    acceptance: np.ndarray
    data: tuple[Any, ...]
    interrupted: bool
    method: str
    settings: dict[str, Any]
    start: str
    draws: str
    seed: int
    seconds: float

    @property
    def gap(self) -> np.ndarray:
        """(M,) upper - lower, nats. One may be below 0 by chance, their mean isn't in expectation."""
        return np.asarray(self.upper - self.lower)

    @property
    def mean_gap(self) -> float:
        """Mean gap over the datapoints where both sides are finite."""
        gap = self.gap[np.isfinite(self.gap)]
        return float(gap.mean()) if len(gap) else np.nan

    @property
    def gap_se(self) -> float:
        """Standard error of the mean gap over datapoints; NaN for fewer than two."""
        gap = self.gap[np.isfinite(self.gap)]
        return float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else np.nan

    @property
    def table(self) -> pd.DataFrame:
        """A row a datapoint, by simulation and datapoint."""
        index = pd.MultiIndex.from_product(
            [range(len(self.data)), range(len(self.lower) // len(self.data))], names=["simulation", "datapoint"]
        )
        columns = {
            "lower": self.lower,
            "lower_se": self.lower_se,
            "upper": self.upper,
            "upper_se": self.upper_se,
            "gap": self.gap,
        }
        return pd.DataFrame(columns, index=index)

    def __str__(self) -> str:
        good = np.isfinite(self.gap)
        lower, upper = (values[good].mean() if good.any() else np.nan for values in (self.lower, self.upper))
        failed = f" ({int((~good).sum())} more have no finite gap)" if not good.all() else ""
        error = f"+- {self.gap_se:.3f} nats" if np.isfinite(self.gap_se) else "nats, its error unknown (one datapoint)"
        sides = f"{self.method} from the {self.start} and back from {self.draws}: mean log p(x) of {int(good.sum())} "
        if self.exact:
            return (
                f"{sides}simulated datapoints{failed} is between {lower:.3f} and {upper:.3f}, mean gap "
                f"{self.mean_gap:.3f} {error} (both are bounds in expectation)"
            )
        return (
            f"{sides}datapoints{failed} is above {lower:.3f} (a bound in expectation); the run back estimates "
            f"{upper:.3f}, mean gap {self.mean_gap:.3f} {error} (an estimate and no bound: it is only as good as the "
            "draws it begins at)"
        )
