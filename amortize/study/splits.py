r"""The gaps by split and by label: what the guide loses on data that it was not trained on, and on which inputs.

The amortization gap has two parts,

.. math:: A_{test} = A_{train} + (A_{test} - A_{train}),

what the encoder cannot reach even where it was trained, and what it loses on data that it has not seen: its
generalisation. All in nats. Source of the split: Cremer, Li and Duvenaud (2018), section 5.5. Letters: N datapoints.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.errors import ArgumentError, check_count
from amortize.study.findings import column

__all__ = ["GAPS", "SPLIT_COLUMNS", "by_label", "compare_splits", "read_labels"]

GAPS = ("inference_gap", "approximation_gap", "amortization_gap")
SPLIT_COLUMNS = [
    "train", "train_se", "test", "test_se", "difference", "difference_se", "num_train", "num_test",
]  # fmt: skip
FALSE_ALARMS = 0.01
"""Probability that any label at all is called worse where none is."""
FEWEST = 5
"""Fewest datapoints of a label, and of the rest, that can be called worse: below, the error of a mean is unknown."""
MANY_VALUES = 12
"""Numbers with more different values than this are a covariate, which is cut into groups."""

Vector = NDArray[np.float64]


def compare_splits(train: pd.DataFrame, test: pd.DataFrame) -> pd.DataFrame:
    """The ledger's columns on training data against those on others.

    Parameters
    ----------
    train, test
        `Ledger.table` of each.

    Returns
    -------
    pandas.DataFrame
        A row a column of both tables (``log_evidence``, the ELBOs, the gaps): means over datapoints that are finite
        and their standard errors, ``difference`` (test less train) and its standard error, and how many datapoints
        went in. The difference of ``amortization_gap`` is the guide's generalisation gap.
    """
    names = [
        name for name in map(str, test) if name in train and not name.endswith("_se") and name not in ("khat", "ess")
    ]
    rows = {}
    for name in names:
        (first, first_se, num_train), (second, second_se, num_test) = (
            _mean(column(table, name)) for table in (train, test)
        )
        difference = (second - first, float(np.hypot(first_se, second_se)))
        rows[name] = (first, first_se, second, second_se, *difference, num_train, num_test)
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=SPLIT_COLUMNS)
    return frame.astype({"num_train": int, "num_test": int})


def by_label(table: pd.DataFrame, labels: Any, *, num_groups: int = 4) -> pd.DataFrame:
    """The gaps by label, or by a covariate that is cut into groups of equal size.

    Parameters
    ----------
    table
        `Ledger.table`, N rows.
    labels
        (N,) text, whole numbers or truth values: a group each. Numbers with fractions, or with more than `MANY_VALUES`
        different values, are a covariate: ``num_groups`` groups between its quantiles.
    num_groups
        Groups of a covariate.

    Returns
    -------
    pandas.DataFrame
        A row a label: ``num`` (datapoints whose gaps are finite), ``num_failed``, the mean and standard error of each
        gap, then ``difference`` (mean gap less that of all others), ``difference_se``, ``z`` and ``worse``: whether z
        is so large that there is `FALSE_ALARMS` probability of any such label where none is worse, by Student's t of
        Welch's degrees of freedom. The gap is the inference gap, without a guide the approximation gap.

    Raises
    ------
    ArgumentError
        Labels that are not one a datapoint.

    Examples
    --------
    >>> table = pd.DataFrame({"inference_gap": [0.1, 0.2, 0.3, 2.0, 2.1, 2.2]})
    >>> by_label(table, ["a", "a", "a", "b", "b", "b"])["inference_gap"].round(2).tolist()
    [0.2, 2.1]
    """
    names, known = read_labels(labels, len(table), num_groups=check_count("num_groups", num_groups, 2))
    gaps = [name for name in GAPS if name in table]
    values = {name: column(table, name) for name in gaps}
    usable = np.isfinite(np.stack(list(values.values()))).all(axis=0) if gaps else np.zeros(len(table), dtype=bool)
    total = values[gaps[0]] if gaps else column(table, "inference_gap")
    limit = NormalDist().inv_cdf(1 - FALSE_ALARMS / max(len(known), 1))
    rows = {}
    for label in known:
        own = names == label
        inside, outside = total[own & usable], total[~own & usable]
        row: dict[str, Any] = {"num": len(inside), "num_failed": int((own & ~usable).sum())}
        for name in gaps:
            row[name], row[f"{name}_se"], _ = _mean(values[name][own & usable])
        (mean, se, _), (rest, rest_se, _) = _mean(inside), _mean(outside)
        row["difference"], row["difference_se"] = mean - rest, float(np.hypot(se, rest_se))
        row["z"] = row["difference"] / row["difference_se"] if row["difference_se"] > 0 else np.nan
        enough = min(len(inside), len(outside)) >= FEWEST
        row["worse"] = bool(enough and _as_normal(row["z"], _degrees((se, inside), (rest_se, outside))) > limit)
        rows[label] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")


def _degrees(*samples: tuple[float, Vector]) -> float:
    """Welch's degrees of freedom of a difference of means, from the standard error of each and its values."""
    squares = [error**2 for error, _ in samples]
    own = sum(square**2 / (len(values) - 1) for square, (_, values) in zip(squares, samples, strict=True))
    return sum(squares) ** 2 / own if own > 0 else np.inf


def _as_normal(t: float, degrees: float) -> float:
    """The z that is as rare as Student's t, to about a hundredth of it: errors of few values are themselves uncertain.

    Wallace (1959), "Bounds on normal approximations to Student's and the chi-square distributions".
    """
    if not np.isfinite(degrees):
        return t
    size = np.sqrt(degrees * np.log1p(t**2 / degrees)) * (8 * degrees + 1) / (8 * degrees + 3)
    return float(np.copysign(size, t))


def read_labels(labels: Any, num: int, *, num_groups: int = 4) -> tuple[NDArray[np.object_], list[str]]:
    """Labels as text (N,), and the different ones in their order: numbers by size, text as in the alphabet.

    Raises
    ------
    ArgumentError
        Labels that are not one a datapoint.
    """
    array = np.asarray(labels)
    if array.shape != (num,):
        raise ArgumentError(
            f"labels: expected one for each of {num} datapoints, shape ({num},), got shape {array.shape}"
        )
    if array.dtype.kind in "iuf":
        values = array.astype(np.float64)
        if not np.isfinite(values).all():
            raise ArgumentError(f"labels: expected finite numbers, got {int((~np.isfinite(values)).sum())} others")
        if len(np.unique(values)) > MANY_VALUES or bool((values != np.round(values)).any()):
            return _groups(values, num_groups)
    known = [str(value) for value in np.unique(array)] if array.dtype != object else sorted(set(map(str, array)))
    return np.array([str(value) for value in array], dtype=object), known


def _groups(values: Vector, num_groups: int) -> tuple[NDArray[np.object_], list[str]]:
    edges = np.unique(np.quantile(values, np.linspace(0, 1, num_groups + 1)))
    words = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)] or [f"{edges[0]:.4g}"]
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(words) - 1)
    return np.array([words[index] for index in place], dtype=object), words


def _mean(values: Vector) -> tuple[float, float, int]:
    kept = values[np.isfinite(values)]
    se = float(kept.std(ddof=1) / np.sqrt(len(kept))) if len(kept) > 1 else np.nan
    return float(kept.mean()) if len(kept) else np.nan, se, len(kept)
