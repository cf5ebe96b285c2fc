r"""What a code of the data costs under a model.

.. math:: \mathrm{bits}_n = -\frac{\log p(x_n)}{X \log 2}

an evidence in nats as bits a dimension; a lower bound on the evidence becomes an upper bound on the bits. Letters: N
datapoints, X numbers of a datapoint. Source: Theis et al. (2016), "A note on the evaluation of generative models",
https://arxiv.org/abs/1511.01844, section 3.1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError, check_count

__all__ = ["bits_per_dim"]


def bits_per_dim(log_evidence: ArrayLike, num_dims: int) -> NDArray[np.float64]:
    """Bits a dimension of datapoints' log p(x), or of bounds on it.

    Those of numbers that were measured in other units differ by a constant; those of zeros and ones are 1 under a model
    that knows nothing.

    Parameters
    ----------
    log_evidence
        (N,), nats.
    num_dims
        X.

    Returns
    -------
    numpy.ndarray
        (N,).

    Raises
    ------
    ArgumentError
        If something is not a number.

    Examples
    --------
    >>> bits_per_dim([-64 * 0.6931471805599453], num_dims=64)
    array([1.])
    """
    check_count("num_dims", num_dims)
    nats = np.asarray(log_evidence, dtype=np.float64)
    if np.isnan(nats).any():
        raise ArgumentError(f"log_evidence: expected numbers, got NaN for {int(np.isnan(nats).sum())} datapoints.")
    return np.asarray(-nats / (num_dims * math.log(2)))
