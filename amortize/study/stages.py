"""Stages of a study: each is kept if a finished one matches, otherwise computed and saved.

What a stage depends on - its settings and seed, the data, the program's parameters, versions - is hashed into its
key. Results are frozen dataclasses of arrays, or dicts of arrays, and are stored as ``.npz``.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

import amortize
from amortize.study.store import RunStore, Stage, hash_json, read_stages

__all__ = ["Codec", "Stages", "arrays_codec", "dataclass_codec", "versions"]

T = TypeVar("T")
_META = "__meta__"


@dataclass(frozen=True)
class Codec(Generic[T]):
    """How a result is written and read."""

    suffix: str
    write: Callable[[T, Path], None]
    read: Callable[[Path], T]


class Stages:
    """Runs stages one after another.

    Parameters
    ----------
    store
        Where finished stages are; None keeps nothing.
    console
        Where a line a stage is printed; None prints nothing.
    common
        What every stage depends on.
    """

    def __init__(self, store: RunStore | None, console: Console | None, common: Mapping[str, Any]) -> None:
        self.seconds: dict[str, float] = {}
        self._keys: dict[str, str] = {}
        self._store = store
        self._console = console
        self._common = dict(common)
        self._begin = time.perf_counter()

    def run(self, name: str, inputs: Mapping[str, Any], codec: Codec[T], compute: Callable[[], T]) -> T:
        """Give the stage's result: the finished one if its inputs are the same, else a new one."""
        key = hash_json({**self._common, "stage": name, "inputs": inputs})
        self._keys[name] = key
        found = self._store.find(name, key) if self._store else None
        if self._store is not None and found is not None:
            self._say(name, "kept", found.seconds)
            self.seconds[name] = found.seconds
            return codec.read(self._store.path(found))
        self._say(name, "...", None)
        begin = time.perf_counter()
        result = compute()
        self.seconds[name] = time.perf_counter() - begin
        if self._store is not None:
            stage = Stage(name, key, self._store.file_name(name, key, codec.suffix), "", self.seconds[name])
            self._store.save(stage, lambda path: codec.write(result, path))
        self._say(name, "done", self.seconds[name])
        return result

    @property
    def finished(self) -> list[str]:
        """Stages of this run that the manifest on disk holds: what a resumed run will find."""
        if self._store is None:
            return []
        stages = read_stages(self._store.folder)
        return [stage.stage for stage in stages if self._keys.get(stage.stage) == stage.key]

    def _say(self, name: str, verb: str, seconds: float | None) -> None:
        if self._console is None:
            return
        total = time.perf_counter() - self._begin
        took = "" if seconds is None else f"{seconds:8.1f} s"
        style = {"...": "dim", "done": "green", "kept": "cyan"}[verb]
        line = Text.assemble((f"{total:7.1f} s  ", "dim"), f"{name:<32} ", (f"{verb:<6}", style), took)
        self._console.print(line)


def versions() -> dict[str, str]:
    """Versions of what made the numbers and their files."""
    packages = ("torch", "pyro-ppl", "numpy", "xarray", "arviz-base")
    return {
        "amortize": amortize.__version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }


def arrays_codec() -> Codec[dict[str, NDArray[Any]]]:
    """For dicts of arrays."""
    return Codec(".npz", lambda arrays, path: _savez(path, arrays), _loadz)


def dataclass_codec(
    cls: type[T], *, nested: Mapping[str, type] | None = None, live: Mapping[str, Any] | None = None
) -> Codec[T]:
    """For dataclasses whose fields are arrays, dicts of arrays or plain values.

    Parameters
    ----------
    cls
        The class of the result.
    nested
        Fields that hold a dataclass of their own, or None, by dotted name.
    live
        Fields that hold live objects, by dotted name: they aren't written, and are given back when reading.
    """
    inner, given = dict(nested or {}), dict(live or {})

    def write(result: T, path: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        plain: dict[str, Any] = {}
        for name, value in _flat(result, inner, given):
            if isinstance(value, np.ndarray):
                arrays[name] = value.astype(str) if value.dtype == object else value  # text of a fixed width
            elif isinstance(value, dict) and any(isinstance(item, np.ndarray) for item in value.values()):
                arrays |= {f"{name}/{key}": item for key, item in value.items()}
            else:
                plain[name] = value
        _savez(path, {**arrays, _META: np.array(json.dumps(plain))})

    def read(path: Path) -> T:
        arrays = _loadz(path)
        plain = json.loads(str(arrays.pop(_META)))
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        dicts: dict[str, dict[str, NDArray[Any]]] = {}
        for name in [name for name in arrays if "/" in name]:
            field, _, key = name.partition("/")
            dicts.setdefault(field, {})[key] = arrays.pop(name)
        return _built(cls, {**values, **arrays, **dicts, **given}, inner)

    return Codec(".npz", write, read)


def _flat(
    result: Any, nested: Mapping[str, type], live: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Fields by dotted name, those of nested dataclasses in place of the dataclass, live ones left out."""
    for field in dataclasses.fields(result):
        name, value = f"{prefix}{field.name}", getattr(result, field.name)
        if name in nested and value is not None:
            yield from _flat(value, nested, live, f"{name}.")
        elif name not in live:
            yield name, value


def _built(cls: type[T], values: Mapping[str, Any], nested: Mapping[str, type], prefix: str = "") -> T:
    """Undo :func:`_flat`."""
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        if name in nested and name not in values:
            columns[field.name] = _built(nested[name], values, nested, f"{name}.")
        elif name in values:
            columns[field.name] = values[name]
    return cls(**columns)


def _savez(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:  # given a name, savez would add a suffix of its own
        np.savez(file, **dict[str, Any](arrays))


def _loadz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
