"""Seeded splits: random orders of rows in which every stretch holds each class in its share.

An order decides everything: its first rows train, the next validate, the last test; fewer rows are its first ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.errors import DataError

__all__ = ["Index", "hold_out", "is_labels", "random_order"]

Index = NDArray[np.int64]


def random_order(num: int, seed: int, labels: NDArray[Any] | None = None) -> Index:
    """A random order of ``num`` rows; with labels, every stretch holds each class in its share, within a few rows.

    Parameters
    ----------
    num
        Rows.
    seed
        Of the order; the stream is frozen (NumPy's RandomState, NEP 19), the same on every machine.
    labels
        Classes (num,), integers. Row k of a class of n stands at the share (k + U) / n of the order, k random and U
        uniform: systematic sampling in each class.

    Examples
    --------
    >>> order = random_order(10, seed=0, labels=np.array([0] * 8 + [1] * 2))
    >>> sorted(order.tolist()) == list(range(10)), int((order[:5] >= 8).sum())
    (True, 1)
    """
    stream = np.random.RandomState(seed)
    order: Index = stream.permutation(num)
    if labels is None:
        return order
    place = stream.rand(num)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        place[members] = (np.arange(len(members)) + place[members]) / len(members)
    return order[np.argsort(place, kind="stable")]


def hold_out(order: Index, share: float, *, what: str) -> tuple[Index, Index]:
    """The first rows of an order, and the last ``share`` of them (at least one); each part has at least one row.

    Raises
    ------
    DataError
        There are too few rows for two parts; ``what`` says of what.
    """
    num = max(1, round(share * len(order)))
    if num >= len(order):
        raise DataError(f"{what}: {len(order)} datapoints are too few to keep a share of {share:g} of them back.")
    return order[: len(order) - num], order[len(order) - num :]


def is_labels(y: NDArray[Any] | None) -> bool:
    """Whether a response is classes to stratify by: integers, each at least twice."""
    if y is None or y.dtype.kind not in "iub" or y.ndim != 1 or len(y) == 0:
        return False
    return bool(np.unique(y, return_counts=True)[1].min() >= 2)
