"""Pyro's own global state: the stack of handlers, and which plate has which dim.

Pyro frees both when a ``with`` block ends. Ctrl-C that strikes between the entering of one and its body leaves an entry
behind, and every later model in the process fails with "duplicate plate".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

__all__ = ["undisturbed"]


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
