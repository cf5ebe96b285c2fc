"""What stands for the time of a block: Pyro's own global state, and how plates that subsample are read.

Pyro keeps a stack of handlers and a list of which plate has which dim, and frees both when a ``with`` block ends.
Ctrl-C that strikes between the entering of one and its body leaves an entry behind, and every later model fails
with "duplicate plate".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

if TYPE_CHECKING:
    from amortize.program.program import Program

__all__ = ["filled_plates", "undisturbed"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put Pyro's handlers and plates back as they were before, whatever ends the block early."""
    handlers, plates = list(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
    try:
        yield
    except BaseException:
        _PYRO_STACK[:] = handlers
        _DIM_ALLOCATOR._stack[:] = plates
        raise


@contextmanager
def filled_plates(program: Program) -> Iterator[None]:
    """Plates that subsample take every datapoint of the batch: guide and model run on the same ones."""
    parts = [part for part in (program.model, program.guide) if part is not None]
    before = [part.fills_plates for part in parts]
    for part in parts:
        part.fills_plates = True
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            part.fills_plates = value
