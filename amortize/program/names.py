"""One name, one parameter: what model and guide, which share their ``pyro.param`` names, each mean by a name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from amortize.errors import ParameterNameError
from amortize.program.adopt import Adopted
from amortize.program.data import Data
from amortize.program.handlers import unvalidated
from amortize.random import pyro_rng

__all__ = ["refuse_shared_names"]

FEW = 2


def refuse_shared_names(parts: Sequence[Adopted], data: Data) -> None:
    """Compare the shapes in which model and guide offer to make parameters of the same name.

    Raises
    ------
    ParameterNameError
        If they differ: Pyro would use the first one in both places, without an error.
    """
    if len(parts) != 2 or parts[0].scope is not parts[1].scope or not parts[0].scope.own:
        return
    first, second = (_offered(part, data) for part in parts)
    for name in first:
        if first[name] != second.get(name, first[name]):
            raise ParameterNameError(
                f"parameter {name!r} has shape {first[name]} in the model and {second[name]} in the guide: under one "
                "name they are one parameter. Give each pyro.param a name of its own"
            )


def _offered(part: Adopted, data: Data) -> dict[str, tuple[int, ...]]:
    offers, few = _Offers(), data.head(FEW)
    with suppress(Exception), pyro_rng(0, "adopt"), unvalidated(), torch.no_grad(), poutine.block(), offers:
        part(*few.args, **few.kwargs)  # whether it runs on a few rows is not asked here
    return offers.shapes


class _Offers(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        offer = msg["args"][1] if len(msg["args"]) > 1 else None
        value = offer() if callable(offer) and not isinstance(offer, Tensor) else offer
        if isinstance(value, Tensor):
            self.shapes[msg["name"]] = tuple(value.shape)
