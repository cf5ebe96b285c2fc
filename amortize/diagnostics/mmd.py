r"""The kernel two-sample test: whether two sets of draws can be of one distribution.

.. math:: \mathrm{MMD}^2 = E\,k(x, x') + E\,k(y, y') - 2\,E\,k(x, y), \qquad
          k(x, y) = \frac1S \sum_s \frac{s c}{s c + |x - y|^2}

with c the mean squared distance between two rows of both samples together. The estimate is unbiased, so its mean is 0
where the distributions are the same; the p-value is by permutation, exact at any size. Letters: M and K rows, D
numbers, S scales, R permutations. Source: Gretton et al. (2012), "A kernel two-sample test",
https://jmlr.org/papers/v13/gretton12a.html.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError, check_count

__all__ = ["Discrepancy", "mmd_test"]

Array = NDArray[np.float64]

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
FEWEST_ROWS = 2


class Discrepancy(NamedTuple):
    """``squared``, unbiased; the ``noise``, its standard deviation where both are the same; and the ``p_value``."""

    squared: float
    noise: float
    p_value: float


def mmd_test(first: ArrayLike, second: ArrayLike, *, num_permutations: int = 500, seed: int = 0) -> Discrepancy:
    """Squared maximum mean discrepancy of two samples, and how often chance alone makes one as large.

    Parameters
    ----------
    first, second : array_like
        (M, D) and (K, D), independent draws, at least two of each.
    num_permutations
        R; the smallest p-value is 1 / (R + 1).
    seed
        Of the permutations.

    Returns
    -------
    Discrepancy
        NaN where a draw is not finite.

    Raises
    ------
    ArgumentError
        If the samples differ in D or have fewer than two rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> mmd_test(rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 1).p_value < 0.01
    True
    """
    one, two = (np.asarray(value, dtype=np.float64) for value in (first, second))
    shapes = one.ndim == 2 and two.ndim == 2 and one.shape[1:] == two.shape[1:] and one.shape[1] > 0
    if not shapes or min(len(one), len(two)) < FEWEST_ROWS:
        raise ArgumentError(
            f"first, second: expected samples (M, D) and (K, D) of two rows or more, got {one.shape} and {two.shape}"
        )
    check_count("num_permutations", num_permutations)
    rng = np.random.default_rng(check_count("seed", seed, 0))
    both = np.concatenate([one, two])
    if not np.isfinite(both).all():
        return Discrepancy(np.nan, np.nan, np.nan)
    kernel = _kernel(both)
    member = np.zeros((len(both), num_permutations + 1))
    member[: len(one), 0] = 1.0
    for column in range(1, num_permutations + 1):
        member[rng.permutation(len(both))[: len(one)], column] = 1.0
    squared = _squared(kernel, member, len(one), len(two))
    beyond = int((squared[1:] >= squared[0]).sum())
    return Discrepancy(float(squared[0]), float(squared[1:].std()), (beyond + 1) / (num_permutations + 1))


def _kernel(rows: Array) -> Array:
    """Of all pairs (M + K, M + K), 0 on the diagonal, so that no row is a pair with itself."""
    norms = (rows**2).sum(1)
    squares = np.clip(norms[:, None] + norms - 2 * rows @ rows.T, 0.0, None)
    unit = squares.sum() / (len(rows) * (len(rows) - 1))
    unit = unit if unit > 0 else 1.0  # rows that are all alike are at no distance, whatever its unit
    kernel = np.mean([scale * unit / (scale * unit + squares) for scale in SCALES], axis=0)
    np.fill_diagonal(kernel, 0.0)
    return np.asarray(kernel)


def _squared(kernel: Array, member: Array, num: int, other_num: int) -> Array:
    """Of each split of the rows (M + K, R) into a sample of ``num`` and the rest, (R,)."""
    towards = kernel @ member
    inside = (member * towards).sum(0)
    across = towards.sum(0) - inside
    outside = kernel.sum() - inside - 2 * across
    same = inside / (num * (num - 1)) + outside / (other_num * (other_num - 1))
    return np.asarray(same - 2 * across / (num * other_num))
