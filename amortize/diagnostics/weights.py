r"""Summaries of importance weights, one number a datapoint.

With :math:`S` log weights :math:`\log w_s` of one datapoint,

.. math:: \hat Z = \tfrac1S \sum_s w_s, \qquad
          \mathrm{se}(\log \hat Z) \approx \frac{\mathrm{sd}(w)}{\sqrt S\, \hat Z}, \qquad
          \mathrm{ESS} = \frac{(\sum_s w_s)^2}{\sum_s w_s^2}.

Shapes: S draws (or chains), N datapoints. A log weight of ``-inf`` is a valid weight of zero. A datapoint
with a log weight of ``nan`` or ``+inf`` gets ``nan`` everywhere, and spoils no other; no result depends on
the batch around it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError

__all__ = ["effective_sample_size", "log_evidence_se", "log_mean_exp"]


def log_mean_exp(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Take the log of the mean weight: the importance-sampling estimate of log p(x), in nats.

    Parameters
    ----------
    log_weights : array_like
        (S, N) log weights in nats.

    Returns
    -------
    ndarray
        (N,) nats; ``-inf`` where every weight is zero, ``nan`` where a weight is ``nan`` or ``+inf``.

    Raises
    ------
    ArgumentError
        If ``log_weights`` isn't (S, N) with S >= 1.

    Examples
    --------
    >>> log_mean_exp(np.log([[1.0], [3.0]])).round(6)
    array([0.693147])
    """
    weights, scale = relative_weights(log_weights)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(weights.mean(axis=1)) + scale)


def log_evidence_se(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Estimate the standard error of :func:`log_mean_exp` by the delta method, in nats.

    The sample variance divides by S - 1, and draws are taken as independent. With heavy-tailed weights this
    understates the error: look at k-hat first.

    Parameters
    ----------
    log_weights : array_like
        (S, N) log weights in nats.

    Returns
    -------
    ndarray
        (N,) nats; ``nan`` where S = 1, where every weight is zero, or where a weight is ``nan`` or ``+inf``.

    Raises
    ------
    ArgumentError
        If ``log_weights`` isn't (S, N) with S >= 1.

    Examples
    --------
    >>> log_evidence_se(np.log([[1.0], [3.0]])).round(6)
    array([0.5])
    """
    weights, _ = relative_weights(log_weights)
    num_draws = weights.shape[1]
    if num_draws == 1:
        return np.full(weights.shape[0], np.nan)
    with np.errstate(invalid="ignore"):
        relative_sd = weights.std(axis=1, ddof=1) / weights.mean(axis=1)
    return np.asarray(relative_sd / np.sqrt(num_draws))


def effective_sample_size(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Count draws as Kish does: how many equal weights would have the same spread, between 1 and S.

    Parameters
    ----------
    log_weights : array_like
        (S, N) log weights in nats.

    Returns
    -------
    ndarray
        (N,) draws; 0 where every weight is zero, ``nan`` where a weight is ``nan`` or ``+inf``.

    Raises
    ------
    ArgumentError
        If ``log_weights`` isn't (S, N) with S >= 1.

    References
    ----------
    .. [1] Kish (1965), Survey Sampling.

    Examples
    --------
    >>> effective_sample_size(np.log([[1.0], [3.0]]))
    array([1.6])
    """
    weights, _ = relative_weights(log_weights)
    total, squares = weights.sum(axis=1), np.square(weights).sum(axis=1)
    return np.asarray(np.divide(total**2, squares, out=np.zeros_like(total), where=squares != 0))


def relative_weights(log_weights: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Divide the weights of each datapoint by their largest, and return the log of that largest one too.

    Returns
    -------
    weights : ndarray
        (N, S) in [0, 1], a datapoint a row so that its sums don't depend on N; a row of ``nan`` where one of
        its log weights is ``nan`` or ``+inf``.
    scale : ndarray
        (N,) nats; 0 where every weight is zero or the row is ``nan``.
    """
    rows = np.ascontiguousarray(checked_log_weights(log_weights).T)
    largest = rows.max(axis=1)  # nan wins
    spoiled = np.isnan(largest) | (largest == np.inf)
    scale = np.where(np.isfinite(largest), largest, 0.0)
    with np.errstate(over="ignore"):  # only spoiled rows can overflow
        weights = np.exp(rows - scale[:, None])
    weights[spoiled] = np.nan
    return weights, scale


def checked_log_weights(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Return ``log_weights`` as float64 of shape (S, N) with S >= 1, or raise ArgumentError."""
    array = np.asarray(log_weights, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] == 0:
        raise ArgumentError(
            f"log_weights: expected shape (draws, datapoints) with at least one draw, got {array.shape}; "
            "a single datapoint is log_weights[:, None]"
        )
    return array
