"""Data as a program takes it: positional or keyword leaves, some with an entry a datapoint, the rest shared.

Letters: N datapoints, C chains, B = C * N rows (chain-major).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amortize.errors import DataError

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """Arguments of a program: leaves, their places (position or keyword), which of them have an entry a datapoint.

    ``index`` (N,) says which datapoints of the data that were read these are: parameters that belong to single
    datapoints are found by it.
    """

    leaves: tuple[Any, ...]
    keys: tuple[int | str, ...]
    per_datapoint: tuple[bool, ...]
    num_datapoints: int
    index: Tensor = field(repr=False, compare=False)

    @classmethod
    def of(
        cls,
        x: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        allow_nan: bool = False,
    ) -> Data:
        """Read a user's data: a tensor or array, or a tuple (positional) or dict (keyword) of them.

        Numpy floats become ``dtype``; tensors keep theirs. N is the first size of the first array.

        Raises
        ------
        DataError
            If there is no array, N is 0, or floats are not finite and ``allow_nan`` is false.
        """
        named: list[tuple[int | str, Any]]
        if isinstance(x, Data):
            named = list(zip(x.keys, x.leaves, strict=True))
        elif isinstance(x, Mapping):
            named = [(str(key), value) for key, value in x.items()]
        else:
            named = list(enumerate(x if isinstance(x, tuple) else (x,)))
        leaves = tuple(_as_leaf(value, dtype, device) for _, value in named)
        keys = tuple(key for key, _ in named)
        num = _num_datapoints(leaves)
        per = tuple(isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num for leaf in leaves)
        index = x.index.to(_device_of(leaves)) if isinstance(x, Data) else torch.arange(num, device=_device_of(leaves))
        data = cls(leaves, keys, per, num, index)
        if not allow_nan:
            data._check_finite()
        return data

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return tuple(leaf for key, leaf in zip(self.keys, self.leaves, strict=True) if isinstance(key, int))

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return {key: leaf for key, leaf in zip(self.keys, self.leaves, strict=True) if isinstance(key, str)}

    def rows(self, index: Tensor | slice) -> Data:
        """The datapoints that ``index`` selects; shared leaves stay."""
        leaves = tuple(leaf[index] if per else leaf for leaf, per in zip(self.leaves, self.per_datapoint, strict=True))
        num = len(range(*index.indices(self.num_datapoints))) if isinstance(index, slice) else _selected(index)
        return replace(self, leaves=leaves, num_datapoints=num, index=self.index[index])

    def as_one(self) -> Data:
        """All of it as a single datapoint: leaves are shared, and chains are folded into ``num_datapoints`` alone."""
        shared = (False,) * len(self.leaves)
        return replace(self, per_datapoint=shared, num_datapoints=1, index=torch.zeros_like(self.index[:1]))

    def fold(self, num_chains: int) -> Data:
        """Every datapoint ``num_chains`` times, chain-major: row c * N + n holds datapoint n."""
        if num_chains == 1:
            return self
        leaves = tuple(
            leaf.repeat(num_chains, *([1] * (leaf.ndim - 1))) if per else leaf
            for leaf, per in zip(self.leaves, self.per_datapoint, strict=True)
        )
        num = num_chains * self.num_datapoints
        return replace(self, leaves=leaves, num_datapoints=num, index=self.index.repeat(num_chains))

    def _check_finite(self) -> None:
        for key, leaf in zip(self.keys, self.leaves, strict=True):
            if not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
                continue
            bad = ~torch.isfinite(leaf)
            if bad.any():
                where = torch.nonzero(bad.reshape(leaf.shape[0], -1).any(1) if leaf.ndim else bad).flatten()
                rows = ", ".join(str(int(row)) for row in where[:5])
                raise DataError(
                    f"data {_name(key)}: expected finite numbers, got {int(bad.sum())} NaN or infinite values in "
                    f"{len(where)} rows (first: {rows}). Drop those rows or fill them in; if your model handles "
                    "missing values itself, make it with am.Program(..., allow_nan=True)"
                )


def _name(key: int | str) -> str:
    return f"argument {key}" if isinstance(key, int) else f"{key!r}"


def _selected(index: Tensor) -> int:
    return int(index.sum()) if index.dtype == torch.bool else int(index.numel())


def _as_leaf(value: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device) if device is not None else value
    if isinstance(value, np.ndarray) or hasattr(value, "__array__") or _is_numeric_list(value):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(f"data: expected numbers, got an array of dtype {array.dtype}; encode it as numbers first")
        tensor = torch.tensor(array)
        if tensor.is_floating_point():
            tensor = tensor.to(dtype or torch.get_default_dtype())
        return tensor.to(device) if device is not None else tensor
    if isinstance(value, Mapping):
        raise DataError(
            "data: expected arrays in the tuple or dict, got a dict inside it. A dict means keyword arguments: give "
            "them all in one dict, {'x': x, 'c': c}, under the names of the model's arguments"
        )
    return value


def _is_numeric_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _device_of(leaves: tuple[Any, ...]) -> torch.device:
    return next(leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0)


def _num_datapoints(leaves: tuple[Any, ...]) -> int:
    sizes = [leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0]
    if not sizes:
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
        raise DataError(
            "data: expected a tensor or array whose first size is the number of datapoints, or a tuple or dict of "
            f"them, got {kinds}"
        )
    if sizes[0] == 0:
        raise DataError("data: expected at least one datapoint, got an array whose first size is 0")
    return int(sizes[0])
