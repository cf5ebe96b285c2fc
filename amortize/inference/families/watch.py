"""The way of a fit, as it is going: looks at the ELBO of each datapoint, and several fits one after the other.

Letters: N datapoints, K looks.
"""

from __future__ import annotations

import time

import numpy as np
from torch import Tensor

from amortize.inference.families.family import Trace

__all__ = ["Watch", "chained"]


class Watch:
    """Looks at N datapoints; those that have stopped keep their last value."""

    def __init__(self, num: int) -> None:
        self._begin, self._latest = time.perf_counter(), np.full(num, np.nan)
        self._looks: list[tuple[float, int, np.ndarray]] = []
        self._num_gradients = 0

    def look(self, pool: Tensor, elbo: Tensor, num_gradients: int) -> None:
        """After ``num_gradients`` more a datapoint, ``elbo`` (n,) nats of the datapoints ``pool`` (n,)."""
        self._num_gradients += num_gradients
        self._latest[pool.cpu().numpy()] = elbo.double().cpu().numpy()
        self._looks.append((time.perf_counter() - self._begin, self._num_gradients, self._latest.copy()))

    def trace(self) -> Trace:
        """All looks."""
        if not self._looks:
            return Trace(np.zeros(0), np.zeros(0), np.zeros((0, len(self._latest))))
        seconds, num_gradients, elbo = zip(*self._looks, strict=True)
        return Trace(np.array(seconds), np.array(num_gradients, dtype=float), np.stack(elbo))


def chained(first: Trace, second: Trace) -> Trace:
    """The trace of two fits of the same datapoints, one after the other."""
    if not len(first.seconds):
        return second
    return Trace(
        np.concatenate([first.seconds, first.seconds[-1] + second.seconds]),
        np.concatenate([first.num_gradients, first.num_gradients[-1] + second.num_gradients]),
        np.concatenate([first.elbo, second.elbo]),
    )
