"""Where each datapoint stands while a method spends on some of them and not on others.

Letters: N datapoints, C weights of a datapoint.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from amortize.inference.method import Estimate
from amortize.inference.starts import Start
from amortize.program.data import Data

__all__ = ["Origin", "Standing"]

COLUMNS = ("log_evidence", "se", "ess", "khat", "acceptance", "num_nonfinite")


class Origin(NamedTuple):
    """Where runs of some datapoints start from.

    ``start`` and ``data`` are of the datapoints ``places`` (ascending), ``label`` is how people read it.
    """

    start: Start
    data: Data
    places: np.ndarray
    label: str
    seed: int

    def rows(self, index: np.ndarray) -> tuple[Start, Data]:
        """Start and data of some of its datapoints."""
        where = torch.from_numpy(np.searchsorted(self.places, index)).to(self.data.index.device)
        return self.start.rows(where), self.data.rows(where)


class Standing:
    """The last estimate of each of N datapoints, what it has cost so far, and which still need work."""

    def __init__(self, num: int, max_gradients: float) -> None:
        self.max_gradients = max_gradients
        self.columns: dict[str, np.ndarray] = {name: np.full(num, np.nan) for name in (*COLUMNS, "lower")}
        self.columns["num_nonfinite"] = np.zeros(num, dtype=int)
        self.used = np.full(num, "none", dtype=object)
        self.num_gradients = np.zeros(num)
        self.log_weights: list[np.ndarray] = [np.full(1, np.nan)] * num
        self.done = np.zeros(num, dtype=bool)

    def open(self, index: np.ndarray) -> np.ndarray:
        """Those of some datapoints that still need work."""
        still: np.ndarray = index[~self.done[index]]
        return still

    def left(self, index: np.ndarray) -> np.ndarray:
        """Gradients that some datapoints may still take."""
        return np.asarray(self.max_gradients - self.num_gradients[index])

    def spend(self, index: np.ndarray, num_gradients: float | np.ndarray) -> None:
        """Count what some datapoints have cost."""
        self.num_gradients[index] += num_gradients

    def put(self, index: np.ndarray, estimate: Estimate, used: str, *, done: np.ndarray) -> None:
        """Replace what is known of some datapoints; ``spend`` counts the costs."""
        for name in COLUMNS:
            self.columns[name][index] = getattr(estimate, name)
        self.columns["lower"][index] = estimate.lower
        self.used[index] = used
        for place, n in enumerate(index):
            self.log_weights[n] = estimate.log_weights[:, place]
        self.done[index] = done

    def estimate(self, name: str) -> Estimate:
        """All of it, weights padded by NaN."""
        weights = np.full((max(map(len, self.log_weights)), len(self.done)), np.nan)
        for n, column in enumerate(self.log_weights):
            weights[: len(column), n] = column
        columns: dict[str, Any] = {**self.columns, "num_gradients": self.num_gradients, "used": self.used}
        return Estimate(**columns, log_weights=weights, upper=None, name=name)
