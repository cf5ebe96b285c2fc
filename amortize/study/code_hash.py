"""What code the numbers of a study depend on: the user's own file with what it imports beside it, and this package.

Both are read, not run: the same files give the same hash whatever was imported before.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from amortize.study.store import hash_json

__all__ = ["package_hash", "program_files_hash"]

LAYERS = ("program", "inference", "models", "diagnostics", "data", "random.py")
"""The parts of this package that make numbers."""


@functools.cache
def package_hash() -> str:
    """SHA-256 of the source of those parts of amortize that make numbers, as it was when first asked for."""
    root = Path(__file__).parents[1]
    files = sorted(
        file for layer in LAYERS for file in ([root / layer] if layer.endswith(".py") else (root / layer).rglob("*.py"))
    )
    return hash_json({file.relative_to(root).as_posix(): _hash(file) for file in files})


def program_files_hash(path: Path) -> str:
    """SHA-256 of a Python file and of the files and packages of its folder that it imports, these in turn included."""
    folder = path.parent
    found: dict[str, str] = {}
    waiting = [path]
    while waiting:
        file = waiting.pop()
        name = file.relative_to(folder).as_posix()
        if name not in found:
            found[name] = _hash(file)
            waiting.extend(_imported(file, folder))
    return hash_json({"file": found.pop(path.name), "imported": found})


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """Files of the folder that a file imports, from the folder itself or relative to its own package."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return  # running it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(folder, folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = folder if not node.level else file.parents[min(node.level, len(file.parents)) - 1]
            parts = node.module.split(".") if node.module else []
            yield from _files_of(folder, base, parts)
            for alias in node.names:
                yield from _files_of(folder, base, [*parts, alias.name])


def _files_of(folder: Path, base: Path, parts: list[str]) -> Iterator[Path]:
    """The packages on the way to a module, and the module, where they are below the folder."""
    for length in range(1, len(parts) + 1):
        place = base.joinpath(*parts[:length])
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file() and folder in file.parents:
                yield file


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
