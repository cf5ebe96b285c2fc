"""Work done piece by piece, for the sake of memory and of what can be kept when it is stopped."""

from __future__ import annotations

__all__ = ["slices"]


def slices(num: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover ``num`` items.

    Examples
    --------
    >>> slices(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(first, min(first + size, num)) for first in range(0, num, size)]
