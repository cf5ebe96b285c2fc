r"""Which latents of a guide are in use, and which have collapsed onto the prior.

.. math:: A_d = \mathrm{Var}_n\left( E_{q(z | x_n)}[z_d] \right) > 0.01

Letters: N datapoints, D latents. Source: Burda et al. (2016), "Importance weighted autoencoders", section 5.2,
https://arxiv.org/abs/1509.00519.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError, check_number

__all__ = ["active_units"]


def active_units(means: ArrayLike, *, threshold: float = 0.01) -> NDArray[np.bool_]:
    """Whether the posterior mean of each latent moves with the datapoint.

    Parameters
    ----------
    means
        Posterior means (N, D), of two datapoints or more.
    threshold
        Variance over datapoints above which a latent is active, 0 or more; the prior's variance is taken to be 1.

    Returns
    -------
    numpy.ndarray
        (D,) of truth values.

    Raises
    ------
    ArgumentError
        For means of another shape, or that are not finite.

    Examples
    --------
    >>> active_units([[1.0, 0.01], [-1.0, 0.0], [0.5, -0.01]])
    array([ True, False])
    """
    values = np.asarray(means, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise ArgumentError(
            f"means: expected finite posterior means (N, D) of two datapoints or more, got shape {values.shape}"
            + ("" if np.isfinite(values).all() else " with values that are not finite")
        )
    return np.asarray(values.var(axis=0, ddof=1) > check_number("threshold", threshold, "[0, inf)"))
