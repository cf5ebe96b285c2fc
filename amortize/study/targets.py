"""Targets as users write them (``path.py:name``, file names of data), and the import of a file of the user.

No torch here: reading a spec and refusing a wrong one is quick.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from amortize.errors import ArgumentError
from amortize.study.toml import near_matches

__all__ = [
    "absolute_target",
    "is_path",
    "is_program_file",
    "load_object",
    "split_target",
    "user_code",
    "where",
]

_COUNTER = itertools.count()


def is_path(source: str) -> bool:
    """Whether a data source is a file name rather than the name of a bundled data set."""
    return Path(source).suffix != "" or Path(source).name != source


def is_program_file(target: str) -> bool:
    """Whether a target means a Python file, with or without ``:name``."""
    return ".py:" in target or target.endswith(".py")


def split_target(target: str) -> tuple[Path, str]:
    """``path.py:name`` as its two parts.

    Raises
    ------
    ArgumentError
        There is no ``:name``.
    """
    path, _, name = target.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ArgumentError(
            f"target: expected path.py:name, got {target!r}. Name the am.Program in the file, or the function"
            f" that returns one, as in {target.partition(':')[0]}:program"
        )
    return Path(path), name


def absolute_target(target: str, folder: Path) -> str:
    """A target whose path is taken from ``folder``; a built-in name stays."""
    if not is_program_file(target):
        return target
    path, name = split_target(target)
    return f"{(folder / path).resolve()}:{name}"


def load_object(target: str) -> Any:
    """The object that ``path.py:name`` names, from a fresh import of the file under a module name of its own.

    Raises
    ------
    ArgumentError
        There is no such file, it fails when it runs (the message shows its own line), or it has no such name.
    """
    path, name = split_target(target)
    if not path.is_file():
        raise ArgumentError(f"program: no such file: {path} (target {target!r})")
    with user_code(path, "run"):
        module = _import(path)
    if not hasattr(module, name):
        names = [key for key in vars(module) if not key.startswith("_") and callable(getattr(module, key))]
        raise ArgumentError(
            f"program: {path} has no {name!r}{near_matches(name, names)}. It defines: {', '.join(names) or 'nothing'}"
        )
    return getattr(module, name)


def _import(path: Path) -> ModuleType:
    module_name = f"amortize_user_{path.stem}_{next(_COUNTER)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"program: {path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


@contextmanager
def user_code(path: Path, what: str) -> Iterator[None]:
    """Run code of a user's file: its folder can be imported from, and its errors are shown with its own line.

    Raises
    ------
    ArgumentError
        The code raised; amortize's own errors pass.
    """
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        yield
    except ArgumentError:
        raise
    except (Exception, SystemExit) as error:
        raise ArgumentError(f"program: {path} failed to {what}: {where(error, path)}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))


def where(error: BaseException, path: Path | None) -> str:
    """An error in one or two lines: its name, its message, and the line of the user's file that led to it."""
    message = str(error).strip() or "(no message)"
    text = f"{type(error).__name__}: {message.splitlines()[0]}"
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{type(error).__name__}: {error.msg}\n  line {error.lineno}: {(error.text or '').strip()}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path is not None and Path(frame.filename).resolve() == path.resolve()]
    return f"{text}\n  line {own[-1].lineno}: {own[-1].line}" if own else text
