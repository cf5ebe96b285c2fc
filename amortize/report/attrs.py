"""Attributes that a netCDF file can hold: numbers and text as they are, anything nested as JSON.

The names of the attributes stored as JSON are themselves kept, in one attribute, so that reading gives back
what was written and a title that happens to look like JSON stays a title.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from amortize.errors import ArgumentError

__all__ = ["decode_attrs", "encode_attrs", "plain", "strict_json"]

_JSON_NAMES = "json_attrs"


def encode_attrs(attrs: Mapping[str, Any], *, where: str = "attrs") -> dict[str, Any]:
    """Turn JSON-able attributes into ones that netCDF can store.

    Parameters
    ----------
    attrs : mapping
        Values may be nested, and hold numpy numbers and arrays, paths and dataclasses.
    where : str
        Name of the argument, for the error.

    Raises
    ------
    ArgumentError
        If a value can't be written as JSON.

    Examples
    --------
    >>> encode_attrs({"seed": 0, "settings": {"num_steps": 10}})
    {'seed': 0, 'settings': '{"num_steps": 10}', 'json_attrs': '["settings"]'}
    """
    encoded: dict[str, Any] = {}
    nested = []
    for name, value in attrs.items():
        simple = plain(value, where=f"{where}[{name!r}]")
        if isinstance(simple, str | float) or type(simple) is int:
            encoded[name] = simple
        else:
            encoded[name] = json.dumps(simple)
            nested.append(name)
    if nested:
        encoded[_JSON_NAMES] = json.dumps(nested)
    return encoded


def decode_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Undo :func:`encode_attrs`.

    Examples
    --------
    >>> decode_attrs(encode_attrs({"title": "[draft]", "image_shape": (8, 8)}))
    {'title': '[draft]', 'image_shape': [8, 8]}
    """
    nested = set(json.loads(attrs.get(_JSON_NAMES, "[]")))
    return {
        str(name): json.loads(value) if name in nested else plain(value)
        for name, value in attrs.items()
        if name != _JSON_NAMES
    }


def plain(value: Any, *, where: str = "value") -> Any:
    """Reduce a value to what JSON knows: dict, list, str, int, float, bool and None.

    Raises
    ------
    ArgumentError
        If the value, or one within it, is of a type that JSON has no form for.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where=where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, where=f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where=f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(fields, where=where)
    raise ArgumentError(
        f"{where}: expected numbers, text, lists and dicts of them, got {type(value).__name__}; "
        "convert it first, for example with str()"
    )


def strict_json(value: Any) -> str:
    """Write strict JSON, in which a number that isn't finite is ``null``.

    Examples
    --------
    >>> print(strict_json({"khat": [0.5, float("nan")]}))
    {
      "khat": [0.5, null]
    }
    """
    return _pretty(_finite(plain(value)), indent=0)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pretty(value: Any, *, indent: int) -> str:
    """One line a key, and a list of numbers on one line, so that a diff of two reports can be read."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = " " * (indent + 2)
    lines = [f"{inner}{json.dumps(key)}: {_pretty(item, indent=indent + 2)}" for key, item in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
