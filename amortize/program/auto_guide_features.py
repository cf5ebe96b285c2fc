"""What an automatic guide's encoder reads: the arguments of a program with an entry a datapoint, as one row of numbers.

Numbers are standardised by the data that the guide was made on. Whole numbers go through log(1 + x) first, those of few
values are written one-hot too; missing values (NaN) are zeros, and a column of their own says where they are.
Letters: N datapoints, B rows, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from amortize.errors import ArgumentError, DataError
from amortize.program.arguments import Arguments, Key
from amortize.program.data import Data
from amortize.program.leaves import take_packed, take_rows

__all__ = ["Features"]

FEW_VALUES = 16  # that are written one-hot
MOST_ONE_HOT = 512  # columns of one argument
LEAST_SPREAD = 0.1  # of the argument's own: a pixel that is nearly always off isn't blown up


class Features(nn.Module):
    """Rows of numbers (B, F) from the arguments of a program.

    Parameters
    ----------
    model
        Whose argument names tie positions to keywords.
    data
        What the statistics are taken of.
    function
        A function of the same arguments that gives numbers (N, ...) in their place.

    Raises
    ------
    ArgumentError
        If no argument has an entry a datapoint.
    """

    def __init__(self, model: Callable[..., Any], data: Data, function: Callable[..., Any] | None) -> None:
        super().__init__()
        self.names = Arguments.of(model, (), {}).names
        self.function = (function,)  # in a tuple: a module of the user's is registered by name below
        self.network = function if isinstance(function, nn.Module) else None
        keys = [_canonical(key, self.names) for key in _readable(data)]
        self.keys = tuple(dict.fromkeys(keys)) if function is None else ("features",)
        arguments = self._arguments(data.args, data.kwargs)
        if not self.keys:
            raise ArgumentError(
                "x: no argument is an array with an entry a datapoint, so the encoder has nothing to read. Say what it "
                "shall read: am.auto_guide(model, x, features=function), with the model's arguments, giving (N, F)"
            )
        self.columns = nn.ModuleList([_Column(str(key), arguments[key]) for key in self.keys])

    @property
    def size(self) -> int:
        """F, the number of features."""
        return sum(column.size for column in self.columns)  # type: ignore[misc]

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Features (B, F) of a call's arguments."""
        arguments = self._arguments(args, kwargs)
        rows = [column(self._of(arguments, key)) for key, column in zip(self.keys, self.columns, strict=True)]
        return torch.cat(rows, -1)

    def _of(self, arguments: Mapping[Key, Any], key: Key) -> Any:
        if key not in arguments:
            raise DataError(f"data: the guide was made with an argument {key!r}, which is not there. Give it too")
        return arguments[key]

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
        if self.function[0] is not None:
            return {"features": self.function[0](*args, **kwargs)}
        return {_canonical(place, self.names): value for place, value in enumerate(args)} | dict(kwargs)


class _Column(nn.Module):
    """One argument (B, ...) as standardised numbers (B, size)."""

    loc: Tensor
    scale: Tensor
    classes: Tensor

    def __init__(self, name: str, value: Any) -> None:
        super().__init__()
        self.name = name
        self.length = int(value.batch_sizes.shape[0]) if isinstance(value, PackedSequence) else 0
        raw = _flat(name, value, self.length)
        self.num = raw.shape[1]
        numbers = raw.double()
        here = numbers[torch.isfinite(numbers)]
        whole = bool(((here == here.round()) & (here >= 0)).all()) and here.numel() > 0
        self.counts = whole and bool((here > 1).any()) and raw.dtype != torch.uint8
        values = torch.unique(here)
        listed = not raw.is_floating_point() and 2 < len(values) <= FEW_VALUES
        listed = listed and len(values) * self.num <= MOST_ONE_HOT
        self.missing = bool((~torch.isfinite(numbers)).any())
        loc, scale = _standard(self._transformed(numbers))
        like = torch.get_default_dtype()
        self.register_buffer("loc", loc.to(like))
        self.register_buffer("scale", scale.to(like))
        self.register_buffer("classes", values.to(like) if listed else torch.zeros(0, dtype=like))

    @property
    def size(self) -> int:
        return self.num * (1 + int(self.missing) + len(self.classes))

    def forward(self, value: Any) -> Tensor:
        raw = _flat(self.name, value, self.length)
        if raw.shape[1] != self.num:
            raise DataError(
                f"data {self.name}: the guide was made for {self.num} numbers a datapoint, got {raw.shape[1]}. Make "
                "it on data of this shape, pad, or give am.auto_guide features= of a fixed size"
            )
        numbers = raw.to(self.loc)
        here = torch.isfinite(numbers)
        rows = [torch.where(here, (self._transformed(numbers) - self.loc) / self.scale, 0.0)]
        if self.missing:
            rows.append((~here).to(self.loc))
        if len(self.classes):
            rows.append((numbers.unsqueeze(-1) == self.classes).to(self.loc).flatten(1))
        return torch.cat(rows, -1)

    def _transformed(self, numbers: Tensor) -> Tensor:
        return numbers.sign() * numbers.abs().log1p() if self.counts else numbers


def _standard(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread (F,) of each column over the rows where it is finite."""
    here = torch.isfinite(numbers)
    count = here.sum(0).clamp_min(1)
    filled = torch.where(here, numbers, 0.0)
    loc = filled.sum(0) / count
    variance = torch.where(here, numbers - loc, 0.0).square().sum(0) / count
    typical = variance.mean().sqrt()
    scale = torch.maximum(variance.sqrt(), LEAST_SPREAD * typical)
    return loc, torch.where(scale > 0, scale, 1.0)


def _readable(data: Data) -> list[Key]:
    """Keys of the arguments that have an entry a datapoint as their first index."""
    known = (take_rows, take_packed)
    return [key for key, take in zip(data.keys, data.takes, strict=True) if take in known]


def _canonical(key: Key, names: tuple[str, ...]) -> Key:
    return names[key] if isinstance(key, int) and key < len(names) else key


def _flat(name: str, value: Any, length: int) -> Tensor:
    """Numbers (B, ...) as (B, size); sequences of a packed batch are padded to ``length`` steps."""
    if isinstance(value, PackedSequence):
        steps = max(length, len(value.batch_sizes))
        padded, lengths = pad_packed_sequence(value, batch_first=True, total_length=steps)
        return torch.cat([padded.flatten(1), lengths.unsqueeze(1).to(padded)], -1)
    if not isinstance(value, Tensor) or value.dim() == 0:
        raise DataError(f"data {name}: expected an array (N, ...) for the encoder, got {type(value).__name__}")
    return value.reshape(len(value), -1)
