r"""Pareto-smoothed importance sampling, all datapoints at once.

The M largest weights of a datapoint, less the largest weight below them, are fitted by a generalised Pareto
distribution

.. math:: p(y) = \tfrac1\sigma (1 + k y / \sigma)^{-1/k - 1}

with the quasi-Bayesian estimator of Zhang and Stephens and a weak prior on k (ten draws at 1/2), and replaced
by its expected order statistics, cut at the largest raw weight. k-hat counts moments: the weights have finite
variance for k < 1/2 and a finite mean for k < 1. The conventions are those of ``arviz_stats.psislw`` with
``r_eff=1``, except for two: log weights come in with their own sign, and M is rounded up, as in Vehtari et
al. and R's loo, not down.

Shapes: S draws, N datapoints, M draws in the tail.

References
----------
.. [1] Vehtari, Simpson, Gelman, Yao, Gabry (2024), Pareto smoothed importance sampling, JMLR 25(72).
       https://arxiv.org/abs/1507.02646
.. [2] Zhang, Stephens (2009), A new and efficient estimation method for the generalized Pareto distribution,
       Technometrics 51(3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.diagnostics.weights import checked_log_weights
from amortize.errors import ArgumentError

__all__ = ["MIN_TAIL", "PSIS", "khat_threshold", "psis", "tail_length"]

MIN_TAIL = 5
"""Fewest draws above the threshold for which a tail is fitted."""

_PRIOR_DRAWS, _PRIOR_K = 10, 0.5
_PRIOR_SCALE = 3.0
_ROUNDING = 1e-6  # of the largest |log weight|: a few units in the last place of single precision
_BLOCK_VALUES = 1 << 22  # float64 values in the largest temporary array, 32 MiB

Array = NDArray[np.float64]


class PSIS(NamedTuple):
    """Pareto-smoothed log weights.

    Attributes
    ----------
    log_weights : ndarray
        (S, N) smoothed log weights in nats, on the scale of the raw ones (not normalised), in their order.
    khat : ndarray
        (N,) estimated shape of the weights' right tail; see :func:`psis`.
    """

    log_weights: Array
    khat: Array


def khat_threshold(num_draws: int) -> float:
    """Return ``min(1 - 1 / log10(S), 0.7)``, the k-hat above which S draws are not to be relied on.

    Raises
    ------
    ArgumentError
        If ``num_draws`` is below 2.

    Examples
    --------
    >>> round(khat_threshold(100), 3), khat_threshold(10_000)
    (0.5, 0.7)
    """
    if num_draws < 2:
        raise ArgumentError(f"num_draws: expected at least 2, got {num_draws}")
    return min(1.0 - 1.0 / math.log10(num_draws), 0.7)


def tail_length(num_draws: int) -> int:
    """Return the number of draws M taken as the tail, ``ceil(min(S / 5, 3 sqrt(S)))``."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def psis(log_weights: ArrayLike) -> PSIS:
    """Smooth the largest weights of each datapoint and estimate how heavy their tail is.

    Parameters
    ----------
    log_weights : array_like
        (S, N) raw log weights log p - log q in nats, with their own sign (``arviz_stats.psislw`` takes minus
        them).

    Returns
    -------
    PSIS
        ``log_weights`` (S, N) and ``khat`` (N,). A datapoint is left unsmoothed, and its k-hat is

        - ``nan`` if there are too few draws to say (fewer than :data:`MIN_TAIL` exceed the threshold), or if
          a log weight is ``nan`` or ``+inf``, or if all are ``-inf``;
        - ``inf`` if there are enough draws, but fewer than :data:`MIN_TAIL` weights are above zero beside the
          largest in double precision;
        - 0 if the tail has no spread beyond rounding in single precision: constant weights have every moment.

    Raises
    ------
    ArgumentError
        If ``log_weights`` isn't (S, N) with S >= 1.

    Examples
    --------
    >>> log_ratio = np.random.default_rng(0).exponential(0.4, size=(2000, 1))  # w is Pareto, its true k 0.4
    >>> smoothed, khat = psis(log_ratio)
    >>> bool(abs(khat[0] - 0.4) < 0.2)
    True
    """
    raw = checked_log_weights(log_weights)
    num_draws, num_datapoints = raw.shape
    smoothed, khat = raw.copy(), np.full(num_datapoints, np.nan)
    if tail_length(num_draws) < MIN_TAIL:
        return PSIS(smoothed, khat)
    largest = raw.max(axis=0)
    usable = np.flatnonzero(np.isfinite(largest))
    block = max(1, _BLOCK_VALUES // (_num_grid(tail_length(num_draws)) * tail_length(num_draws)))
    for start in range(0, usable.size, block):
        columns = usable[start : start + block]
        rows = np.ascontiguousarray(raw[:, columns].T) - largest[columns, None]
        tolerance = _ROUNDING * np.maximum(1.0, np.abs(largest[columns]))
        khat[columns] = _smooth_rows(rows, tolerance)
        smoothed[:, columns] = rows.T + largest[columns]
    return PSIS(smoothed, khat)


def _smooth_rows(rows: Array, tolerance: Array) -> Array:
    """Smooth (B, S) log weights, whose maxima are 0, in place; returns k-hat (B,)."""
    num_draws = rows.shape[1]
    num_tail = tail_length(num_draws)
    top = np.argpartition(rows, num_draws - num_tail - 1, axis=1)[:, -num_tail - 1 :]
    top = np.take_along_axis(top, np.argsort(np.take_along_axis(rows, top, axis=1), axis=1), axis=1)
    log_tail = np.take_along_axis(rows, top, axis=1)
    tail, cutoff = np.exp(log_tail[:, 1:]), np.exp(log_tail[:, 0])
    exceeding = (tail > cutoff[:, None]).sum(axis=1)
    khat = np.where((tail > 0).sum(axis=1) < MIN_TAIL, np.inf, np.nan)
    flat = log_tail[:, 0] >= -tolerance
    khat[flat] = 0.0
    fitted = np.flatnonzero((exceeding >= MIN_TAIL) & ~flat)
    for count in np.unique(exceeding[fitted]):  # one group, unless ties at the threshold leave fewer
        group = fitted[exceeding[fitted] == count]
        excess = tail[group, -count:] - cutoff[group, None]
        khat[group], smooth = _fit_and_smooth(excess, cutoff[group])
        columns = top[group, -count:]
        rows[group[:, None], columns] = np.where(np.isfinite(smooth), smooth, rows[group[:, None], columns])
    return khat


def _fit_and_smooth(excess: Array, cutoff: Array) -> tuple[Array, Array]:
    """Return k-hat (B,) and smoothed log weights (B, M; ``nan``: fit failed) from sorted excesses (B, M)."""
    with np.errstate(all="ignore"):  # a failed fit is recognised by its value
        khat, sigma = _generalised_pareto(excess)
        quantiles = (np.arange(excess.shape[1]) + 0.5) / excess.shape[1]
        log_survival = np.log1p(-quantiles)
        k = np.where(khat == 0, 1e-30, khat)[:, None]  # the exponential limit
        smooth = cutoff[:, None] + sigma[:, None] * np.expm1(-k * log_survival) / k
        log_smooth = np.minimum(np.log(smooth), 0.0)
    failed = ~(np.isfinite(khat) & (sigma > 0) & np.isfinite(sigma))
    log_smooth[failed] = np.nan
    return np.where(failed, np.inf, khat), log_smooth  # it fails where weights span all of double precision


def _generalised_pareto(excess: Array) -> tuple[Array, Array]:
    """Estimate shape and scale, each (B,), of generalised Pareto draws (B, M) sorted upwards.

    Takes the posterior mean of b = -k / sigma on a grid, under Zhang and Stephens' prior; k has its prior too.
    """
    num = excess.shape[1]
    num_grid = _num_grid(num)
    quartile, largest = excess[:, int(num / 4 + 0.5) - 1], excess[:, -1]
    steps = 1.0 - np.sqrt(num_grid / (np.arange(1, num_grid + 1) - 0.5))
    grid = steps / (_PRIOR_SCALE * quartile[:, None]) + 1.0 / largest[:, None]  # (B, G)
    k = np.log1p(-grid[:, :, None] * excess[:, None, :]).mean(axis=2)
    log_profile = num * (np.log(-grid / k) - k - 1.0)
    log_profile = np.where(np.isfinite(log_profile), log_profile, -np.inf)
    profile = np.exp(log_profile - log_profile.max(axis=1, keepdims=True))
    b = (grid * profile).sum(axis=1) / profile.sum(axis=1)
    k_mean = np.log1p(-b[:, None] * excess).mean(axis=1)
    return (num * k_mean + _PRIOR_DRAWS * _PRIOR_K) / (num + _PRIOR_DRAWS), -k_mean / b


def _num_grid(num_tail: int) -> int:
    """Return the size of Zhang and Stephens' grid over b."""
    return 30 + int(math.sqrt(num_tail))
