"""A program of the contract suite, with its data and what an independent evaluation must know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import amortize as am

__all__ = ["NUM", "Case", "built", "draws", "row_of"]

NUM = 5


@dataclass(frozen=True)
class Case:
    """A model, its guide, data of ``num`` datapoints, and options of ``am.Program``.

    ``row`` gives the arguments of one datapoint as (args, kwargs), without any code of the package. ``reference`` is
    the model to compare with where the model itself subsamples. ``divide`` is the scale that belongs to no datapoint,
    ``choices`` the values of a datapoint's discrete sites, ``warns`` a part of the warning to come.
    """

    model: Callable[..., Any]
    data: Any
    guide: Callable[..., Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    num: int = NUM
    row: Callable[[Any, int], tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    reference: Callable[..., Any] | None = None
    divide: float = 1.0
    choices: Mapping[str, list[Tensor]] = field(default_factory=dict)
    warns: str = ""

    def program(self, *, guide: bool = True) -> am.Program:
        return am.Program(self.model, self.guide if guide else None, **self.options)

    def alone(self, n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of datapoint ``n``."""
        return (self.row or row_of)(self.data, n)


def row_of(data: Any, n: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Entry ``n`` of each array whose first size is the first array's."""
    named = data if isinstance(data, dict) else dict(enumerate(data if isinstance(data, tuple) else (data,)))
    arrays = {key: _tensor(value) for key, value in named.items()}
    num = len(next(value for value in arrays.values() if isinstance(value, Tensor)))
    rows = {
        key: value[n : n + 1] if isinstance(value, Tensor) and value.ndim and len(value) == num else value
        for key, value in arrays.items()
    }
    positional = tuple(value for key, value in rows.items() if isinstance(key, int))
    return positional, {key: value for key, value in rows.items() if isinstance(key, str)}


def _tensor(value: Any) -> Any:
    if isinstance(value, Tensor) or not hasattr(value, "__array__"):
        return value
    tensor = torch.as_tensor(value)
    return tensor.float() if tensor.is_floating_point() else tensor


def draws(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def built(make: Callable[[], nn.Module], seed: int = 0) -> Any:
    """A network with weights of a seed, the global generator left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()
