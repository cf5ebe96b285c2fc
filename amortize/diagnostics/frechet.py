r"""The Frechet distance of two sets of features: how far apart two samples are, as Gaussians of the same moments.

.. math:: d^2 = |m_1 - m_2|^2 + \mathrm{tr}\left(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2}\right)

which is the squared Wasserstein distance of order 2 of N(m_1, S_1) and N(m_2, S_2), exact for Gaussians. In features
of a network that tells images apart it is the "FID" of generated images; it can be compared only between samples
measured in the same features. Moments of a finite sample make it larger, by more the fewer rows and the more features
there are: compare samples of one size, and see them beside what two halves of the data are apart.

The standard error is that of the delta method. Its influence of a row x of the first sample is

.. math:: 2 (m_1 - m_2)^\top (x - m_1) + (x - m_1)^\top (I - T) (x - m_1), \qquad
          T = S_1^{-1/2} (S_1^{1/2} S_2 S_1^{1/2})^{1/2} S_1^{-1/2}

less its mean, with T the optimal map between the centred Gaussians; it vanishes where the distributions are the same,
and knows nothing of the bias. Letters: M and K rows, F features. Sources: Dowson and Landau (1982), "The Frechet
distance between multivariate normal distributions", https://doi.org/10.1016/0047-259X(82)90077-X; Heusel et al. (2017),
"GANs trained by a two time-scale update rule converge to a local Nash equilibrium", https://arxiv.org/abs/1706.08500;
Rippl et al. (2016), "Limit laws of the empirical Wasserstein distance: Gaussian distributions",
https://arxiv.org/abs/1507.04090.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError

__all__ = ["FrechetDistance", "frechet_distance", "frechet_of_moments"]

Array = NDArray[np.float64]

FEWEST_ROWS = 2
FLAT = 1e-12
"""Share of the largest variance below which a direction has none."""
SKEW = 1e-6
"""How far, in units of the largest entry, a covariance may be from symmetric."""


class FrechetDistance(NamedTuple):
    """``squared``, in the square of the features' unit, and its standard error ``se`` by the number of rows."""

    squared: float
    se: float


def frechet_distance(first: ArrayLike, second: ArrayLike) -> FrechetDistance:
    """The squared Frechet distance of two sets of features.

    Parameters
    ----------
    first, second : array_like
        (M, F) and (K, F), independent rows, at least two of each.

    Returns
    -------
    FrechetDistance
        NaN where a feature is not finite.

    Raises
    ------
    ArgumentError
        If the sets differ in F or have fewer than two rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> features = rng.normal(size=(500, 3))
    >>> print(f"{frechet_distance(features, features + 2).squared:.6f}")
    12.000000
    """
    one, two = (np.asarray(value, dtype=np.float64) for value in (first, second))
    shapes = one.ndim == 2 and two.ndim == 2 and one.shape[1:] == two.shape[1:] and one.shape[1] > 0
    if not shapes or min(len(one), len(two)) < FEWEST_ROWS:
        raise ArgumentError(
            f"first, second: expected features (M, F) and (K, F) of two rows or more, got {one.shape} and {two.shape}"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        return FrechetDistance(np.nan, np.nan)
    means = one.mean(0), two.mean(0)
    covariances = [np.cov(rows, rowvar=False).reshape(rows.shape[1], -1) for rows in (one, two)]
    squared = frechet_of_moments(means[0], covariances[0], means[1], covariances[1])
    variances = [
        _influence(rows, mean - other, _map(covariance, target)).var(ddof=1) / len(rows)
        for rows, mean, other, covariance, target in (
            (one, *means, *covariances),
            (two, *reversed(means), *reversed(covariances)),
        )
    ]
    return FrechetDistance(squared, float(np.sqrt(sum(variances))))


def frechet_of_moments(
    first_mean: ArrayLike, first_covariance: ArrayLike, second_mean: ArrayLike, second_covariance: ArrayLike
) -> float:
    """The squared Frechet distance of two Gaussians.

    Parameters
    ----------
    first_mean, second_mean : array_like
        (F,) each.
    first_covariance, second_covariance : array_like
        (F, F) each; they may be singular.

    Raises
    ------
    ArgumentError
        If shapes differ, a number is not finite, or a covariance is not symmetric.

    Examples
    --------
    >>> frechet_of_moments([0.0], [[1.0]], [3.0], [[4.0]])
    10.0
    """
    means = [np.asarray(value, dtype=np.float64) for value in (first_mean, second_mean)]
    covariances = [np.asarray(value, dtype=np.float64) for value in (first_covariance, second_covariance)]
    num = means[0].shape
    if len(num) != 1 or means[1].shape != num or any(value.shape != num * 2 for value in covariances):
        shapes = [value.shape for value in (*means, *covariances)]
        raise ArgumentError(f"moments: expected two means (F,) and two covariances (F, F), got shapes {shapes}")
    for covariance in covariances:
        fine = np.isfinite(covariance).all() and np.allclose(
            covariance, covariance.T, rtol=0, atol=SKEW * np.abs(covariance).max(initial=0)
        )
        if not fine:
            raise ArgumentError("covariance: expected a symmetric matrix of finite numbers")
    if not all(np.isfinite(mean).all() for mean in means):
        raise ArgumentError("mean: expected finite numbers")
    root = _power(covariances[0], 0.5)
    between = np.linalg.eigvalsh(root @ covariances[1] @ root)
    spread = sum(np.trace(covariance) for covariance in covariances) - 2 * np.sqrt(np.clip(between, 0, None)).sum()
    shift = np.square(means[0] - means[1]).sum()
    return float(shift + max(spread, 0.0))  # what rounding leaves of a zero may be below it


def _power(covariance: Array, exponent: float) -> Array:
    """Of a symmetric matrix, on the directions in which it has any variance."""
    values, axes = np.linalg.eigh(covariance)
    kept = values > FLAT * max(values[-1], 0.0)
    return np.asarray((axes[:, kept] * values[kept] ** exponent) @ axes[:, kept].T)


def _map(covariance: Array, target: Array) -> Array:
    """T (F, F), from the Gaussian of the one covariance to that of the other."""
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    return np.asarray(inverse @ _power(root @ target @ root, 0.5) @ inverse)


def _influence(rows: Array, shift: Array, transport: Array) -> Array:
    """Of each row on the squared distance, but for a constant, (M,)."""
    centred = rows - rows.mean(0)
    return np.asarray(2 * centred @ shift + np.square(centred).sum(1) - ((centred @ transport) * centred).sum(1))
