"""Plates that choose a subsample themselves, ``pyro.plate("data", size, subsample_size=20)``.

That is for training. The density of a datapoint needs the datapoint: while a program is evaluated, such a plate takes
every index. In training, a plate never asks for more than there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.subsample_messenger import SubsampleMessenger

__all__ = ["plates"]


@contextmanager
def plates(*, whole: bool) -> Iterator[None]:
    """Make plates inside take every index where ``whole``, and at most every index where not.

    Pyro checks a subsample's size where it makes the plate, out of reach of its own handlers.
    """
    original = SubsampleMessenger._subsample

    def choose(
        name: str, size: int | None = None, subsample_size: int | None = None, subsample: Any = None, *rest: Any
    ) -> Any:
        if subsample is None and size is not None and subsample_size is not None:
            subsample_size = None if whole else min(subsample_size, size)
        return original(name, size, subsample_size, subsample, *rest)

    SubsampleMessenger._subsample = staticmethod(choose)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SubsampleMessenger._subsample = staticmethod(original)  # type: ignore[method-assign]
