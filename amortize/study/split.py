"""Data for a study, split into a part that trains and a part that is evaluated; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data import DATASETS, data_hash, load_array
from amortize.errors import DataError
from amortize.study.spec import DataSpec
from amortize.study.targets import is_path
from amortize.study.toml import near_matches

__all__ = ["Split", "load_split"]


@dataclass(frozen=True, eq=False)
class Split:
    """Arrays before they are a program's data: to train on, to validate on, and held out to evaluate.

    ``train``, ``validation`` and ``evaluated`` are an array or a dict of arrays; ``rows`` (N,) are the places of the
    evaluated datapoints in the source; ``hash`` is the SHA-256 of the whole source.
    """

    train: Any
    validation: Any
    evaluated: Any
    rows: NDArray[np.int64]
    hash: str
    labels: NDArray[np.int64] | None = None
    image_shape: tuple[int, int] | None = None


def load_split(spec: DataSpec, *, validation: float = 0.0, allow_nan: bool = False) -> Split:
    """Load data and split it; the split depends on no seed.

    Parameters
    ----------
    spec
        Where the data are, and how many datapoints to train on and to evaluate.
    validation
        Share of the training part that is kept back, 0 for none.
    allow_nan
        Let NaN pass.

    Raises
    ------
    DataError
        No such file or data set, or data that cannot be used or split.
    """
    if is_path(spec.source):
        return _load_file(spec, validation, allow_nan)
    if spec.source not in DATASETS:
        raise DataError(
            f"data: unknown data set {spec.source!r}{near_matches(spec.source, list(DATASETS))}."
            f" Data sets: {', '.join(DATASETS)}; or name a .npy, .npz or .csv file"
        )
    found = DATASETS[spec.source]()  # its rows are shuffled, so that any part of them is a random sample
    num_train = min(spec.num_train or len(found.x_train), len(found.x_train))
    num = min(spec.num_evaluated, len(found.x_test))
    num_kept = _num_validation(num_train, validation, spec)
    return Split(
        train=found.x_train[: num_train - num_kept],
        validation=found.x_train[num_train - num_kept : num_train] if num_kept else None,
        evaluated=found.x_test[:num],
        rows=np.arange(num),
        hash=data_hash({"x_train": found.x_train, "x_test": found.x_test}),
        labels=found.y_test[:num],
        image_shape=found.image_shape,
    )


def _load_file(spec: DataSpec, validation: float, allow_nan: bool) -> Split:
    source = load_array(spec.source, allow_nan=allow_nan)
    num = len(next(iter(source.values())) if isinstance(source, dict) else source)
    if num < 2:
        raise DataError(f"{spec.source}: expected at least 2 datapoints (to train on, and held out), got {num}")
    # RandomState's stream is frozen by NEP 19: the split is the same on every machine
    order = np.random.RandomState(0).permutation(num)
    num_train = min(max(round(spec.train_share * num), 1), num - 1)
    train = order[:num_train][: spec.num_train]
    rows = np.sort(order[num_train:][: spec.num_evaluated])
    num_kept = _num_validation(len(train), validation, spec)
    return Split(
        train=_take(source, np.sort(train[num_kept:]), num),
        validation=_take(source, np.sort(train[:num_kept]), num) if num_kept else None,
        evaluated=_take(source, rows, num),
        rows=rows,
        hash=data_hash(source),
    )


def _num_validation(num_train: int, share: float, spec: DataSpec) -> int:
    num = max(1, round(share * num_train)) if share > 0 else 0
    if num >= num_train:
        raise DataError(
            f"{spec.source}: {num_train} datapoints to train on are too few to keep some back for validation."
            " Use more data, or set fit.validation = 0"
        )
    return num


def _take(source: Any, index: NDArray[np.int64], num: int) -> Any:
    if isinstance(source, dict):
        return {name: array[index] if len(array) == num else array for name, array in source.items()}
    return source[index]
