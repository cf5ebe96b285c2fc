r"""The tower: the guide, the families from poor to rich, the evidence, and what each step upwards gains.

.. math:: \log p(x) - L_{guide} = \sum_k (L_{k+1} - L_k), \qquad
          L_0 = L_{guide},\ L_1, \ldots = \text{the families' best ELBOs},\ L_K = \log p(x)

All in nats. A step is paired: the same datapoints stand on both of its rungs, and on all others, so that the steps add
up to the whole. Letters: N datapoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from amortize.inference.families.registry import FAMILIES
from amortize.study.findings import column

__all__ = ["COLUMNS", "by_richness", "elbo_column", "tower"]

COLUMNS = ["lower", "upper", "gain", "se", "mc_se", "num", "num_failed"]
GUIDE, EVIDENCE = "guide", "log_evidence"


def elbo_column(name: str) -> str:
    """The column of a ledger's table that holds a rung.

    Examples
    --------
    >>> elbo_column("full-covariance"), elbo_column("log_evidence")
    ('elbo_full_covariance', 'log_evidence')
    """
    return name if name == EVIDENCE else f"elbo_{name.replace('-', '_')}"


def by_richness(families: Iterable[str]) -> tuple[str, ...]:
    """Families from poor to rich, as their registry lists them; those that it does not know come last.

    Examples
    --------
    >>> by_richness(["full-covariance", "mean-field"])
    ('mean-field', 'full-covariance')
    """
    order = list(FAMILIES)
    return tuple(sorted(families, key=lambda name: order.index(name) if name in order else len(order)))


def tower(table: pd.DataFrame, families: Sequence[str]) -> pd.DataFrame:
    """The steps of the tower from a ledger's table.

    Parameters
    ----------
    table
        `Ledger.table`, N rows.
    families
        The families that were fitted; rungs stand in the order of `by_richness`.

    Returns
    -------
    pandas.DataFrame
        A row a step, from the bottom: ``lower`` and ``upper`` ("guide", a family, "log_evidence"), ``gain`` (mean over
        datapoints, nats; below zero where the upper rung came out lower), ``se`` (paired, over datapoints), ``mc_se``
        (Monte Carlo alone), ``num`` (datapoints that are finite on every rung, the same in each row) and
        ``num_failed`` (those where this very step is not finite). No rows without a guide and without families.
    """
    rungs = [name for name in (GUIDE, *by_richness(families), EVIDENCE) if elbo_column(name) in table]
    values = {name: column(table, elbo_column(name)) for name in rungs}
    errors = {name: column(table, f"{elbo_column(name)}_se") for name in rungs}
    usable = np.isfinite(np.stack(list(values.values()))).all(axis=0)
    num = int(usable.sum())
    rows = []
    for lower, upper in pairwise(rungs):
        with np.errstate(invalid="ignore"):  # -inf less -inf is unknown
            gains = values[upper] - values[lower]
        kept, noise = gains[usable], np.hypot(errors[upper], errors[lower])[usable]
        rows.append(
            {
                "lower": lower,
                "upper": upper,
                "gain": float(kept.mean()) if num else np.nan,
                "se": float(kept.std(ddof=1) / np.sqrt(num)) if num > 1 else np.nan,
                "mc_se": float(np.sqrt(np.square(noise).sum()) / num) if num else np.nan,
                "num": num,
                "num_failed": int((~np.isfinite(gains)).sum()),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
