"""Parsers of the formats that data sets are published in; each gives plain arrays, and nothing is ever unpickled.

Letters: N rows, H x W pixels, V columns.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amortize.data.dataset import Arrays
from amortize.errors import DataError

__all__ = ["dense", "parsing", "read_amat", "read_german", "read_idx", "read_npz", "unpacked"]

_IDX_UINT8 = 0x08
_BROKEN = (
    tarfile.TarError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
    zlib.error,
)


def parsing(read: Callable[[Path], Any], path: Path) -> Any:
    """``read(path)``; what a damaged file raises becomes an error that names the file.

    Raises
    ------
    DataError
        The file is not what its name says.
    """
    try:
        return read(path)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Remove it and try again."
        ) from error


def read_npz(path: Path) -> Arrays:
    """The arrays of an ``.npz``."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:  # numpy leaves open what it can't read
        return {name: archive[name] for name in archive.files}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes in IDX, the format of MNIST, gzipped: big-endian sizes after a magic number, then values."""
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _IDX_UINT8:
        raise ValueError(f"expected an IDX file of bytes, got one that begins with {content[:4]!r}")
    ndim = content[3]
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=ndim, offset=4))
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * ndim)
    return values.reshape(shape)


def read_amat(path: Path, num_columns: int = 784) -> NDArray[np.uint8]:
    """Ones and zeros (N, V) of an ``.amat``: a row a line, each digit followed by one space or the line's end."""
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    digits: NDArray[np.uint8] = content[(content == ord("0")) | (content == ord("1"))] - np.uint8(ord("0"))
    num_rows = int((content == ord("\n")).sum())
    if len(digits) != num_rows * num_columns or len(content) != 2 * len(digits):
        raise ValueError(f"expected lines of {num_columns} zeros and ones, got {len(digits)} in {num_rows} lines")
    return digits.reshape(num_rows, num_columns)


def read_german(path: Path) -> Arrays:
    """The numeric German credit data: 24 integers and a class, 1 good or 2 bad, a line. y is 1 for bad."""
    table = np.loadtxt(io.StringIO(path.read_text(encoding="ascii")), dtype=np.int16, ndmin=2)
    if table.shape[1] != 25 or not set(np.unique(table[:, 24])) <= {1, 2}:
        raise ValueError(f"expected 24 columns and a class of 1 or 2, got shape {table.shape}")
    return {"german_x": table[:, :24], "german_y": (table[:, 24] == 2).astype(np.uint8)}


def unpacked(rows: NDArray[np.uint8], num_pixels: int = 784) -> NDArray[np.uint8]:
    """Images (N, V) of zeros and ones from rows of bits, eight a byte, the first pixel in the highest bit."""
    return np.unpackbits(rows, axis=1, count=num_pixels)


def dense(
    values: NDArray[Any],
    indices: NDArray[Any],
    indptr: NDArray[Any],
    shape: tuple[int, int],
    *,
    by_column: bool = False,
) -> NDArray[Any]:
    """A sparse matrix as an array of ``shape``, in the dtype of ``values``; entries given twice are added.

    Parameters
    ----------
    values, indices, indptr
        Compressed rows: row i has ``values[indptr[i]:indptr[i + 1]]`` in the columns ``indices[...]``.
    by_column
        Compressed columns instead.

    Examples
    --------
    >>> dense(np.array([5, 7]), np.array([2, 0]), np.array([0, 1, 2]), (2, 3))
    array([[0, 0, 5],
           [7, 0, 0]])
    """
    major, minor = shape[::-1] if by_column else shape
    if len(indptr) != major + 1 or len(indices) != len(values) or indptr[0] != 0 or indptr[-1] != len(values):
        raise DataError(
            f"sparse matrix: {len(values)} values, {len(indices)} indices and {len(indptr)} offsets don't make {shape}"
        )
    lengths: NDArray[np.int64] = indptr[1:].astype(np.int64) - indptr[:-1].astype(np.int64)
    if np.any(lengths < 0) or (len(indices) and (indices.min() < 0 or indices.max() >= minor)):
        raise DataError(f"sparse matrix: an offset falls, or an index lies outside 0 to {minor - 1}")
    full = np.zeros((major, minor), dtype=values.dtype)
    starts = np.repeat(np.arange(major), lengths)
    np.add.at(full, (starts, indices.astype(np.int64)), values)
    return full.T.copy() if by_column else full
