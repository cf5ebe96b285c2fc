"""A fingerprint of data: the same for the same values, whatever machine or container they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amortize.errors import DataError

__all__ = ["data_hash"]


def data_hash(arrays: Any) -> str:
    """SHA-256 of arrays: of their names, dtypes, shapes and values.

    Parameters
    ----------
    arrays
        An array, a tuple or list of arrays (named by position) or a mapping of them (names sorted). One array
        is the same as a tuple of one. Whatever ``numpy.asarray`` takes is an array here.

    Returns
    -------
    str
        64 hexadecimal digits. Byte order and memory layout do not enter; the dtype does.

    Raises
    ------
    DataError
        An array of Python objects, or no array at all.

    Examples
    --------
    >>> import numpy as np
    >>> from amortize.data import data_hash
    >>> x = np.arange(6.0).reshape(2, 3)
    >>> data_hash(x) == data_hash((x,)) == data_hash(np.asfortranarray(x))
    True
    >>> data_hash(x) == data_hash(x.T)
    False
    """
    named = _named(arrays)
    if not named:
        raise DataError("data_hash: expected at least one array, got an empty container.")
    digest = hashlib.sha256()
    for name, value in named:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise DataError(f"data_hash: {name!r} holds Python objects (dtype {array.dtype}); convert it to numbers.")
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        header = [name, array.dtype.str, list(np.shape(value))]
        digest.update(json.dumps(header).encode() + b"\n")  # the header fixes how many bytes follow
        digest.update(array.tobytes())
    return digest.hexdigest()


def _named(arrays: Any) -> list[tuple[str, Any]]:
    if isinstance(arrays, Mapping):
        return sorted((str(name), value) for name, value in arrays.items())
    if isinstance(arrays, Sequence) and not isinstance(arrays, str | bytes):
        return [(str(position), value) for position, value in enumerate(arrays)]
    return [("0", arrays)]
