"""Dynamic binarisation while a guide is trained: each batch's ones and zeros are drawn anew.

A datapoint is in one batch of an epoch, so that a draw a batch is a draw an epoch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amortize.program.data import Data

__all__ = ["drawn"]


def drawn(batch: Data, stream: torch.Generator) -> Data:
    """The batch with ones and zeros in place of its probabilities; they come from ``stream``, which is on the CPU."""
    leaves = zip(batch.leaves, batch.per_datapoint, strict=True)
    return replace(batch, leaves=tuple(_drawn(leaf, stream) if per else leaf for leaf, per in leaves))


def _drawn(leaf: Any, stream: torch.Generator) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return torch.bernoulli(leaf.cpu(), generator=stream).to(leaf.device)
