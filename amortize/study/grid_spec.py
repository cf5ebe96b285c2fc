"""The tables ``[[grid]]`` of a study: axes along which it is repeated, and the cells of their product.

An axis names one setting by its dotted key and lists its values; a value may be a whole table. An axis without a key
changes several settings at a time: each of its values is a table of them.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import BeforeValidator, Field, model_validator

from amortize.errors import SpecError
from amortize.study.tables import Table, tuple_of
from amortize.study.targets import absolute_target, is_path

if TYPE_CHECKING:
    from amortize.study.spec import Study

__all__ = ["REPLICATES", "Axis", "Cell", "anchored_value", "cells_of", "fill_from_grid"]

REPLICATES = ("seed", "data.seed")
"""Keys whose values repeat a study rather than change it: comparisons are paired over them."""
FIXED = ("name", "grid")
MOST_CHARACTERS = 120  # of a cell's folder


class Axis(Table):
    """One axis of a grid of studies."""

    key: str | None = Field(
        default=None,
        description='the setting that changes, as "seed", "local.families", "program" or "program.settings.latent_dim"'
        " (not set: each value is a table of several settings)",
    )
    name: str | None = Field(
        default=None, description="a name for the axis (not set: the last part of the key, which an axis without needs)"
    )
    values: Annotated[tuple[Any, ...], BeforeValidator(tuple_of), Field(min_length=1)] = Field(
        description="the values that it takes, one after another"
    )
    labels: Annotated[tuple[str, ...] | None, BeforeValidator(tuple_of)] = Field(
        default=None, description="short names of the values (not set: the values themselves, which tables can't be)"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.key is None and self.name is None:
            raise ValueError("an axis needs a key, as seed, or a name if each of its values is a table of settings")
        if self.key is None and not all(isinstance(value, dict) for value in self.values):
            raise ValueError('an axis without a key takes tables of settings, as {"program.target" = "vae.py:small"}')
        for dotted in {dotted for place in range(len(self.values)) for dotted in self.changes(place)}:
            if dotted.partition(".")[0] in FIXED:
                raise ValueError(f"{dotted} is the same for all cells of a grid")
        return self

    @model_validator(mode="after")
    def _labels_tell_apart(self) -> Self:
        if self.labels is not None and len(self.labels) != len(self.values):
            raise ValueError(f"labels: expected {len(self.values)} of them, one a value, got {len(self.labels)}")
        slugs = [_slug(label) for label in self.names]
        if len(set(slugs)) < len(slugs) or "" in slugs:
            raise ValueError(self._alike())
        return self

    def _alike(self) -> str:
        """What is wrong where the short names of values don't tell them apart."""
        got = ", ".join(self.names)
        if self.labels is not None:
            return f"labels: expected different words, one a value, got {got}"
        if any(value in self.values[:place] for place, value in enumerate(self.values)):
            return f"values: expected different ones, got {got}"
        return f"values: expected ones whose short names differ, got {got}; name them, as labels = ['small', 'large']"

    @property
    def title(self) -> str:
        """What the axis is called."""
        return self.name or (self.key or "").rpartition(".")[2]

    @property
    def names(self) -> tuple[str, ...]:
        """A short name for each value."""
        return self.labels or tuple(_label(value) for value in self.values)

    @property
    def repeats(self) -> bool:
        """Whether its values are seeds."""
        return self.key in REPLICATES

    def changes(self, place: int) -> dict[str, Any]:
        """Settings by dotted key at one of its values."""
        value = self.values[place]
        return dict(_flat(value)) if self.key is None else {self.key: value}

    def anchored(self, folder: Path) -> dict[str, Any]:
        """The axis with absolute paths, as a table."""
        values = [
            {dotted: anchored_value(dotted, value, folder) for dotted, value in self.changes(place).items()}
            for place in range(len(self.values))
        ]
        return {**self.model_dump(), "values": values if self.key is None else [value[self.key] for value in values]}


class Cell(NamedTuple):
    """One study of a grid: the name of its folder, where it is by axis, and what it does."""

    label: str
    coords: dict[str, str]
    study: Study


def cells_of(study: Study) -> tuple[Cell, ...]:
    """The product of a study's axes, the last one changing fastest; without axes the study itself.

    Raises
    ------
    SpecError
        Two axes have one name, or a cell is no study; the message names the cell.

    Examples
    --------
    >>> from amortize.study.studies import digits
    >>> grid = digits().with_values({"grid": [{"key": "seed", "values": [0, 1]}]})
    >>> [(cell.label, cell.study.seed) for cell in cells_of(grid)]
    [('seed-0', 0), ('seed-1', 1)]
    """
    titles = [axis.title for axis in study.grid]
    if len(set(titles)) < len(titles):
        raise SpecError(f"grid: two axes are called alike ({', '.join(titles)}); give one of them a name")
    return tuple(
        _cell(study, places) for places in itertools.product(*(range(len(axis.values)) for axis in study.grid))
    )


def _cell(study: Study, places: tuple[int, ...]) -> Cell:
    coords = {axis.title: axis.names[place] for axis, place in zip(study.grid, places, strict=True)}
    words = ", ".join(f"{title} {name}" for title, name in coords.items())
    values: dict[str, Any] = {"grid": ()}
    if coords:
        values["report.title"] = f"{study.report.title or study.name}: {words}"
    for axis, place in zip(study.grid, places, strict=True):
        values |= axis.changes(place)
    try:
        return Cell(_folder(coords), coords, study.with_values(values))
    except SpecError as error:
        raise SpecError(f"grid, at {words}: {error}") from None


def _folder(coords: Mapping[str, str]) -> str:
    whole = "_".join(f"{_slug(title)}-{_slug(name)}" for title, name in coords.items()).lstrip("-.")
    if len(whole) <= MOST_CHARACTERS:
        return whole
    return f"{whole[: MOST_CHARACTERS - 13]}-{hashlib.sha256(whole.encode()).hexdigest()[:12]}"


def fill_from_grid(values: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of a study, those that it needs and that only its axes have taken from their first values."""
    filled = dict(values)
    axes = values.get("grid")
    for axis in axes if isinstance(axes, (list, tuple)) else ():
        for dotted, value in _first(axis).items():
            table, _, key = dotted.partition(".")
            if table in ("program", "data") and (not key or isinstance(values.get(table, {}), dict)):
                filled.setdefault(table, value if not key else {})
                if key in ("target", "source"):
                    filled[table] = {key: value, **filled[table]}
    return filled


def _first(axis: object) -> dict[str, Any]:
    """Settings at the first value of what should be an axis, and may be anything."""
    table = axis.model_dump() if isinstance(axis, Axis) else axis
    if not isinstance(table, dict) or not isinstance(table.get("values"), (list, tuple)) or not table["values"]:
        return {}
    value, key = table["values"][0], table.get("key")
    if isinstance(key, str):
        return {key: value}
    return dict(_flat(value)) if isinstance(value, dict) else {}


def anchored_value(dotted: str, value: Any, folder: Path) -> Any:
    """A setting with absolute paths, relative ones taken from ``folder``; others as they are."""
    if isinstance(value, dict):
        return {key: anchored_value(f"{dotted}.{key}", inner, folder) for key, inner in value.items()}
    if not isinstance(value, str):
        return value
    if dotted == "program.target":
        return absolute_target(value, folder)
    return str((folder / value).resolve()) if dotted == "data.source" and is_path(value) else value


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; tables of the study are changed key by key, those within them replaced."""
    for key, value in table.items():
        if isinstance(value, dict) and "." not in key:
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "+".join(_label(item) for item in value) or "none"
    if isinstance(value, dict):
        raise ValueError("labels: values that are tables need names, as labels = ['small', 'large']")
    return str(value).rpartition("/")[2]


def _slug(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", label).rstrip("-.")  # a minus in front tells numbers apart
