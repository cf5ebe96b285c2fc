"""Single arguments of a program: numbers as tensors, and how rows are taken from them. Letters: N datapoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from amortize.errors import DataError

__all__ = ["as_leaf", "leaf_size", "moved", "take_packed", "take_rows"]


def as_leaf(value: Any, name: str, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    """A tensor, where ``value`` holds numbers; anything else as it is."""
    if isinstance(value, Tensor) and value.layout != torch.strided:
        raise DataError(f"data {name}: expected a dense tensor, got a sparse one; convert it, x.to_dense()")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(
            f"data {name}: expected an array, got a masked array whose mask would be lost. Give the values, filled in, "
            "and the mask as another argument"
        )
    if isinstance(value, (Tensor, PackedSequence)):
        return moved(value, device)
    if isinstance(value, (list, tuple)) and len(value) > 0:
        value = _array_of(value, name)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"data {name}: expected numbers, got an array of dtype {array.dtype}; encode it as numbers first"
            )
        tensor = torch.tensor(array.copy(order="C"))  # torch takes no negative strides, as in x[::-1]
        if tensor.is_floating_point():
            tensor = tensor.to(dtype or torch.get_default_dtype())
        return tensor.to(device) if device is not None else tensor
    if isinstance(value, Mapping):
        raise DataError(
            "data: expected arrays in the tuple or dict, got a dict inside it. A dict means keyword arguments: give "
            "them all in one dict, {'x': x, 'c': c}, under the names of the model's arguments"
        )
    return value


def _array_of(value: Sequence[Any], name: str) -> np.ndarray:
    """A list of numbers, or of lists of them; a list of arrays may mean two things, and is refused."""
    if any(isinstance(item, (Tensor, np.ndarray)) and item.ndim > 0 for item in value):
        raise DataError(
            f"data {name}: expected an array, got a {type(value).__name__} of {len(value)} arrays. If they are several "
            "arguments, give a tuple (x, c); if they are the datapoints, stack them (torch.stack), padded to one "
            "length with a mask, or make the program with am.Program(..., fold={name: function})"
        )
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(
            f"data {name}: expected rows of one length, got a ragged list. Pad them and give the lengths or a mask as "
            "another argument, or make the program with am.Program(..., fold={name: function}), where "
            "function(value, rows) returns the argument for these rows"
        ) from error


def moved(value: Any, device: torch.device | None) -> Any:
    """A tensor or packed batch on ``device``; anything else as it is."""
    if device is None:
        return value
    if isinstance(value, PackedSequence):
        return value.to(device=device)  # type: ignore[call-arg]
    return value.to(device) if isinstance(value, Tensor) else value


def leaf_size(leaf: Any) -> int | None:
    """N of a tensor or packed batch; None where it can't be told."""
    if isinstance(leaf, PackedSequence):
        return int(leaf.batch_sizes[0])
    return int(leaf.shape[0]) if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


def take_rows(value: Any, index: Tensor) -> Any:
    """Rows of a tensor (N, ...)."""
    return value[index]


def take_packed(value: Any, index: Tensor) -> PackedSequence:
    """Sequences of a packed batch, in the order of ``index``."""
    padded, lengths = pad_packed_sequence(value, batch_first=True)
    rows = torch.as_tensor(index).cpu()
    return pack_padded_sequence(padded[rows.to(padded.device)], lengths[rows], batch_first=True, enforce_sorted=False)
