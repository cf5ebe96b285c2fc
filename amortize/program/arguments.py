"""What a program says of its arguments: which of them all datapoints share, and how rows are taken from the others.

Letters: N datapoints, B rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from amortize.errors import ArgumentError

__all__ = ["Arguments", "Key", "Take"]

Key = int | str
Take = Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Arguments:
    """Names of the positional arguments, those that all datapoints share, and functions that take rows of the others.

    An argument is named by its position in a tuple of data, by its key in a dict of data, or by its name in the model's
    signature in both. A function in ``fold`` is called with the argument and a long tensor of rows (any length,
    repeats allowed) and returns the argument for those rows.
    """

    names: tuple[str, ...] = ()
    shared: tuple[Key, ...] = ()
    fold: Mapping[Key, Take] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Callable[..., Any], shared: Any, fold: Any) -> Arguments:
        """Read ``shared=`` and ``fold=`` of a program.

        Raises
        ------
        ArgumentError
            If they are of another kind than names, positions and functions.
        """
        if isinstance(shared, (str, int)):
            shared = (shared,)
        shared = tuple(shared) if isinstance(shared, Iterable) else (shared,)
        if not all(_is_key(key) for key in shared):
            raise ArgumentError(
                f"shared: expected names or positions of arguments, for example shared=('w',), got {shared!r}"
            )
        if not isinstance(fold, Mapping) or not all(_is_key(key) and callable(take) for key, take in fold.items()):
            raise ArgumentError(
                "fold: expected a dict from an argument's name or position to a function (argument, rows) -> argument, "
                f"got {fold!r}"
            )
        both = [key for key in fold if key in shared]
        if both:
            raise ArgumentError(f"fold: argument {both[0]!r} is in shared= too; rows are taken from one of them only")
        return cls(_positional(model), shared, dict(fold))

    def roles(self, keys: tuple[Key, ...]) -> tuple[str | Take, ...]:
        """For each argument: "shared", "guess" (by its first size), or the function that takes its rows.

        Raises
        ------
        ArgumentError
            If ``shared`` or ``fold`` name an argument that the data do not have.
        """
        found: dict[Key, str | Take] = {}
        for option, wanted in (("shared", dict.fromkeys(self.shared, "shared")), ("fold", self.fold)):
            for name, role in wanted.items():
                place = next((key for key in keys if key == name or self._same(key, name)), None)
                if place is None and name not in self.names:
                    known = ", ".join(repr(key) for key in [*keys, *self.names])
                    raise ArgumentError(f"{option}: there is no argument {name!r} (arguments: {known})")
                if place is not None:
                    found[place] = role
        return tuple(found.get(key, "guess") for key in keys)

    def _same(self, key: Key, name: Key) -> bool:
        place, label = (key, name) if isinstance(key, int) else (name, key)
        return isinstance(place, int) and place < len(self.names) and self.names[place] == label


def _is_key(key: Any) -> bool:
    return isinstance(key, (str, int)) and not isinstance(key, bool)


def _positional(model: Callable[..., Any]) -> tuple[str, ...]:
    function = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a callable that does not tell its signature
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)
