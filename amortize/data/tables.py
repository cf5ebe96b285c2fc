"""Arrays from table and cell formats: ``.parquet`` by way of pandas and pyarrow, ``.h5ad`` by way of h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from amortize.data.formats import dense
from amortize.errors import DataError

__all__ = ["read_h5ad", "read_parquet"]

_MOST_BYTES = 2**33  # of a matrix that is made dense
_SPARSE = ("csr_matrix", "csc_matrix")


def read_parquet(path: Path) -> NDArray[Any]:
    """The columns of a ``.parquet`` file (N, V): integers if all are integers, else float64 with NaN where missing.

    Raises
    ------
    DataError
        pyarrow isn't installed, or a column isn't numbers.
    """
    try:
        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise DataError(
            f"{path}: reading .parquet needs pyarrow, which isn't installed: pip install 'amortize[parquet]',"
            " or save the table as .csv or .npy"
        ) from error
    for name, dtype in frame.dtypes.items():
        if not (pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype)):
            raise DataError(f"{path}: expected numbers, got {dtype} in column {name}. Encode or drop such columns.")
    whole = all(pd.api.types.is_integer_dtype(dtype) for dtype in frame.dtypes) and not frame.isna().any(axis=None)
    return frame.to_numpy(dtype=np.int64 if whole else np.float64, na_value=0 if whole else np.nan)


def read_h5ad(path: Path) -> NDArray[Any]:
    """The matrix ``X`` of an ``.h5ad`` file (cells, genes), made dense where it is stored by rows or columns.

    Raises
    ------
    DataError
        There is no ``X`` of numbers in the file, or it is larger than 8 GiB as a dense array.
    """
    import h5py  # slow to import, and only needed here

    with h5py.File(path, "r") as file:
        if "X" not in file:
            raise DataError(f"{path}: holds no matrix X (it holds: {', '.join(file) or 'nothing'}).")
        matrix = file["X"]
        if isinstance(matrix, h5py.Dataset):
            _check_size(path, matrix.shape, matrix.dtype)
            return np.asarray(matrix[()])
        return _sparse(path, matrix)


def _sparse(path: Path, group: Any) -> NDArray[Any]:
    encoding = _text(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "")))
    encoding = encoding if encoding in _SPARSE else f"{encoding}_matrix"
    shape = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if encoding not in _SPARSE or shape is None or not {"data", "indices", "indptr"} <= set(group):
        raise DataError(f"{path}: X is stored as {encoding!r}; expected a dense matrix, {' or '.join(_SPARSE)}.")
    size = (int(shape[0]), int(shape[1]))
    _check_size(path, size, group["data"].dtype)
    values, indices, indptr = (np.asarray(group[key][()]) for key in ("data", "indices", "indptr"))
    return dense(values, indices, indptr, size, by_column=encoding == "csc_matrix")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _check_size(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    num_bytes = int(np.prod(shape, dtype=np.float64)) * dtype.itemsize
    if num_bytes > _MOST_BYTES:
        raise DataError(
            f"{path}: X {shape} would take {num_bytes / 2**30:.1f} GiB as a dense array."
            " Choose fewer cells or genes and save those"
        )
