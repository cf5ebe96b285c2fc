r"""What chains of draws say about themselves: R-hat, effective sample sizes, and which datapoints they settle.

R-hat is rank-normalised and split, the larger of bulk and folded; effective sample sizes are those of the bulk and of
the 5 % tails (Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-normalization, folding, and localization",
https://doi.org/10.1214/20-BA1221). Their computation is ArviZ's.

The standard error of a standard deviation rests on the effective sample size of the *squared* deviations. Chains whose
successive draws are anticorrelated, as those of Hamiltonian Monte Carlo often are, have more than S effective draws for
the mean and fewer for the spread; ArviZ 0.8 takes the former for both.

Letters: C chains, S draws a chain, N datapoints, M numbers of each.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amortize.errors import ArgumentError

__all__ = [
    "LARGEST_RHAT",
    "LEAST_ESS_A_CHAIN",
    "MOST_DIVERGENT",
    "Mixing",
    "Moments",
    "chain_moments",
    "doubts",
    "mixing",
]

Array = NDArray[np.float64]

LARGEST_RHAT = 1.01
LEAST_ESS_A_CHAIN = 100
MOST_DIVERGENT = 1e-3
"""Share of transitions."""
TAILS = (0.05, 0.95)
FEWEST_DRAWS = 4


class Mixing(NamedTuple):
    """``rhat``, ``ess_bulk`` and ``ess_tail``, (N, M) each; NaN where draws are not finite or all alike."""

    rhat: Array
    ess_bulk: Array
    ess_tail: Array


class Moments(NamedTuple):
    """``mean`` and ``sd`` with their standard errors, and the effective number of draws of the mean, (N, M) each."""

    mean: Array
    mean_se: Array
    sd: Array
    sd_se: Array
    ess: Array


def mixing(draws: ArrayLike) -> Mixing:
    """How well chains have mixed.

    Parameters
    ----------
    draws : array_like
        (C, S, N, M), two chains of four draws or more.

    Raises
    ------
    ArgumentError
        If the shape is another.

    Examples
    --------
    >>> draws = np.random.default_rng(0).normal(size=(4, 500, 1, 2))
    >>> bool((mixing(draws).rhat < 1.01).all())
    True
    """
    array = _checked(draws)
    stats, table = _stats(), np.full((3, *array.shape[2:]), np.nan)
    usable = _usable(array)
    if usable.any():
        good = array[:, :, usable]
        axes = {"chain_axis": 0, "draw_axis": 1}
        table[0, usable] = stats.rhat(good, **axes, method="rank")
        table[1, usable] = stats.ess(good, **axes, method="bulk")
        table[2, usable] = stats.ess(good, **axes, method="tail", prob=TAILS)
    return Mixing(*table)


def chain_moments(draws: ArrayLike) -> Moments:
    """Mean and standard deviation over all chains, and how far off they may be.

    Parameters
    ----------
    draws : array_like
        (C, S, N, M); C = 1 with independent draws too.

    Raises
    ------
    ArgumentError
        If there are fewer than four draws a chain, or other axes.

    Examples
    --------
    >>> moments = chain_moments(np.random.default_rng(0).normal(size=(4, 500, 1, 1)))
    >>> bool(abs(moments.mean[0, 0]) < 4 * moments.mean_se[0, 0])
    True
    """
    array = _checked(draws, fewest_chains=1)
    flat = array.reshape(-1, *array.shape[2:])
    with np.errstate(invalid="ignore"):
        mean, sd = flat.mean(0), flat.std(0, ddof=1)
        square = (array - mean) ** 2
    ess, ess_square = np.full(mean.shape, np.nan), np.full(mean.shape, np.nan)
    usable, stats = _usable(array) & _usable(square), _stats()
    if usable.any():
        for table, values in ((ess, array), (ess_square, square)):
            table[usable] = stats.ess(values[:, :, usable], chain_axis=0, draw_axis=1, method="mean")
    with np.errstate(invalid="ignore", divide="ignore"):
        sd_se = square.reshape(-1, *mean.shape).std(0) / (2 * sd * np.sqrt(ess_square))
        return Moments(mean, sd / np.sqrt(ess), sd, sd_se, ess)


def doubts(found: Mixing, share_divergent: ArrayLike, *, num_chains: int) -> NDArray[np.object_]:
    """Why the chains of a datapoint do not settle its posterior, in plain words; empty where they do.

    Parameters
    ----------
    found
        Of every number looked at, (N, M).
    share_divergent : array_like
        (N,) share of transitions that diverged.
    num_chains
        C.

    Returns
    -------
    ndarray
        (N,) strings: the first that holds of R-hat above 1.01 (or unknown), fewer than 100 C effective draws in bulk or
        tails, more than one divergence in a thousand transitions.

    Examples
    --------
    >>> doubts(Mixing(*np.array([[[1.2]], [[900.0]], [[900.0]]])), [0.0], num_chains=4)
    array(['chains disagree: R-hat 1.2'], dtype=object)
    """
    least = LEAST_ESS_A_CHAIN * num_chains
    share = np.asarray(share_divergent, dtype=float)
    words = np.full(len(share), "", dtype=object)
    for n in range(len(share)):
        rhat = found.rhat[n].max()  # NaN if one is
        ess = np.minimum(found.ess_bulk[n], found.ess_tail[n]).min()
        if not np.isfinite(rhat):
            words[n] = "draws that are not finite, or do not move"
        elif rhat > LARGEST_RHAT:
            words[n] = f"chains disagree: R-hat {rhat:.4g}"
        elif not ess >= least:
            words[n] = f"too few draws: {ess:.0f} effective ones of {least} wanted"
        elif not share[n] <= MOST_DIVERGENT:
            words[n] = f"{share[n]:.2%} of transitions diverged"
    return words


def _stats() -> Any:
    """What ArviZ computes on arrays; it takes seconds to import."""
    return importlib.import_module("arviz_stats.base").array_stats


def _usable(array: Array) -> NDArray[np.bool_]:
    """(N, M) finite, and not all alike."""
    finite = np.isfinite(array).all((0, 1))
    with np.errstate(invalid="ignore"):
        return np.asarray(finite & (np.ptp(array, axis=(0, 1)) > 0))


def _checked(draws: ArrayLike, fewest_chains: int = 2) -> Array:
    array = np.asarray(draws, dtype=np.float64)
    if array.ndim != 4 or array.shape[0] < fewest_chains or array.shape[1] < FEWEST_DRAWS:
        raise ArgumentError(
            f"draws: expected (chains, draws, N, M), {fewest_chains} chains of {FEWEST_DRAWS} draws or more, got shape "
            f"{array.shape}"
        )
    return array
