r"""How much of a codebook is in use: perplexity, dead codes, and what the codes tell about their datapoint.

.. math:: \mathrm{perplexity} = \exp H(\hat p), \qquad H(\hat p) = -\sum_k \hat p_k \log \hat p_k, \qquad
          \hat p_k = \frac{1}{N P} \#\{n, p : c_{np} = k\}

It is K where all codes are used alike and 1 where one code is all there is. Letters: N datapoints, P positions (of a
grid, or variables of a site), K codes. Entropies are in nats. Sources: van den Oord et al. (2017), "Neural discrete
representation learning", https://arxiv.org/abs/1711.00937; Baykal et al. (2023), "EdVAE: Mitigating codebook collapse
with evidential discrete variational autoencoders", https://arxiv.org/abs/2310.05718, who compare codebooks by their
perplexity; Miller (1955), "Note on the bias of information estimates", for how far too low it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError, check_count

__all__ = ["CodebookUsage", "code_information", "codebook_usage"]

Array = NDArray[np.float64]
FEWEST_CODES = 2
ROUNDING = 1e-4
"""How far from 1 the probabilities of a code may sum, in single precision."""


@dataclass(frozen=True, eq=False)
class CodebookUsage:
    """How often each code was used.

    Attributes
    ----------
    counts
        (P, K), how many datapoints have code k at position p.
    perplexity_se
        Standard error of ``perplexity`` over datapoints; NaN where there is only one.
    information
        (P,), nats that the code of each position tells about which datapoint it is of: see `code_information`.
    """

    counts: NDArray[np.int64]
    perplexity_se: float
    information: Array

    @property
    def num_codes(self) -> int:
        """K."""
        return int(self.counts.shape[1])

    @cached_property
    def shares(self) -> Array:
        """(K,), each code's share of all positions of all datapoints; they sum to 1."""
        return np.asarray(self.counts.sum(0) / self.counts.sum())

    @property
    def histogram(self) -> Array:
        """(K,), the shares from the most used code to the least."""
        return np.sort(self.shares)[::-1]

    @property
    def perplexity(self) -> float:
        """Of all positions together, 1 to K.

        The entropy of N P independent draws is too low by about (K - 1) / (2 N P) nats: compare codebooks on the same
        number of datapoints.
        """
        return float(np.exp(_entropy(self.shares)))

    @property
    def position_perplexities(self) -> Array:
        """(P,), of each position by itself: where each has categories of its own, the pooled one says little."""
        return np.exp(_entropy(self.counts / self.counts.sum(1, keepdims=True)))

    @property
    def dead(self) -> NDArray[np.intp]:
        """The codes that none of the datapoints used, in order."""
        return np.flatnonzero(self.counts.sum(0) == 0)

    @property
    def num_dead(self) -> int:
        """How many codes none of the datapoints used."""
        return len(self.dead)

    def __str__(self) -> str:
        used = self.num_codes - self.num_dead
        return (
            f"perplexity {self.perplexity:.1f} +- {self.perplexity_se:.1f} of {self.num_codes} codes, {used} used, "
            f"{self.num_dead} dead; {self.information.mean():.2f} nats a position tell of the datapoint"
        )


def codebook_usage(codes: ArrayLike, num_codes: int, *, information: ArrayLike | None = None) -> CodebookUsage:
    r"""Count the codes of a data set.

    Parameters
    ----------
    codes
        Integers 0 to K - 1, (N,) or (N, ...), the same code at each position standing for the same code vector.
    num_codes
        K, 2 or more.
    information
        (P,) nats, where codes are the most probable ones of a guide that leaves them open. None takes them to be
        certain: what they tell is then their entropy.

    Returns
    -------
    CodebookUsage
        The standard error of its perplexity takes datapoints to be independent, and positions not: it is that of the
        mean over n of :math:`-\frac1P \sum_p \log \hat p_{c_{np}}`, times the perplexity (delta method).

    Raises
    ------
    ArgumentError
        For codes that are no integers in range, or none at all.

    Examples
    --------
    >>> usage = codebook_usage([[0, 0], [1, 0], [0, 1], [1, 1]], num_codes=3)
    >>> round(usage.perplexity, 6), usage.num_dead, usage.dead
    (2.0, 1, array([2]))
    """
    check_count("num_codes", num_codes, FEWEST_CODES)
    values = np.asarray(codes)
    if values.ndim == 0 or values.size == 0 or not np.issubdtype(values.dtype, np.integer):
        raise ArgumentError(
            f"codes: expected integers (N, ...) of one datapoint or more, got {values.dtype} of shape {values.shape}. "
            "One-hot codes become integers by argmax over their last axis"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num_codes:
        raise ArgumentError(f"codes: expected integers 0 to {num_codes - 1} (num_codes - 1), got {low} to {high}")
    rows = values.reshape(len(values), -1).astype(np.int64)
    positions = rows.shape[1]
    flat = (rows + num_codes * np.arange(positions)).ravel()
    counts = np.bincount(flat, minlength=positions * num_codes).reshape(positions, num_codes)
    told = _entropy(counts / len(rows)) if information is None else np.asarray(information, dtype=np.float64)
    if told.shape != (positions,):
        raise ArgumentError(f"information: expected one number for each of {positions} positions, got {told.shape}")
    return CodebookUsage(counts, _perplexity_se(rows, counts), told)


def code_information(probabilities: ArrayLike) -> Array:
    r"""Nats that the code of each position tells about which datapoint it is of.

    .. math:: I_p = H\left( \frac1N \sum_n q(k | x_n) \right) - \frac1N \sum_n H(q(k | x_n))

    between 0, a code that is the same lottery for all (collapsed), and log K. It is the mutual information of code and
    datapoint among these N, so log N is a ceiling too.

    Parameters
    ----------
    probabilities
        The guide's, (N, P, K), or one-hot codes.

    Returns
    -------
    numpy.ndarray
        (P,), nats.

    Raises
    ------
    ArgumentError
        For anything else than probabilities.

    Examples
    --------
    >>> told = [[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]
    >>> code_information(told).round(3).tolist()
    [0.693, 0.0]
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 3 or values.size == 0:
        raise ArgumentError(f"probabilities: expected an array (N, P, K), got shape {values.shape}")
    totals = values.sum(-1)
    if not (np.isfinite(values).all() and (values >= 0).all() and np.abs(totals - 1.0).max() <= ROUNDING):
        raise ArgumentError(
            "probabilities: expected numbers from 0 up that sum to 1 over the last axis, got values from "
            f"{values.min():g} to {values.max():g} with sums from {totals.min():g} to {totals.max():g}"
        )
    values = values / totals[..., None]
    return np.asarray(_entropy(values.mean(0)) - _entropy(values).mean(0))


def _entropy(shares: Array) -> Array:
    """Over the last axis, nats; a share of 0 adds nothing."""
    safe = np.where(shares > 0, shares, 1.0)
    return np.asarray(-(safe * np.log(safe)).sum(-1))


def _perplexity_se(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    if len(rows) < 2:  # a variance takes two
        return float("nan")
    shares = counts.sum(0) / counts.sum()
    surprise = -np.log(np.where(shares > 0, shares, 1.0))
    each = surprise[rows].mean(1)
    return float(np.exp(_entropy(shares)) * each.std(ddof=1) / np.sqrt(len(rows)))
