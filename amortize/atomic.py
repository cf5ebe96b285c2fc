"""Files that are there whole, or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amortize.errors import DataError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to, and move it there once it is safely on disk.

    Raises
    ------
    DataError
        If the folder doesn't exist, or ``path`` is a folder itself.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"path: the folder {path.parent} doesn't exist; make it first")
    if path.is_dir():
        raise DataError(f"path: expected the name of a file, got the folder {path}")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
