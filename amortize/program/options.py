"""What ``am.Program`` is made with, read and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from amortize.errors import ArgumentError

__all__ = ["check_callable", "check_flag", "check_givens", "read_condition"]


def check_callable(name: str, function: Any) -> None:
    """Refuse a model or guide that cannot be called, or a class in place of its object."""
    if isinstance(function, type):
        raise ArgumentError(
            f"{name}: expected a function, nn.Module or PyroModule, got the class {function.__name__}. Make an object "
            f"of it first, {function.__name__}(...)"
        )
    if not callable(function):
        raise ArgumentError(f"{name}: expected a function, nn.Module or PyroModule, got {function!r}")


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False: a text would count as True."""
    if not isinstance(value, bool):
        raise ArgumentError(f"{name}: expected True or False, got {value!r}")


def read_condition(condition: Any) -> dict[str, Tensor]:
    """Values of global latents as tensors, by site name."""
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        raise ArgumentError(f"condition: expected a dict of values by site name, {{'w': value}}, got {condition!r}")
    values: dict[str, Tensor] = {}
    for name, value in condition.items():
        try:
            values[str(name)] = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArgumentError(f"condition: expected a number or an array for {name!r}, got {value!r}") from error
    return values


def check_givens(names: Iterable[str], condition: Mapping[str, Tensor], messages: Mapping[str, Any]) -> None:
    """Values given to latents have their site's shape and lie in its support.

    Raises
    ------
    ArgumentError
        Otherwise: Pyro would broadcast the value in silence, and every density after it would be of another model.
    """
    for name in names:
        site, value = messages[name]["fn"], condition[name]
        shape = tuple(site.batch_shape + site.event_shape)
        if tuple(value.shape) != shape:
            raise ArgumentError(
                f"condition: expected a value of shape {shape} for {name!r}, got one of shape {tuple(value.shape)}"
            )
        if not bool(site.support.check(value).all()):
            raise ArgumentError(f"condition: expected a value in the support {site.support} for {name!r}, got {value}")
