"""One false-alarm rate for every statistical test of the suite.

A test that compares a Monte Carlo mean with the truth writes ``abs(mean - truth) < z_value() * se``; one that
makes several such comparisons writes ``z_value(num_checks)``, so that the test as a whole keeps the same rate
(Bonferroni). At this rate one comparison is made within 3.89 standard errors.
"""

from __future__ import annotations

from statistics import NormalDist

__all__ = ["FALSE_ALARM_RATE", "z_value"]

FALSE_ALARM_RATE = 1e-4
"""Probability that a correct program fails one statistical test if its seed were drawn anew."""


def z_value(num_checks: int = 1) -> float:
    """Two-sided normal quantile that keeps a test of `num_checks` comparisons at `FALSE_ALARM_RATE`.

    Parameters
    ----------
    num_checks
        Number of comparisons that the test makes, e.g. the size of an array compared entry by entry.

    Returns
    -------
    float
        3.89 for one comparison, 4.89 for a hundred.

    Raises
    ------
    ValueError
        If `num_checks` is less than one.
    """
    if num_checks < 1:
        raise ValueError(f"num_checks: expected at least 1, got {num_checks}")
    return NormalDist().inv_cdf(1.0 - FALSE_ALARM_RATE / (2 * num_checks))
