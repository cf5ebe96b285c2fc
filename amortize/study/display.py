"""What a study shows on a terminal, and the threads that it takes."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console

__all__ = ["display", "threads"]


@contextlib.contextmanager
def display(progress: bool | None) -> Iterator[Console | None]:
    """A console for stage lines, or none; with ``progress=False`` no bar is drawn either."""
    if progress or (progress is None and sys.stderr.isatty()):
        yield Console(stderr=True, highlight=False)
    elif progress is None:
        yield None
    else:
        with contextlib.redirect_stderr(_NoTerminal(sys.stderr)):
            yield None


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Torch's threads within; None leaves their number as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _NoTerminal(io.TextIOBase):
    """Text passes, but bars, which are drawn on terminals alone, stay away."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass it on."""
        return int(self._stream.write(text))

    def flush(self) -> None:
        """Pass it on."""
        self._stream.flush()

    def isatty(self) -> bool:
        """It isn't."""
        return False
