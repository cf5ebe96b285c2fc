"""The first run of a program, in which it makes its parameters; what belongs to single datapoints is found there.

Parameters are made on two rows, as a program's networks don't follow the data. Where one does (``pyro.param("loc",
torch.zeros(x.shape[0]))``), they are made on all rows: such a program is not amortized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortize.errors import ParameterNameError
from amortize.program.adopt import Adopted
from amortize.program.data import Data
from amortize.program.explain import explained
from amortize.program.handlers import unvalidated
from amortize.random import pyro_rng

__all__ = ["adopt"]

FEW = 2
Size = tuple[int, ...]


def adopt(parts: Sequence[Adopted], data: Data) -> None:
    """Make the parameters of a model and its guide by running them."""
    for part in parts:
        part.per_datapoint = _make(part, data)
    for part in parts:
        part.scope.require_settled()
    if len(parts) > 1 and parts[0].scope is parts[1].scope and parts[0].scope.own:
        _refuse_shared_names(parts, data)


def _refuse_shared_names(parts: Sequence[Adopted], data: Data) -> None:
    """A name that model and guide offer with different shapes is two parameters; only the first would exist."""
    offers = []
    for part in parts:
        shapes = _Shapes(offered=True)
        with suppress(Exception):  # whether it runs on a few rows is not asked here
            _run(part, data.head(FEW), shapes)
        offers.append(shapes.shapes)
    first, second = offers
    for name in [name for name in first if first[name] != second.get(name, first[name])]:
        raise ParameterNameError(
            f"parameter {name!r} has shape {first[name]} in the model and {second[name]} in the guide: under one name "
            "they are one parameter. Give each pyro.param a name of its own"
        )


def _make(part: Adopted, data: Data) -> tuple[str, ...]:
    """Run a part; return the names of its parameters that have an entry a datapoint."""
    made = _Shapes(offered=False)
    try:
        _run(part, data.head(FEW), made)
    except Exception:
        if data.num_datapoints == FEW:
            raise
        return _made_on_all(part, data)
    shapes = {name: size for name, size in made.shapes.items() if name in part.scope.own}
    follows = tuple(name for name, size in _offered(part, data, shapes).items() if shapes.get(name, size) != size)
    if follows:
        part.scope.forget(follows)
        _run(part, data, _Shapes(offered=False))
    return follows


def _made_on_all(part: Adopted, data: Data) -> tuple[str, ...]:
    """Run on all rows where two don't do; parameters of their number, which may be typed in, are datapoints'."""
    made = _Shapes(offered=False)
    _run(part, data, made)
    return tuple(
        name for name, size in made.shapes.items() if name in part.scope.own and data.num_datapoints in size[:1]
    )


def _offered(part: Adopted, data: Data, made: Mapping[str, Size]) -> dict[str, Size]:
    """Shapes in which a run on one row more would make the parameters ``made``."""
    offers = _Shapes(offered=True)
    if made:
        with suppress(Exception):  # they may not fit these rows; what was offered until then is what is asked
            _run(part, data.head(FEW + 1), offers)
    return offers.shapes


def _run(part: Adopted, data: Data, shapes: _Shapes) -> None:
    with explained(part.name, data), pyro_rng(0, "adopt"), unvalidated(), torch.no_grad(), poutine.block(), shapes:
        part(*data.args, **data.kwargs)


class _Shapes(Messenger):
    """Note the shape of each parameter: as it is, or as the program offers to make it."""

    def __init__(self, *, offered: bool) -> None:
        super().__init__()
        self.offered = offered
        self.shapes: dict[str, Size] = {}

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if self.offered:
            first = msg["args"][1] if len(msg["args"]) > 1 else None
            value = first() if callable(first) and not isinstance(first, Tensor) else first
        if isinstance(value, Tensor):
            self.shapes[msg["name"]] = tuple(value.shape)
