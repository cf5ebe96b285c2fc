"""Arrays from files, for the command line: what comes back is numeric, finite, has rows, and is named.

Everything that can be wrong with a file is a `DataError` that says where and what to do.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.data.tables import read_h5ad, read_parquet
from amortize.errors import DataError

__all__ = ["check_array", "load_array"]

_SUFFIXES = (".npy", ".npz", ".csv", ".parquet", ".h5ad")
_ROWS_SHOWN = 5


def load_array(
    path: str | Path, *, ndim: int | None = None, allow_nan: bool = False
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read data from a ``.npy``, ``.npz``, ``.csv``, ``.parquet`` or ``.h5ad`` file.

    Parameters
    ----------
    path
        The file. A ``.csv`` is comma-separated numbers, with or without a line of column names. A ``.parquet`` needs
        pyarrow. Of an ``.h5ad`` the matrix X is read, sparse or dense, and given back dense.
    ndim
        The number of dimensions that each array must have; None takes any but zero.
    allow_nan
        True lets NaN pass (a value that was not observed); infinities are refused either way.

    Returns
    -------
    array or dict of arrays
        A dict for a ``.npz`` with more than one array. Values and dtypes as in the file; rows are datapoints.

    Raises
    ------
    DataError
        No such file, an unsupported suffix, a file that is damaged or holds Python objects or text; an array
        without rows or without dimensions, of the wrong ``ndim``, or with values that are not finite.
    """
    path = Path(path)
    _check_path(path)
    arrays = _READERS[path.suffix.lower()](path)
    for name, array in arrays.items():
        label = str(path) if len(arrays) == 1 else f"{path}[{name!r}]"
        check_array(array, label=label, ndim=ndim, allow_nan=allow_nan)
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def check_array(array: NDArray[Any], *, label: str, ndim: int | None = None, allow_nan: bool = False) -> None:
    """Refuse an array that cannot be data; ``label`` says in the message which array it was.

    Raises
    ------
    DataError
        The array is not numeric, has no dimension or no entry, has not ``ndim`` dimensions, or is not finite.
    """
    if array.dtype.kind not in "biuf":
        raise DataError(f"{label}: expected numbers, got dtype {array.dtype}; convert it before saving it.")
    if array.ndim == 0:
        raise DataError(f"{label}: expected one row for each datapoint, got a single number (0 dimensions).")
    if array.size == 0:
        raise DataError(f"{label}: the array is empty (shape {array.shape}).")
    if ndim is not None and array.ndim != ndim:
        raise DataError(f"{label}: expected {ndim} dimensions, got {array.ndim} (shape {array.shape}).")
    _check_finite(array, label, allow_nan)


def _check_path(path: Path) -> None:
    suffix = path.suffix.lower()
    if not path.exists():
        raise DataError(f"No such file: {str(path)!r} (the current folder is {Path.cwd()}).")
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{path}: cannot read {suffix or 'a file without a suffix'!r}; use one of {', '.join(_SUFFIXES)}."
        )
    if not path.is_file():
        raise DataError(f"{path}: expected a file, got a folder.")


def _check_finite(array: NDArray[Any], label: str, allow_nan: bool) -> None:
    if array.dtype.kind != "f":
        return
    num_nan = 0 if allow_nan else int(np.isnan(array).sum())
    num_inf = int(np.isinf(array).sum())
    if num_nan + num_inf == 0:
        return
    bad = np.isinf(array) if allow_nan else ~np.isfinite(array)
    rows = np.flatnonzero(bad.reshape(len(array), -1).any(axis=1))
    shown = ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", ..." if len(rows) > _ROWS_SHOWN else "")
    raise DataError(
        f"{label}: {num_nan} NaN and {num_inf} infinite values, in {len(rows)} of {len(array)} rows"
        f" (first rows, counted from 0: {shown}). Drop or fill them before the study."
    )


def _read_npy(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # numpy leaves a file open that it cannot read
            return {"data": np.load(file, allow_pickle=False)}
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable(path, error) from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if not arrays:
        raise DataError(f"{path}: the archive holds no array.")
    return arrays


def _unreadable(path: Path, error: Exception) -> DataError:
    if "pickle" in str(error):
        return DataError(
            f"{path}: holds Python objects (or is not a NumPy file); amortize never unpickles data."
            " Save plain numeric arrays with numpy.save or numpy.savez."
        )
    return DataError(f"{path}: not a readable {path.suffix} file ({type(error).__name__}: {error}).")


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    try:
        frame = _read_frame(path)
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from error
    for column in frame.columns if len(frame) else ():
        if frame[column].dtype.kind not in "biuf":
            raise _text_in_csv(path, frame[column])
    return {"data": frame.to_numpy(dtype=np.float64)}


def _read_frame(path: Path) -> pd.DataFrame:
    first = pd.read_csv(path, header=None, nrows=1, skipinitialspace=True)
    has_names = all(not _is_number(value) for value in first.iloc[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # mixed columns are an error of our own above
        warnings.simplefilter("error", pd.errors.ParserWarning)  # else pandas drops the end of a long line
        return pd.read_csv(path, header=0 if has_names else None, skipinitialspace=True, index_col=False)


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True


def _text_in_csv(path: Path, column: pd.Series) -> DataError:
    is_text = pd.to_numeric(column, errors="coerce").isna() & column.notna()
    row = int(np.flatnonzero(is_text.to_numpy())[0])
    return DataError(
        f"{path}: expected numbers, got {column.iloc[row]!r} in row {row} (from 0) of column {column.name}."
        " Encode or drop text columns; names may stand only in the first line."
    )


def _read_parquet(path: Path) -> dict[str, NDArray[Any]]:
    return _read_matrix(path, read_parquet)


def _read_h5ad(path: Path) -> dict[str, NDArray[Any]]:
    return _read_matrix(path, read_h5ad)


def _read_matrix(path: Path, read: Callable[[Path], NDArray[Any]]) -> dict[str, NDArray[Any]]:
    try:
        return {"data": read(path)}
    except DataError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise _unreadable(path, error) from error


_READERS = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".h5ad": _read_h5ad,
}
