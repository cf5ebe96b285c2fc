r"""How far draws are from other draws of the same numbers: Wasserstein-1 with its error, number by number.

.. math:: W_1 = \int |F(t) - G(t)| \, dt

with F and G the two empirical distribution functions. It is never 0 for finite samples, so two numbers come with it.
Where the distributions differ, its error is that of a mean: with :math:`h'(t) = \mathrm{sign}(F - G)`,
:math:`\mathrm{var}(W_1) \approx \mathrm{var}_F(h) / n + \mathrm{var}_G(h) / m` (del Barrio, Gine and Matran 1999,
"Central limit theorems for the Wasserstein distance"). Where they are equal, it is about

.. math:: E[W_1] \approx \sqrt{\tfrac 2 \pi \left(\tfrac1n + \tfrac1m\right)} \int \sqrt{F (1 - F)} \, dt,

the noise below which nothing can be told.

Letters: S and K draws, M numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError

__all__ = ["Distance", "wasserstein"]

Array = NDArray[np.float64]


class Distance(NamedTuple):
    """``distance``, its standard error ``se``, and the ``noise`` that equal distributions would give: (M,) each."""

    distance: Array
    se: Array
    noise: Array


def wasserstein(
    first: ArrayLike,
    second: ArrayLike,
    *,
    first_size: ArrayLike | None = None,
    second_size: ArrayLike | None = None,
) -> Distance:
    """Wasserstein-1 between the marginals of two sets of draws, in their own units.

    Parameters
    ----------
    first, second : array_like
        (S, M) and (K, M) draws.
    first_size, second_size : array_like, optional
        (M,) effective numbers of draws, where they are not independent.

    Returns
    -------
    Distance
        (M,) each; NaN for numbers with draws that are not finite.

    Raises
    ------
    ArgumentError
        If the shapes don't fit.

    Examples
    --------
    >>> x = np.linspace(0, 1, 101)[:, None]
    >>> wasserstein(x, x + 2).distance
    array([2.])
    """
    one, two = (np.asarray(value, dtype=np.float64) for value in (first, second))
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1] or not len(one) or not len(two):
        raise ArgumentError(f"first, second: expected (S, M) and (K, M) draws, got {one.shape} and {two.shape}")
    n, m = (
        np.broadcast_to(np.asarray(len(draws) if size is None else size, dtype=np.float64), one.shape[1:])
        for draws, size in ((one, first_size), (two, second_size))
    )
    finite = np.isfinite(one).all(0) & np.isfinite(two).all(0)
    one, two = np.where(finite, one, 0.0), np.where(finite, two, 0.0)
    pooled = np.concatenate([one, two])
    order = pooled.argsort(0, kind="stable")
    points = np.take_along_axis(pooled, order, 0)
    steps = np.diff(points, axis=0)
    of_first = order < len(one)
    F = of_first.cumsum(0)[:-1] / len(one)
    G = (~of_first).cumsum(0)[:-1] / len(two)
    slope = np.sign(F - G)
    height = np.concatenate([np.zeros((1, one.shape[1])), (slope * steps).cumsum(0)])  # h at the points
    variance = _variance(height, of_first) / n + _variance(height, ~of_first) / m
    noise = np.sqrt(2 / np.pi * (1 / n + 1 / m)) * (np.sqrt(F * (1 - F)) * steps).sum(0)
    columns = (np.abs(F - G) * steps).sum(0), np.sqrt(variance), noise
    return Distance(*(np.where(finite, column, np.nan) for column in columns))


def _variance(values: Array, where: NDArray[np.bool_]) -> Array:
    """Of the values at the points of one sample, (M,)."""
    return np.asarray(values.var(0, where=where))
