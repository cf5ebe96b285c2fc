"""The model run inside an automatic guide, for what only a run can tell: supports and masks that move, plate sizes.

Most models need none: their supports are fixed, and nothing is masked. Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from amortize.program.adopt import find_modules
from amortize.program.guide_runs import frozen_statistics
from amortize.program.handlers import Record

__all__ = ["fixed_support", "glimpse", "same_support"]


def glimpse(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """The messages of a run of the model with ``values`` put in, unseen by what runs the guide.

    Running statistics of its networks stay as they are. Draws from the global generators.
    """
    record = Record()
    with ExitStack() as stack:
        for module in find_modules(model):
            stack.enter_context(frozen_statistics(module))
        for context in (poutine.block(), record, _Put(values)):
            stack.enter_context(context)
        model(*args, **kwargs)
    return record.messages


class _Put(Messenger):
    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.given = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.given and not msg["is_observed"]:
            msg["value"], msg["done"] = self.given[msg["name"]], True


def fixed_support(runs: list[Any]) -> Any | None:
    """A support without the data's size in it, where it is the same in all runs and rows; None where it moves."""
    found = [_reduced(support) for support in runs]
    first = found[0]
    if first is None or any(other is None or other[1] != first[1] for other in found):
        return None
    return first[0]


def _reduced(support: Any) -> tuple[Any, tuple[Any, ...]] | None:
    """A support with numbers for its bounds, and what it says; None where rows differ or training can move it."""
    if isinstance(support, constraints.independent):
        inner = _reduced(support.base_constraint)
        count = support.reinterpreted_batch_ndims
        if inner is None:
            return None
        return constraints.independent(inner[0], count), (count, *inner[1])  # type: ignore[no-untyped-call]
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _reduced(support.base_constraint)
    bounds = [name for name in ("lower_bound", "upper_bound") if name in vars(support)]
    numbers = [_number(getattr(support, name)) for name in bounds]
    if any(number is None for number in numbers):
        return None
    if set(vars(support)) != set(bounds):
        return None  # a kind of its own, whose tensors nobody knows
    return (type(support)(*numbers) if bounds else support), (type(support).__name__, *numbers)


def same_support(first: Any, second: Any) -> bool:
    """Whether two supports of one site are surely the same, row by row; False where nobody knows."""
    if type(first) is not type(second) or set(vars(first)) != set(vars(second)):
        return False
    return all(_same(value, vars(second)[name]) for name, value in vars(first).items())


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.equal(first, second)
    if isinstance(first, constraints.Constraint):
        return same_support(first, second)
    return isinstance(first, int | float) and bool(first == second)


def _number(bound: Any) -> float | None:
    if not isinstance(bound, Tensor):
        return float(bound)
    if bound.requires_grad or bound.numel() == 0 or not bool((bound == bound.flatten()[0]).all()):
        return None
    number = torch.as_tensor(bound.flatten()[0])
    return float(number)
