"""Data for a study, split into a part that trains and a part that is evaluated; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data import Dataset, data_hash, load, random_order, redraw
from amortize.errors import DataError, SpecError
from amortize.study.sources import read_source
from amortize.study.spec import DataSpec
from amortize.study.targets import is_path, is_program_file
from amortize.study.toml import near_matches

__all__ = ["Split", "as_floats", "load_split"]

_EXACT = 2**24  # integers up to this size are float32 numbers


@dataclass(frozen=True, eq=False)
class Split:
    """Arrays before they are a program's data: to train on, to validate on, and held out to evaluate.

    ``train``, ``validation`` and ``evaluated`` are an array or a dict of arrays; ``rows`` (N,) are the places of the
    evaluated datapoints in the source, or in its test part; ``hash`` is the SHA-256 of the whole source; ``protocol``
    says in words what was done. ``dynamic`` is the argument whose training part is to be drawn anew in each epoch, and
    its probabilities (N, ...); ``train`` holds a first draw. None where there is none.
    """

    train: Any
    validation: Any
    evaluated: Any
    rows: NDArray[np.int64]
    hash: str
    labels: NDArray[np.int64] | None = None
    image_shape: tuple[int, ...] | None = None
    protocol: str = ""
    dynamic: tuple[int | str, NDArray[Any]] | None = None


def load_split(spec: DataSpec, *, validation: float = 0.0, allow_nan: bool = False) -> Split:
    """Load data and split it.

    Parameters
    ----------
    spec
        Where the data are, and how many datapoints to train on and to evaluate.
    validation
        Share of the training part that is kept back, 0 for none; a published validation part is used in its place.
    allow_nan
        Let NaN pass.

    Raises
    ------
    DataError
        No such file or data set, or data that cannot be used or split.
    """
    if is_path(spec.source):
        return _load_file(spec, validation, allow_nan)
    if spec.integer_arrays is not None:
        raise SpecError(f"data.integer_arrays: {spec.source} is a data set of amortize.data; leave it out")
    found = load(spec.source, binarise=spec.binarise, seed=spec.seed)
    if len(found.x_test) == 0:
        raise DataError(
            f"{spec.source}: is used as a whole and has no held-out part, so it can't be split for a study. Call"
            f" am.evidence on amortize.data.load({spec.source!r}).x_train"
        )
    return _split_dataset(spec, found, validation)


def _split_dataset(spec: DataSpec, found: Dataset, validation: float) -> Split:
    train = _first(found.x_train, found.y_train, spec.num_train, found.shuffled, spec.seed)
    rows = np.sort(_first(found.x_test, found.y_test, spec.num_evaluated, found.shuffled, spec.seed))
    num_kept = _num_validation(len(train), validation, spec)
    drawn = replace(found, x_train=redraw(found.x_train, seed=spec.seed, epoch=0)) if found.dynamic else found
    kept = None
    if num_kept and found.x_valid is not None:
        num_kept = min(num_kept, len(found.x_valid))
        valid = _first(found.x_valid, found.y_valid, num_kept, found.shuffled, spec.seed)
        kept = _part(found, "valid", valid, spec.arrays)
    elif num_kept:
        kept = _part(drawn, "train", train[len(train) - num_kept :], spec.arrays)
        train = train[: len(train) - num_kept]
    return Split(
        train=_part(drawn, "train", train, spec.arrays),
        validation=kept,
        evaluated=_part(found, "test", rows, spec.arrays),
        rows=rows,
        hash=data_hash({"x_train": found.x_train, "x_test": found.x_test}),
        labels=found.y_test[rows] if found.y_test is not None and found.y_test.dtype.kind == "i" else None,
        image_shape=found.image_shape,
        protocol=_words(found.protocol, len(train), num_kept, len(rows)),
        dynamic=_dynamic(found, train, spec.arrays) if found.dynamic else None,
    )


def _first(x: NDArray[Any], y: NDArray[Any] | None, num: int | None, shuffled: bool, seed: int) -> NDArray[np.int64]:
    """The rows of a part that are used: the first ones of a random order, which the part itself may be in."""
    labels = y if y is not None and y.dtype.kind == "i" else None
    order = np.arange(len(x)) if shuffled else random_order(len(x), seed, labels)
    return order[: len(x) if num is None else num]


def _part(found: Dataset, part: str, rows: NDArray[np.int64], names: dict[str, str]) -> Any:
    """Rows of a part: x alone, or the arrays that ``names`` gives to arguments.

    Raises
    ------
    SpecError
        The data set has no such array.
    """
    if not names:
        return _rows(getattr(found, f"x_{part}"), rows)
    arrays = {"x": getattr(found, f"x_{part}"), "y": getattr(found, f"y_{part}")}
    arrays = {key: value for key, value in arrays.items() if value is not None}
    arrays |= getattr(found, f"covariates_{part}")
    for argument, name in names.items():
        if name not in arrays:
            raise SpecError(
                f"data.arrays.{argument}: {found.name} has no array {name!r}{near_matches(name, list(arrays))}."
                f" It has: {', '.join(arrays)}"
            )
    return {argument: _rows(arrays[name], rows) for argument, name in names.items()}


def _rows(array: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Without a copy where it is all of them; their order then is the array's own."""
    return array if len(rows) == len(array) else array[rows]


def _dynamic(found: Dataset, rows: NDArray[np.int64], names: dict[str, str]) -> tuple[int | str, NDArray[Any]] | None:
    """The argument that is given x (the only one where none is named) and the probabilities of its training part."""
    arguments: list[int | str] = [key for key, name in names.items() if name == "x"] if names else [0]
    return (arguments[0], _rows(found.x_train, rows)) if arguments else None


def _load_file(spec: DataSpec, validation: float, allow_nan: bool) -> Split:
    if spec.binarise is not None:
        raise SpecError(f"data.binarise: {spec.source} is a file of your own; binarise it before the study")
    if spec.arrays:
        raise SpecError(f"data.arrays: the arrays of {spec.source} have names of their own; save them under others")
    loaded = read_source(spec.source, allow_nan=allow_nan)
    if isinstance(loaded, Dataset):
        return _split_dataset(spec, loaded, validation)
    source = as_floats(loaded, spec.integer_arrays)
    num = len(next(iter(source.values())) if isinstance(source, dict) else source)
    if num < 2:
        raise DataError(f"{spec.source}: expected at least 2 datapoints (to train on, and held out), got {num}")
    # RandomState's stream is frozen by NEP 19: the split is the same on every machine
    order = np.random.RandomState(spec.seed).permutation(num)
    num_train = min(max(round(spec.train_share * num), 1), num - 1)
    train = order[:num_train][: spec.num_train]
    rows = np.sort(order[num_train:][: spec.num_evaluated])
    num_kept = _num_validation(len(train), validation, spec)
    kind = "data" if is_program_file(str(spec.source)) else "a file"
    what = f"{kind} of {num:,} datapoints, split at random by seed {spec.seed}; {_types(loaded, source)}"
    return Split(
        train=_take(source, np.sort(train[num_kept:]), num),
        validation=_take(source, np.sort(train[:num_kept]), num) if num_kept else None,
        evaluated=_take(source, rows, num),
        rows=rows,
        hash=data_hash(loaded),
        protocol=_words(what, len(train) - num_kept, num_kept, len(rows)),
    )


def as_floats(source: Any, integer_arrays: tuple[str, ...] | None = None) -> Any:
    """The arrays of a file with integers as floats, which is what distributions and networks take.

    A lone array of integers or truth values becomes floats. Of several arrays, integers with one dimension (labels,
    groups) stay integers, as int64, and truth values (masks) stay truth values. ``integer_arrays`` names those that
    stay in their place, ("data",) for a lone array. Floats are float32 where it holds every value, else float64.

    Raises
    ------
    SpecError
        ``integer_arrays`` names an array that isn't there.
    """
    arrays: dict[str, NDArray[Any]] = source if isinstance(source, dict) else {"data": source}
    for name in integer_arrays or ():
        if name not in arrays:
            raise SpecError(f"data.integer_arrays: the file has no array {name!r}. It has: {', '.join(arrays)}")
    kept = integer_arrays
    if kept is None:
        kept = tuple(
            name for name in arrays if len(arrays) > 1 and (arrays[name].ndim == 1 or arrays[name].dtype == bool)
        )
    converted = {name: _converted(array, name in kept) for name, array in arrays.items()}
    return converted if isinstance(source, dict) else converted["data"]


def _converted(array: NDArray[Any], keep: bool) -> NDArray[Any]:
    if array.dtype.kind not in "iub":
        return array
    if keep:
        return array if array.dtype == bool else array.astype(np.int64)
    exact = array.dtype.itemsize <= 2 or max(-int(array.min()), int(array.max())) <= _EXACT
    return array.astype(np.float32 if exact else np.float64)


def _types(loaded: Any, source: Any) -> str:
    before, after = (list(part.values()) if isinstance(part, dict) else [part] for part in (loaded, source))
    changed = any(a.dtype.kind != b.dtype.kind for a, b in zip(before, after, strict=True))
    return "its values, integers as floats" if changed else "its values as they are"


def _words(protocol: str, num_train: int, num_validation: int, num_evaluated: int) -> str:
    numbers = f"{num_train:,} datapoints, validated on {num_validation:,}, evaluated on {num_evaluated:,}"
    return f"{protocol.rstrip('.')}. This study trained on {numbers}."


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
