"""A ``poutine.scale`` over the whole program: the ELBO times a constant, which is another loss but no other model.

Programs do so to keep losses of a readable size (one over the number of datapoints and pixels, say). Where every site
of the data plate stands under the same number, that number is divided out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amortize.program.handlers import data_dim, user_scale

__all__ = ["common_scale"]


def common_scale(messages: Mapping[str, Mapping[str, Any]], plate: str) -> float:
    """The number that scales every site inside ``plate``, 1 where they differ or the scale is no plain number."""
    inside = [msg for msg in messages.values() if data_dim(msg, plate) is not None]
    scales = {_number(user_scale(msg, plate)) for msg in inside}
    only = scales.pop() if len(scales) == 1 else None
    return 1.0 if only is None or not only > 0 else only


def _number(scale: Any) -> float | None:
    if isinstance(scale, (int, float)):
        return float(scale)
    return float(scale) if getattr(scale, "ndim", 1) == 0 else None
