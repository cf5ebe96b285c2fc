"""Grey values to ones and zeros: by a threshold, drawn once, or anew in each epoch. Numbers differ by whole nats.

Grey values are v = 0, ..., v_max; a pixel's probability of being 1 is v / v_max. Random streams are frozen
(RandomState, NEP 19), the same on every machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MODES", "binarised", "redraw"]

MODES = ("grey", "threshold", "static", "dynamic")
"""``grey`` keeps v / v_max; ``threshold`` is v >= v_max / 2; ``static`` is drawn once; ``dynamic`` anew each epoch."""

_ROWS = 4096  # drawn at a time: uniform numbers are eight times as large as the images


def binarised(grey: NDArray[Any], mode: str, *, top: int, seed: int = 0) -> NDArray[np.float32]:
    """Images under a mode of `MODES`.

    Parameters
    ----------
    grey
        Integers (N, ...) from 0 to ``top``.
    mode
        ``dynamic`` gives the probabilities, as ``grey`` does: whoever trains draws from them (`redraw`).
    top
        The largest grey value, v_max.
    seed
        Of ``static``: one uniform number a pixel, in the order of the rows, is compared with v / v_max.

    Returns
    -------
    array
        float32, the shape of ``grey``.
    """
    if mode == "threshold":
        return (grey > (top - 1) // 2).astype(np.float32)  # integers: v >= top / 2
    if mode == "static":
        return _draw(grey, np.random.RandomState(seed), top)
    return grey.astype(np.float32) / np.float32(top)


def redraw(probabilities: NDArray[Any], *, seed: int, epoch: int) -> NDArray[np.float32]:
    """Ones and zeros for an epoch of dynamic binarisation: the same for the same seed and epoch.

    Parameters
    ----------
    probabilities
        Of a one, any shape; ``Dataset.x_train`` where ``Dataset.dynamic``.
    """
    return _draw(probabilities, np.random.RandomState([seed, epoch]), 1)


def _draw(values: NDArray[Any], stream: np.random.RandomState, top: int) -> NDArray[np.float32]:
    drawn = np.empty(values.shape, dtype=np.float32)
    for first in range(0, len(values), _ROWS):
        rows = values[first : first + _ROWS]
        drawn[first : first + _ROWS] = stream.rand(*rows.shape) < rows / np.float64(top)
    return drawn
