"""A ``poutine.scale`` over the whole program: the ELBO times a constant, which is another loss but no other model.

Programs do so to keep losses of a readable size (one over the number of datapoints and pixels, say). Where every site
of the data plate stands under the same number, that number is divided out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amortize.program.handlers import data_dim, user_scale

__all__ = ["as_number", "common_scale"]

ROUNDING = 1e-6


def common_scale(messages: Mapping[str, Mapping[str, Any]], plate: str) -> float:
    """The number that scales every site inside ``plate``, 1 where they differ or the scale is no plain number."""
    inside = [msg for msg in messages.values() if data_dim(msg, plate) is not None]
    scales = {as_number(user_scale(msg, plate)) for msg in inside}
    only = scales.pop() if len(scales) == 1 else None
    return 1.0 if only is None or not only > 0 else only


def as_number(scale: Any) -> float | None:
    """A scale as a number, 1 where it is so but for rounding; None where it is an array."""
    if not isinstance(scale, (int, float)) and getattr(scale, "ndim", 1) != 0:
        return None
    number = float(scale)
    return 1.0 if abs(number - 1.0) < ROUNDING else number
