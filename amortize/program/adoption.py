"""The first run of a program, in which it makes its parameters; what belongs to single datapoints is found there.

Parameters are made on two rows, as a program's networks don't follow the data. Where one does (``pyro.param("loc",
torch.zeros(x.shape[0]))``), they are made on all rows: such a program is not amortized.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def adopt(parts: Iterable[Adopted], data: Data) -> None:
    """Make the parameters of a model and its guide by running them."""
    made = list(parts)
    for part in made:
        part.per_datapoint = _make(part, data)
        part.scope.require_settled()
    if len(made) > 1 and made[0].scope is made[1].scope and made[0].scope.own:
        _refuse_shared_names(made, data)


def _refuse_shared_names(parts: Iterable[Adopted], data: Data) -> None:
    """A name that model and guide offer with different shapes is two parameters; only the first would exist."""
    offers = []
    for part in parts:
        shapes, few = _Shapes(offered=True), data.head(FEW)
        with suppress(Exception), pyro_rng(0, "adopt"), unvalidated(), torch.no_grad(), poutine.block(), shapes:
            part(*few.args, **few.kwargs)  # whether it runs on a few rows is not asked here
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
        with made:
            _run(part, data.head(FEW))
    except Exception:
        if data.num_datapoints == FEW:
            raise
        return _made_on_all(part, data)
    shapes = {name: made.shapes[name] for name in made.shapes if name in part.scope.own}
    follows = tuple(name for name, size in _offered(part, data, shapes).items() if shapes.get(name, size) != size)
    if follows:
        part.scope.forget(follows)
        _run(part, data)
    return follows


def _made_on_all(part: Adopted, data: Data) -> tuple[str, ...]:
    """Run on all rows where two don't do; parameters of their number, which may be typed in, are datapoints'."""
    made = _Shapes(offered=False)
    with made:
        _run(part, data)
    return tuple(
        name for name, size in made.shapes.items() if name in part.scope.own and data.num_datapoints in size[:1]
    )


def _offered(part: Adopted, data: Data, made: Mapping[str, Size]) -> dict[str, Size]:
    """Shapes in which a run on one row more would make the parameters ``made``."""
    offers = _Shapes(offered=True)
    if made:
        with suppress(Exception), offers:  # they may not fit these rows; what was offered until then is what is asked
            _run(part, data.head(FEW + 1))
    return offers.shapes


def _run(part: Adopted, data: Data) -> None:
    with explained(part.name, data), pyro_rng(0, "adopt"), unvalidated(), torch.no_grad(), poutine.block():
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
