"""Data as a program takes it: positional or keyword leaves, some with an entry a datapoint, the rest shared.

Letters: N datapoints, C chains, B = C * N rows (chain-major).
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from amortize.errors import DataError
from amortize.program.arguments import Arguments, Key, Take
from amortize.program.leaves import as_leaf, leaf_size, moved, take_packed, take_rows

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """Arguments of a program: leaves, their places (position or keyword), and what takes rows from each.

    ``takes`` holds a function a leaf, None where all datapoints share it. ``guessed`` names the leaves, beyond the
    first, that were taken to have an entry a datapoint only because their first size is N.
    ``index`` (N,) says which datapoints of the data that were read these are: parameters that belong to single
    datapoints are found by it.
    """

    leaves: tuple[Any, ...]
    keys: tuple[Key, ...]
    takes: tuple[Take | None, ...]
    num_datapoints: int
    index: Tensor = field(repr=False, compare=False)
    guessed: tuple[Key, ...] = ()

    @classmethod
    def of(
        cls,
        x: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        allow_nan: bool = False,
        arguments: Arguments | None = None,
    ) -> Data:
        """Read a user's data: a tensor or array, or a tuple (positional) or dict (keyword) of them.

        Numpy floats become ``dtype``; tensors, and numbers of other kinds (labels, uint8 images), keep theirs. N is the
        first size of the first array that is not said to be shared; an array of another first size is shared.

        Raises
        ------
        DataError
            If there is no array, N is 0, or floats are not finite and ``allow_nan`` is false.
        ArgumentError
            If ``arguments`` speaks of one that is not there.
        """
        data = x._moved(device) if isinstance(x, Data) else cls._read(x, dtype, device, arguments or Arguments())
        if not allow_nan:
            data._check_finite()
        return data

    @classmethod
    def _read(cls, x: Any, dtype: torch.dtype | None, device: torch.device | None, arguments: Arguments) -> Data:
        named: list[tuple[Key, Any]]
        if isinstance(x, Mapping):
            named = [(str(key), value) for key, value in x.items()]
        else:
            named = list(enumerate(x if isinstance(x, tuple) and not isinstance(x, PackedSequence) else (x,)))
        keys = tuple(key for key, _ in named)
        roles = arguments.roles(keys)
        leaves = tuple(
            value if callable(role) else as_leaf(value, _name(key), dtype, device)
            for (key, value), role in zip(named, roles, strict=True)
        )
        first, num = _num_datapoints(leaves, roles)
        takes = tuple(_take(leaf, role, num) for leaf, role in zip(leaves, roles, strict=True))
        index = torch.arange(num, device=device if device is not None else _device_of(leaves))
        guessed = tuple(key for key, take in zip(keys, takes, strict=True) if take is take_rows)
        guessed = tuple(key for key in guessed if key != keys[first])
        whole = [  # a function of the user's makes every argument that the program sees, the first one too
            take(leaf, index) if callable(role) and take is not None else leaf
            for leaf, role, take in zip(leaves, roles, takes, strict=True)
        ]
        return cls(tuple(whole), keys, takes, num, index, guessed)

    @property
    def per_datapoint(self) -> tuple[bool, ...]:
        """Which leaves have an entry a datapoint."""
        return tuple(take is not None for take in self.takes)

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return tuple(leaf for key, leaf in zip(self.keys, self.leaves, strict=True) if isinstance(key, int))

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return {key: leaf for key, leaf in zip(self.keys, self.leaves, strict=True) if isinstance(key, str)}

    def as_given(self) -> Any:
        """The arguments in the form in which users give data: one, a tuple, or a dict."""
        if self.kwargs:
            return self.kwargs
        return self.args if len(self.args) > 1 else self.args[0]

    def rows(self, index: Tensor | slice) -> Data:
        """The datapoints that ``index`` selects, in its order and as often as it does; shared leaves stay."""
        leaves = tuple(
            leaf if take is None else leaf[index] if take is take_rows else take(leaf, self._positions(index))
            for leaf, take in zip(self.leaves, self.takes, strict=True)
        )
        chosen = self.index[index]
        return replace(self, leaves=leaves, num_datapoints=len(chosen), index=chosen)

    def head(self, size: int) -> Data:
        """``size`` rows from the front, and over again from the front where there are fewer datapoints."""
        return self.rows(torch.arange(size, device=self.index.device) % self.num_datapoints)

    def as_one(self) -> Data:
        """All of it as a single datapoint: leaves are shared, and chains are folded into ``num_datapoints`` alone."""
        shared = (None,) * len(self.leaves)
        return replace(self, takes=shared, num_datapoints=1, index=torch.zeros_like(self.index[:1]))

    def fold(self, num_chains: int) -> Data:
        """Every datapoint ``num_chains`` times, chain-major: row c * N + n holds datapoint n."""
        if num_chains == 1:
            return self
        rows = self._positions(slice(None)).repeat(num_chains)
        leaves = tuple(
            leaf
            if take is None
            else leaf.repeat(num_chains, *([1] * (leaf.ndim - 1)))
            if take is take_rows
            else take(leaf, rows)
            for leaf, take in zip(self.leaves, self.takes, strict=True)
        )
        num = num_chains * self.num_datapoints
        return replace(self, leaves=leaves, num_datapoints=num, index=self.index.repeat(num_chains))

    def hint(self) -> str:
        """What was guessed of the arguments, for messages about programs that do not fit them."""
        first = next((key for key, take in zip(self.keys, self.takes, strict=True) if take is take_rows), None)
        if not self.guessed:
            if first is None or len(self.keys) == 1:
                return ""
            return (
                f" ({_name(first)} was taken to index the datapoints, as the first array there; if another does, make "
                f"the program with am.Program(..., shared=({first!r},)))"
            )
        names = ", ".join(_name(key) for key in self.guessed)
        return (
            f" ({names} was taken to have an entry a datapoint, for its first size is the number of datapoints; if all "
            f"datapoints share it, make the program with am.Program(..., shared={self.guessed!r}))"
        )

    def _positions(self, index: Tensor | slice) -> Tensor:
        every = torch.arange(self.num_datapoints, device=self.index.device)
        return every[index]

    def _moved(self, device: torch.device | None) -> Data:
        if device is None:
            return self
        leaves = tuple(moved(leaf, device) for leaf in self.leaves)
        return replace(self, leaves=leaves, index=self.index.to(device))

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


def _name(key: Key) -> str:
    return f"argument {key}" if isinstance(key, int) else f"{key!r}"


def _device_of(leaves: tuple[Any, ...]) -> torch.device | None:
    return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0), None)


def _take(leaf: Any, role: str | Take, num: int) -> Take | None:
    if callable(role):
        return role
    if role == "shared" or isinstance(leaf, nn.Parameter):
        return None
    if isinstance(leaf, PackedSequence):
        return take_packed
    return take_rows if isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == num else None


def _num_datapoints(leaves: tuple[Any, ...], roles: tuple[str | Take, ...]) -> tuple[int, int]:
    """Position of the first argument with an entry a datapoint, and N."""
    for place, (leaf, role) in enumerate(zip(leaves, roles, strict=True)):
        size = leaf_size(leaf) if role == "guess" else None
        if size == 0:
            raise DataError("data: expected at least one datapoint, got an array whose first size is 0")
        if size is not None:
            return place, size
    for place, (leaf, role) in enumerate(zip(leaves, roles, strict=True)):
        if callable(role) and isinstance(leaf, Sized) and not isinstance(leaf, Tensor) and len(leaf) > 0:
            return place, len(leaf)
    if any(callable(role) and isinstance(leaf, Tensor) for leaf, role in zip(leaves, roles, strict=True)):
        raise DataError(
            "data: the number of datapoints can't be told, as rows of the only array are taken by fold=. Give another "
            "argument whose first size it is, or let the first index of the array be the datapoint"
        )
    kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
    raise DataError(
        "data: expected a tensor or array whose first size is the number of datapoints, or a tuple or dict of "
        f"them, got {kinds}" + (" (all of them shared)" if "shared" in roles else "")
    )
